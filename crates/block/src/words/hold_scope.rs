//! What a *stop* error freezes.

/// What a *stop* error freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HoldScope {
    /// All exports; the run state becomes `io-error`.
    #[default]
    Vm,
    /// This export only.
    Device,
    /// Nothing: only what failed waits, and what would overwrite it.
    Request,
}

impl HoldScope {
    /// The word of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Device => "device",
            Self::Request => "request",
        }
    }
}
