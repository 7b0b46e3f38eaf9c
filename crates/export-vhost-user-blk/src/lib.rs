//! The vhost-user-blk export.
//!
//! Layers, lowest first:
//!
//! - `sigbus`, `shared`, `memory`, `view`: memory shared with the client; the only modules with
//!   unsafe code;
//! - `buffer`, `chain`, `record`, [`request`]: from descriptors to what is to be done, pure and total;
//! - `ring`, `inflight`, `trailer`: what both sides write to each other;
//! - `queue`, `device`: the data plane, on an iothread; what the block layer sees as its client;
//! - `descriptor`: what kind of descriptor a client has sent;
//! - [`protocol`]: vhost-user messages, as bytes and as what they mean;
//! - `door`: who may be the client;
//! - `session`, `server`: what becomes of them, on a thread of its own per export, which blocks on
//!   its client; it tells the data plane what to do and waits only for what ends by itself;
//! - [`export`]: the whole.

mod buffer;
mod cache;
mod chain;
mod class;
mod config;
mod descriptor;
mod device;
mod disk;
mod door;
pub mod export;
mod features;
mod inflight;
mod memory;
mod options;
mod part;
mod populate;
pub mod protocol;
mod queue;
mod record;
pub mod request;
mod ring;
mod served;
mod server;
mod session;
mod shared;
mod sigbus;
mod topology;
mod trailer;
mod trouble;
mod unclaimed;
mod view;
mod witness;
mod write_cache;

/// A queue whose guest writes what it likes, for the fuzz target `vring`.
#[cfg(fuzzing)]
pub use queue::hostile::run as fuzz_vring;

pub use class::Closed;
pub use export::{ExportError, VhostUserBlkExport};
pub use options::{OptionError, Options, QUEUE_SIZE_MAX, QUEUES_MAX};
