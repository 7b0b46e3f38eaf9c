//! Block drivers: what the nodes of the block graph are made of.
//!
//! * [`file`](mod@file): regular files and (as `host_device`) block devices, through io_uring.
//! * [`null`]: `null-co`, a disk of no storage.
//! * [`quota`]: a filter that limits how many bytes its child allocates, as a thin volume would.
//! * [`blkdebug`]: a filter that injects errors by a [plan](block::FaultPlan).
//!
//! A driver is made by its constructor from a plain option struct; nothing registers itself.
//!
//! Memory is moved by safe code: what a driver does with [buffers](block::Buffers) needs no `unsafe`, and
//! only the leaf that gives them to the kernel has some.

#![deny(unsafe_code)]

pub mod blkdebug;
pub mod file;
mod leaf;
pub mod null;
mod open_error;
pub mod quota;

pub use blkdebug::{Blkdebug, BlkdebugOptions};
pub use file::{FileDriver, FileOptions};
pub use null::{NullCo, NullOptions};
pub use open_error::OpenError;
pub use quota::{Quota, QuotaOptions};
