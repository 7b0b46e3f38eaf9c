//! vhost-user, the transport: a virtio device for a virtual machine in another process.
//!
//! Everything that is the same for all classes of devices is here: messages, memory that is shared with
//! the client, rings, what is in flight, and how a client comes and goes. What a class adds is behind
//! three traits, [`Format`], [`Part`] and [`Class`]; [`Served`] is the whole.
//!
//! Layers, lowest first:
//!
//! - `sigbus`, `shared`, `memory`, `view`, `populate`: memory shared with the client; the only modules
//!   with unsafe code, but for the lock of `witness`;
//! - `buffer`, [`chain`], `record`: from descriptors to buffers, pure and total;
//! - `ring`, `inflight`, `trailer`: what both sides write to each other;
//! - `class`: the seam to the classes of devices;
//! - `queue`, `device`: the data plane, on an iothread;
//! - `descriptor`: what kind of descriptor a client has sent;
//! - [`protocol`]: messages, as bytes and as what they mean;
//! - [`space`]: the configuration space, as it is asked for;
//! - `door`: who may be the client;
//! - `session`, `server`: what becomes of them, on a thread of its own per device, which blocks on
//!   its client; it tells the data plane what to do and waits only for what ends by itself;
//! - `served`: the whole.

mod buffer;
pub mod chain;
mod class;
mod descriptor;
mod device;
mod door;
mod features;
mod inflight;
mod labelled;
mod memory;
mod populate;
pub mod protocol;
mod queue;
mod record;
mod ring;
mod served;
mod server;
mod session;
mod shared;
mod sigbus;
pub mod space;
mod trailer;
mod trouble;
mod unclaimed;
mod view;
mod witness;

/// A queue whose guest writes what it likes, for the fuzz target `vring`.
#[cfg(fuzzing)]
pub use queue::hostile::run as fuzz_vring;

pub use buffer::{Buffer, total};
pub use class::{Class, Closed, Format, Guest, Part, Requests, Shape, Unmapped};
pub use device::DeviceHandle;
pub use inflight::RegionSpec as InflightSpec;
pub use memory::{NotMapped, RegionSpec};
pub use populate::Access;
pub use record::{FRONT_BYTES, Record, Totals};
pub use served::{ServeError, Served};
pub use view::View;
