//! A load on daemons that are killed: until then, and what the dead one has left.

use std::time::{Duration, Instant};

use anyhow::Result;
use frontend::{Disk, FrontendError};

use crate::workload::Driver;

impl Driver {
    /// Goes on until the time is over, and ends with requests in flight, as far as any are planned: a client that checks more slowly
    /// than the daemon serves would otherwise leave nothing for what comes next to hit. What is held stays so.
    ///
    /// # Errors
    /// As [`Driver::fill`] and [`Driver::reap_within`].
    pub fn go_on_for(&mut self, disk: &mut Disk, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.fill(disk)?;
            self.reap_within(disk, Duration::from_millis(1))?;
        }
        self.fill(disk)
    }

    /// Takes what a dead daemon has completed. Each completion is seen in the ring before it is seen that the connection is closed.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn reap_rest(&mut self, disk: &mut Disk) -> Result<()> {
        loop {
            match self.reap_within(disk, Duration::ZERO) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.downcast_ref() {
                    Some(FrontendError::Closed { .. }) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }
}
