//! The vhost-user-blk export: a disk as a class of device of the crate `vhost-user`.
//!
//! - [`request`], `format`: from a descriptor chain to what is to be done, pure and total;
//! - `part`: the data plane, on an iothread; what the block layer sees as its client;
//! - `config`, `topology`, `write_cache`: what a client is told of the disk, and what its guest believes;
//! - `disk`, `cache`: the control plane, on the thread that talks with the client;
//! - [`export`]: the whole, as the registry sees it.

mod cache;
mod config;
mod disk;
pub mod export;
mod format;
mod options;
mod part;
pub mod request;
mod topology;
mod write_cache;

pub use export::{ExportError, VhostUserBlkExport};
pub use options::{OptionError, Options, QUEUE_SIZE_MAX, QUEUES_MAX};
pub use vhost_user::Closed;
