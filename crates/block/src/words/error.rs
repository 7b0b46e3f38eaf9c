//! The error of a request: a small kind to match on, the errno that survives to the top, where it
//! happened, and what lies beneath.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why a request failed: what `x-cause` says, and with it the I/O status. Of all of them policy knows
/// [`Self::Corrupt`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No space or no quota left.
    NoSpace,
    /// The storage, or that part of it, is no longer there, or cannot be reached.
    BackingGone,
    /// The storage did not answer in time.
    Timeout,
    /// Access refused; EBADE is a reservation that somebody else holds.
    Permission,
    /// The medium lost the data.
    Media,
    /// The storage cannot do this.
    Unsupported,
    /// The storage found the request malformed.
    Invalid,
    /// What the storage says is no image, or none any more: no waiting mends it.
    Corrupt,
    /// Anything else, EIO first of all.
    Failed,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoSpace,
        Self::BackingGone,
        Self::Timeout,
        Self::Permission,
        Self::Media,
        Self::Unsupported,
        Self::Invalid,
        Self::Corrupt,
        Self::Failed,
    ];

    /// What a (positive) errno stands for if nothing more is known ([`BlockError::because`]).
    pub const fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ENOTCONN
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ECONNRESET
            | libc::ECONNREFUSED
            | libc::ECONNABORTED
            | libc::ESHUTDOWN
            | libc::ENOLINK
            | libc::EPIPE
            | libc::ESTALE
            | libc::ENODEV
            | libc::ENXIO => Self::BackingGone,
            libc::ETIMEDOUT | libc::ETIME => Self::Timeout,
            libc::EACCES | libc::EPERM | libc::EROFS | libc::EBADE => Self::Permission,
            libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO | libc::EBADMSG => Self::Media,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => Self::Unsupported,
            libc::EINVAL => Self::Invalid,
            _ => Self::Failed,
        }
    }

    /// The name that events, queries and tables show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "nospace",
            Self::BackingGone => "backing-gone",
            Self::Timeout => "timeout",
            Self::Permission => "permission",
            Self::Media => "media",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
            Self::Corrupt => "corrupt",
            Self::Failed => "failed",
        }
    }
}

/// Kind and errno of a failure: all that policy, status and events need, without allocation.
///
/// Policy goes by the errno, as in QEMU, unless nothing could mend it. The kind decides what the I/O status, `nospace` and `x-cause`
/// say: they tell the truth where Linux has only one errno for two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    /// What it means.
    pub kind: ErrorKind,
    /// The errno, positive.
    pub errno: i32,
}

impl Cause {
    /// The cause that an errno stands for.
    pub const fn of_errno(errno: i32) -> Self {
        Self {
            kind: ErrorKind::of_errno(errno),
            errno,
        }
    }

    /// Whether the errno is one of want of space or quota: what `enospc` policies stop for, whatever
    /// the kind. ENOSPC as in QEMU; EDQUOT is ours.
    pub const fn is_enospc(self) -> bool {
        matches!(self.errno, libc::ENOSPC | libc::EDQUOT)
    }

    /// The text of the errno, as strerror(3) gives it: the `reason` of `BLOCK_IO_ERROR`.
    pub fn reason(self) -> String {
        let text = io::Error::from_raw_os_error(self.errno).to_string();
        match text.find(" (os error") {
            Some(end) => text[..end].to_owned(),
            None => text,
        }
    }
}

/// Where a request failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorContext {
    /// Name of the node that failed.
    pub node: Option<Arc<str>>,
    /// First byte of the failed operation.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What was being done, if that says more than the errno.
    pub what: Option<&'static str>,
}

/// The text of a system error, as strerror(3) gives it, without a number behind; of another one its own.
pub fn strerror(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Cause::of_errno(errno).reason(),
        // Such as a NUL in a file name.
        None => error.to_string(),
    }
}

struct Inner {
    cause: Cause,
    context: ErrorContext,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The error of a request or of an operation on a node.
pub struct BlockError(Box<Inner>);

/// Result of an operation on a node.
pub type Result<T> = std::result::Result<T, BlockError>;

impl BlockError {
    /// An error from a (positive) errno.
    pub fn from_errno(errno: i32) -> Self {
        Self(Box::new(Inner {
            cause: Cause::of_errno(errno),
            context: ErrorContext::default(),
            source: None,
        }))
    }

    /// An error with text of its own and the errno that policy shall see.
    pub fn new(errno: i32, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let mut error = Self::from_errno(errno);
        error.0.source = Some(source.into());
        error
    }

    /// Says what it means, where more is known than the errno says.
    #[must_use]
    pub fn because(mut self, kind: ErrorKind) -> Self {
        self.0.cause.kind = kind;
        self
    }

    /// Nothing mends it, however long somebody waits: it is reported, whatever the policy, and never held.
    #[must_use]
    pub fn beyond_repair(self) -> Self {
        self.because(ErrorKind::Corrupt)
    }

    /// Says what was being done.
    #[must_use]
    pub fn doing(mut self, what: &'static str) -> Self {
        self.0.context.what = Some(what);
        self
    }

    /// Says where it happened, unless a node below has said so already.
    #[must_use]
    pub fn at(mut self, node: &Arc<str>, offset: u64, bytes: u64) -> Self {
        if self.0.context.node.is_none() {
            self.0.context.node = Some(Arc::clone(node));
            self.0.context.offset = offset;
            self.0.context.bytes = bytes;
        }
        self
    }

    /// Says of which node it is, unless somebody has said so already, in words or by [`Self::at`].
    #[must_use]
    pub fn at_least(self, node: &Arc<str>) -> Self {
        match self.to_string().contains(&format!("node '{node}'")) {
            true => self,
            false => self.at(node, 0, 0),
        }
    }

    /// Kind and errno.
    pub fn cause(&self) -> Cause {
        self.0.cause
    }

    /// What it means.
    pub fn kind(&self) -> ErrorKind {
        self.0.cause.kind
    }

    /// The errno, positive.
    pub fn errno(&self) -> i32 {
        self.0.cause.errno
    }

    /// Where it happened.
    pub fn context(&self) -> &ErrorContext {
        &self.0.context
    }
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> Self {
        let errno = match (error.raw_os_error(), error.kind()) {
            (Some(errno), _) => return Self::from_errno(errno),
            (None, io::ErrorKind::StorageFull) => libc::ENOSPC,
            (None, io::ErrorKind::QuotaExceeded) => libc::EDQUOT,
            (None, io::ErrorKind::TimedOut) => libc::ETIMEDOUT,
            (None, io::ErrorKind::Unsupported) => libc::EOPNOTSUPP,
            (None, io::ErrorKind::PermissionDenied) => libc::EACCES,
            (None, _) => libc::EIO,
        };
        Self::new(errno, error)
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            cause,
            context,
            source,
        } = &*self.0;
        if let Some(node) = &context.node {
            write!(f, "node '{node}'")?;
            if context.bytes > 0 {
                write!(f, " at {}+{}", context.offset, context.bytes)?;
            }
            f.write_str(": ")?;
        }
        if let Some(what) = context.what {
            write!(f, "{what}: ")?;
        }
        match source {
            Some(source) => write!(f, "{source}"),
            None => f.write_str(&cause.reason()),
        }
    }
}

impl fmt::Debug for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BlockError({:?} errno {}: {self})",
            self.kind(),
            self.errno()
        )
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_survives_conversion_and_context() {
        let node: Arc<str> = "disk0".into();
        let error =
            BlockError::from(io::Error::from_raw_os_error(libc::ENOSPC)).at(&node, 4096, 512);
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::NoSpace, libc::ENOSPC)
        );
        assert_eq!(
            error.to_string(),
            "node 'disk0' at 4096+512: No space left on device"
        );
        let outer: Arc<str> = "filter".into();
        assert_eq!(
            error.at(&outer, 0, 0).context().node.as_deref(),
            Some("disk0")
        );
    }

    #[test]
    fn reason_has_no_number() {
        assert_eq!(Cause::of_errno(libc::EIO).reason(), "Input/output error");
    }

    /// Half of what networks say when the storage is away was `failed`.
    #[test]
    fn each_errno_has_one_cause() {
        let of = |kind| (1..4096).filter(move |&errno| ErrorKind::of_errno(errno) == kind);
        assert_eq!(
            of(ErrorKind::Corrupt).count(),
            0,
            "an image says it, no errno"
        );
        assert_eq!(ErrorKind::Corrupt.name(), "corrupt");
        for (kind, name, expected) in [
            (ErrorKind::NoSpace, "nospace", &[28, 122][..]),
            (
                // ENXIO ENODEV EPIPE ENOLINK ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOTCONN
                // ESHUTDOWN ECONNREFUSED EHOSTDOWN EHOSTUNREACH ESTALE
                ErrorKind::BackingGone,
                "backing-gone",
                &[
                    6, 19, 32, 67, 100, 101, 103, 104, 107, 108, 111, 112, 113, 116,
                ],
            ),
            // ETIME ETIMEDOUT
            (ErrorKind::Timeout, "timeout", &[62, 110]),
            // EPERM EACCES EROFS EBADE
            (ErrorKind::Permission, "permission", &[1, 13, 30, 52]),
            // ENODATA EBADMSG EILSEQ EREMOTEIO
            (ErrorKind::Media, "media", &[61, 74, 84, 121]),
            // ENOTTY ENOSYS EOPNOTSUPP
            (ErrorKind::Unsupported, "unsupported", &[25, 38, 95]),
            (ErrorKind::Invalid, "invalid", &[22]),
        ] {
            assert!(of(kind).eq(expected.iter().copied()), "{kind:?}");
            assert_eq!(kind.name(), name);
        }
        assert_eq!(of(ErrorKind::Failed).count(), 4095 - 30);
        assert_eq!(ErrorKind::Failed.name(), "failed");
    }
}
