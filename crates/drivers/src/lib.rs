//! Block drivers: what the nodes of the block graph are made of.
//!
//! * [`file`](mod@file): regular files and (as `host_device`) block devices, through io_uring.
//! * [`null`]: `null-co` and `null-aio`, disks of no storage.
//! * [`raw`]: the format of an image that has none, or of a window of it.
//! * [`throttle`](mod@throttle): a filter that limits how much is done in a second, of all nodes of a group together.
//! * [`copy_on_read`]: a filter that keeps what is read from behind its child.
//! * [`quota`]: a filter that limits how many bytes its child allocates, as a thin volume would.
//! * [`blkdebug`]: a filter that injects errors by a [plan](block::FaultPlan).
//!
//! What every driver can be asked for is put around it: [`DetectingZeroes`].
//!
//! A driver is made by its constructor from a plain option struct; nothing registers itself.
//!
//! Memory is moved by safe code: what a driver does with [buffers](block::Buffers) needs no `unsafe`, and
//! only the leaf that gives them to the kernel has some.

#![deny(unsafe_code)]

pub mod blkdebug;
pub mod copy_on_read;
mod detect_zeroes;
pub mod file;
mod leaf;
pub mod null;
mod open_error;
pub mod pseudo_filename;
pub mod quota;
pub mod raw;
pub mod stored_name;
pub mod throttle;

pub use blkdebug::{Blkdebug, BlkdebugOptions};
pub use copy_on_read::{CopyOnRead, CopyOnReadOptions};
pub use detect_zeroes::DetectingZeroes;
pub use file::{FileDriver, FileOptions};
pub use null::{NullCo, NullOptions};
pub use open_error::OpenError;
pub use quota::{Quota, QuotaOptions};
pub use raw::{Raw, RawOptions};
pub use throttle::{Throttle, ThrottleGroup, ThrottleOptions};
