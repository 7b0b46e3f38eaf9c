//! What the tests on real threads share: run control, and a client that has no memory.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::cell::Cell;
use std::thread::JoinHandle;

use pollster::block_on;
use standfast_block::{Client, ClientError, Control, Request, Unmapped, control};

/// Run control on a thread of its own, which ends when nobody has the first of them any more.
pub fn start_control() -> (Control, JoinHandle<()>) {
    let (control, task) = control();
    (control, std::thread::spawn(|| block_on(task.run())))
}

/// Counts what has been done for it.
#[derive(Default)]
pub struct Guest {
    pub completed: Cell<u64>,
}

impl Client for Guest {
    fn map(&self, _: &Request, _: &mut Vec<libc::iovec>) -> Result<(), Unmapped> {
        Ok(())
    }
    fn unmap(&self, _: &Request) {}
    fn has_lost(&self, _: &Request, _: &[libc::iovec]) -> bool {
        false
    }
    fn complete(&self, _: &Request, result: Result<(), ClientError>) {
        if result.is_ok() {
            self.completed.set(self.completed.get() + 1);
        }
    }
    fn dropped(&self, _: &Request) {}
    fn resume(&self) {}
}
