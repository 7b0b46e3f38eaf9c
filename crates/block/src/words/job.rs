//! Where jobs are.

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// Made, and not begun.
    Created,
    /// At work.
    Running,
    /// Its work is done; others that belong to it may not be.
    Waiting,
    /// What it did takes effect.
    Pending,
    /// It has failed or was cancelled, and tidies up.
    Aborting,
    /// At its end; its result can be asked for until it is dismissed.
    Concluded,
    /// Dismissed: it does not exist any more.
    Null,
}

impl JobStatus {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            JobStatus::Created => "created",
            JobStatus::Running => "running",
            JobStatus::Waiting => "waiting",
            JobStatus::Pending => "pending",
            JobStatus::Aborting => "aborting",
            JobStatus::Concluded => "concluded",
            JobStatus::Null => "null",
        }
    }
}
