//! A vhost-user-blk front end: what a VMM does, as a library.
//!
//! A [`Disk`] is one connected device. It owns the guest memory (memfd regions), the driver side of
//! the split virtqueues and the vhost-user connection, and does with them what a guest together with
//! its VMM does: negotiate, submit, kick, wait, stop and start the VM, reset the device, reconnect.
//! Everything is synchronous and single-threaded; a `Disk` can be moved to another thread.
//!
//! The device is not trusted. Whatever it does that a correct device never does is recorded as a
//! [`Violation`], to be read with [`Disk::violations`]; it is never a panic.
//!
//! Layers, lowest first; each knows only those before it:
//!
//! - [`protocol`]: numbers of the wire format;
//! - [`connection`]: messages over the socket, every reply bounded in time;
//! - [`memory`]: guest memory, the only module with unsafe code, and its allocator;
//! - [`ring`]: the driver side of a split virtqueue;
//! - [`inflight`]: the inflight region, kept for the device and readable by tests;
//! - [`request`]: requests and how they become descriptors;
//! - `queue`: what is outstanding on a ring;
//! - `event`: the descriptors of kicks, calls and errors;
//! - `session`: negotiation, by `options`;
//! - [`disk`]: the device as a whole, and `wait`, its waiting for completions;
//! - [`lane`]: a queue without the watching, for load.

pub mod connection;
pub mod disk;
mod error;
mod event;
mod heap;
pub mod inflight;
pub mod lane;
pub mod memory;
mod options;
pub mod protocol;
mod queue;
pub mod request;
pub mod ring;
mod session;
mod token;
mod wait;

pub use connection::Connection;
pub use disk::{Disk, DiskState};
pub use error::{FrontendError, SubmitError, Violation};
pub use inflight::{InflightRegion, Marked};
pub use lane::{Lane, LaneOptions};
pub use memory::GuestMemory;
pub use options::Options;
pub use protocol::BlkConfig;
pub use request::{Completion, RawChain, RawDescriptor, Request, Segment, Shape};
pub use ring::Ring;
pub use token::Token;
