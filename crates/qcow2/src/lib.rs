//! qcow2: images that grow as they are written.
//!
//! * [`format`](mod@format): what the bytes of an image mean. Pure: no I/O, nothing that could wait.

#![forbid(unsafe_code)]

pub mod format;
