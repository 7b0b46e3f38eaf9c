//! Helpers of the tests: daemons as processes, QMP clients, tmpfs, loop devices, a request checker.
//!
//! Everything here cleans up when it is dropped, also when a test panics: processes are killed by
//! their pid, file systems unmounted, loop devices detached, directories removed. Helpers that mount
//! or attach need root.

pub mod checker;
mod command;
pub mod cut;
pub mod daemon;
pub mod engine;
pub mod errors;
pub mod events;
pub mod fuse;
pub mod guest;
mod killed;
pub mod loop_device;
pub mod model;
pub mod mount;
pub mod pattern;
pub mod place;
pub mod qcow2_image;
pub mod qmp;
pub mod rng;
pub mod seccomp;
pub mod soak;
pub mod workload;

pub use checker::{Checker, CheckerFault, Operation, Summary};
pub use daemon::Daemon;
pub use events::{Event, EventLog, LogEntry};
pub use fuse::{FuseCall, FuseFailure, FuseFile, FuseOp};
pub use guest::{Guest, VhostUserBlk, VirtioBlk};
pub use loop_device::LoopDevice;
pub use mount::{Ext4, Tmpfs};
pub use pattern::{Content, Pattern, PatternFault, Stamp};
pub use place::Place;
pub use qmp::{Qmp, QmpError};
pub use rng::Rng;
pub use soak::{lives, rounds, soak};
pub use workload::{Driver, Mix, Workload, wait_until};
