//! The run state.

/// The run state (QEMU's `RunState`, as far as a daemon has it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RunState {
    /// Requests are executed.
    #[default]
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped by an error of a backend whose hold scope is `vm`.
    IoError,
    /// The daemon ends.
    Shutdown,
}

impl RunState {
    /// QEMU's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Shutdown => "shutdown",
        }
    }
}
