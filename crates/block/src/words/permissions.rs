//! What the users of a node may do with it, and what they let others do: QEMU's `BLK_PERM_*`.

use std::fmt;

/// A set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Permissions(u8);

/// Bit and QEMU's name of each. The bits are also those of image locks, which other processes read.
const NAMES: [(u8, &str); 4] = [
    (0, "consistent read"),
    (1, "write"),
    (2, "write unchanged"),
    (3, "resize"),
];

impl Permissions {
    /// None.
    pub const NONE: Self = Self(0);
    /// Reads see what was written, and not the half of something.
    pub const CONSISTENT_READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Writing what reads back the same.
    pub const WRITE_UNCHANGED: Self = Self(4);
    /// Changing the length.
    pub const RESIZE: Self = Self(8);
    /// All.
    pub const ALL: Self = Self(15);
    /// What changes a node.
    pub const MODIFYING: Self = Self(2 | 4 | 8);

    /// The union.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// All others.
    #[must_use]
    pub const fn not(self) -> Self {
        Self::ALL.without(self)
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        other.without(self).is_empty()
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bit of each permission that is in it, and its name.
    pub fn bits(self) -> impl Iterator<Item = (u8, &'static str)> {
        let is_in = move |&(bit, _): &(u8, &str)| self.0 & (1 << bit) != 0;
        NAMES.into_iter().filter(is_in)
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (_, name)) in self.bits().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

/// What somebody who uses a node holds, and what others may hold beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Permissions held.
    pub held: Permissions,
    /// Permissions that others may hold.
    pub shared: Permissions,
}

impl Access {
    /// That of one who does nothing and minds nothing; together with another one it changes nothing.
    pub const NONE: Self = Self {
        held: Permissions::NONE,
        shared: Permissions::ALL,
    };

    /// That of both together: all that either holds, and what both share.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            held: self.held.and(other.held),
            shared: self.shared.both(other.shared),
        }
    }

    /// What `other` holds and this one does not share.
    pub const fn refuses(self, other: Self) -> Permissions {
        other.held.without(self.shared)
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qemus() {
        assert_eq!(
            Permissions::ALL.to_string(),
            "consistent read, write, write unchanged, resize"
        );
        assert_eq!(Permissions::RESIZE.to_string(), "resize");
        assert_eq!(Permissions::NONE.to_string(), "");
    }

    #[test]
    fn sets() {
        let all = || (0..16).map(Permissions);
        for a in all() {
            assert_eq!(a.not().not(), a);
            assert_eq!(a.bits().count(), a.0.count_ones() as usize);
            for b in all() {
                assert_eq!(a.contains(b), a.and(b) == a);
                assert_eq!(a.without(b), a.both(b.not()));
                let (one, other) = (Access { held: a, shared: b }, Access { held: b, shared: a });
                assert_eq!(one.and(Access::NONE), one);
                assert_eq!(one.refuses(other), b.without(b));
                assert_eq!(one.and(other).refuses(one), a.without(b));
            }
        }
    }
}
