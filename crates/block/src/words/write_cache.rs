//! Whether the guest of an export believes in a write cache. If it does, it sends flushes; if it does
//! not, it takes every write that has completed for durable, and sends none.

/// What is known of that. It belongs to the export's life: it survives resets, reconnects and
/// restarts, because VMMs keep a copy of it and ask for it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteCache {
    /// Nobody has told the guest, or nobody remembers: nothing may be taken for granted.
    #[default]
    Unknown,
    /// There is one: the guest sends flushes.
    WriteBack,
    /// There is none: a write must be durable when it completes.
    WriteThrough,
}

impl WriteCache {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::WriteBack, Self::WriteThrough];

    /// As it is saved.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::WriteBack => "write-back",
            Self::WriteThrough => "write-through",
        }
    }

    /// The one of a guest that believes in a cache, or does not.
    pub fn of(writeback: bool) -> Self {
        match writeback {
            true => Self::WriteBack,
            false => Self::WriteThrough,
        }
    }

    /// What two records say together: where they differ, the safe one counts.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        match (self, other) {
            (Self::WriteThrough, _) | (_, Self::WriteThrough) => Self::WriteThrough,
            (Self::WriteBack, _) | (_, Self::WriteBack) => Self::WriteBack,
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WriteCache::{Unknown, WriteBack, WriteThrough};

    #[test]
    fn the_safe_record_counts() {
        for (one, other, both) in [
            (Unknown, Unknown, Unknown),
            (Unknown, WriteBack, WriteBack),
            (Unknown, WriteThrough, WriteThrough),
            (WriteBack, WriteBack, WriteBack),
            (WriteBack, WriteThrough, WriteThrough),
            (WriteThrough, WriteThrough, WriteThrough),
        ] {
            assert_eq!((one.joined(other), other.joined(one)), (both, both));
        }
    }
}
