//! qcow2: images that grow as they are written.
//!
//! * [`format`](mod@format): what the bytes of an image mean. Pure: no I/O, nothing that could wait.
//! * [`driver`]: the node of the block graph.
//! * [`create`](mod@create): new images, on nodes.
//! * [`check`](mod@check): a strict check of all of an image, and its repair; [`info`], [`map`]: what an image is, and what is where in
//!   it. They read by [`ReadAt`], synchronously, and do no I/O of their own.

#![forbid(unsafe_code)]

pub mod check;
pub mod create;
pub mod driver;
pub mod format;
pub mod image;
pub mod info;
pub mod map;
mod storage;

pub use create::CreateOptions;
pub use driver::{
    Backing, BackingName, CacheSizes, DataName, Discards, Metadata, Names, OverlapCheck, Qcow2,
    Qcow2Options, names_of,
};
pub use image::{Image, OpenError};
pub use storage::{ReadAt, WriteAt};
