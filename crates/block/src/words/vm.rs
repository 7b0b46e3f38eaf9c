//! What is said of the VM: by run control, which wants something of it, and by the link to its VMM.

/// What run control wants of the VM. Orders come in the order of run control's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmOrder {
    /// The run state left `running`.
    Pause,
    /// `cont` was applied, whether or not the run state changed.
    Resume {
        /// Resume a VM that somebody else had paused, too.
        force: bool,
    },
}

/// Who has paused the VM, as far as the link knows. Saved, so that the next daemon's `cont` resumes
/// what this daemon's link has paused, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmPause {
    /// Nobody, or the link has not found out yet.
    #[default]
    Nobody,
    /// The link.
    Link,
    /// Somebody else, before the link could: an administrator.
    Other,
}

impl VmPause {
    /// Its name in queries and in the saved state.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Link => "link",
            Self::Other => "other",
        }
    }
}

/// Whether the link reaches the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// It has not reached it yet.
    #[default]
    Connecting,
    /// The last attempt succeeded.
    Connected,
    /// The last attempt failed; it tries again.
    Down,
}

impl LinkState {
    /// Its name in queries and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Down => "down",
        }
    }
}

/// The VM's own state, as the VMM said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmState {
    /// Not asked yet, or the VMM cannot be asked.
    #[default]
    Unknown,
    /// Its virtual CPUs run.
    Running,
    /// They do not.
    Paused,
    /// There is none: not booted yet, or shut down.
    Absent,
}

impl VmState {
    /// Its name in queries and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Absent => "absent",
        }
    }
}

/// What the link still has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmPending {
    /// The VM is to be paused.
    Pause,
    /// The VM is to be resumed.
    Resume,
}

impl VmPending {
    /// Its name in queries and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// What is known of a link and its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// Whether the VMM is reached.
    pub state: LinkState,
    /// The VM's state.
    pub vm: VmState,
    /// What has not been done yet.
    pub pending: Option<VmPending>,
    /// Who has paused the VM.
    pub paused_by: VmPause,
    /// What went wrong last, while it is wrong: names the peer and the remedy.
    pub error: Option<String>,
}
