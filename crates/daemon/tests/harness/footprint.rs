//! What a daemon takes of the machine.

use anyhow::{Context, Result};

/// What a process has of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Its own memory, without what it has seen of the client's.
    pub resident_kib: u64,
    pub descriptors: usize,
}

impl Footprint {
    pub fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("no RssAnon")?;
        Ok(Self {
            resident_kib: resident.trim().parse()?,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }
}
