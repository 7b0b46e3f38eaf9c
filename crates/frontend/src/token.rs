//! The name of a submitted request.

/// Names one submitted request; unique for the life of a [`crate::Disk`], reconnects included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);
