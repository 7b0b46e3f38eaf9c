//! The block layer: requests, error policy, I/O status, held requests, run control.
//!
//! An export talks to a [`Backend`]. Its part on an iothread, [`LocalBackend`], executes requests
//! on a [`Node`] and asks its [`gate::Gate`] what becomes of each; [`run_control::RunControl`] owns
//! everything that concerns more than one iothread.
//!
//! The rooms, each of which knows only those before it:
//!
//! * [`words`]: plain data and pure functions: requests, errors, policy, I/O status, incidents, events;
//! * [`driver`]: what a storage driver sees: nodes, buffers, futures;
//! * [`gate`]: pure: what may start, what waits, what is held;
//! * [`persist`]: what survives a restart;
//! * [`mod@control`]: run control, which is pure, and the task that runs it;
//! * [`backend`], and [`local`]: its part on an iothread, which runs a gate;
//! * [`export`] and [`registry`], on top: what exports have in common; everything that has a name.

pub mod backend;
pub mod control;
pub mod driver;
pub mod export;
pub mod gate;
pub mod jobs;
pub mod local;
pub mod persist;
pub mod registry;
mod registry_error;
mod resize;
pub mod words;

pub use backend::connection::Connection;
pub use backend::{Backend, Drained};
pub use control::accounting::histogram::{Boundaries, Histogram};
pub use control::accounting::interval::Latencies;
pub use control::accounting::observed::{HistogramKind, IntervalStats};
pub use control::accounting::{Accounted, AccountingOptions};
pub use control::listeners::{Observer, VmLink};
pub use control::run_control;
pub use control::run_control::Refusal;
pub use control::task::{Control, ControlTask, control};
pub use control::wiring::Wiring;
pub use driver::beside::{OneBeside, beside, drop_beside};
pub use driver::buffers::{Buffers, Joined};
pub use driver::capabilities::{
    Activate, AllocationLimit, Capabilities, ContBlocker, Copies, DiscardCounters, DiscardStats,
    FlushLatch, Grow, Identify, ImageId, ImageLocks, LockError, OwnIo, PerThread, Reopen, Resize,
    Unwritten,
};
pub use driver::closing::Closing;
pub use driver::corruption::{Corruption, CorruptionReport};
pub use driver::fault;
pub use driver::fault::FaultPlan;
pub use driver::format_info::{CacheUse, FormatInfo, Qcow2Bitmap, Qcow2Info, Qcow2Snapshot};
pub use driver::future::{BoxFuture, IoFuture};
pub use driver::graph::{Graph, GraphError};
pub use driver::io::Io;
pub use driver::limits::{DetectZeroes, Limits, NodeEngine, NodeInfo};
pub use driver::loss::Loss;
pub use driver::node::chain::{BACKING, DATA_FILE};
pub use driver::node::{Child, Driver, GuestFault, Node};
pub use driver::own_io::{NotOnDisk, WRITE_BACK_MAX};
pub use driver::owned::OwnedBuffer;
pub use driver::range_lock;
pub use driver::sharing::{Conflict, SharingError, rules};
pub use driver::status::{EXTENTS_MAX, Extent, Origin, Stored};
pub use driver::threads::{Attachment, ThreadState};
pub use driver::threshold::{Exceeded, WriteThreshold};
pub use driver::users::{EdgeId, Use, User};
pub use export::Export;
pub use gate::ClientError;
pub use gate::overlap;
pub use local::{Client, LocalBackend, Unmapped};
pub use persist::changes::{Changes, Saved};
pub use persist::mapped_file::MappedFile;
pub use persist::saved::{SavedBackend, SavedLoss, SavedState};
pub use persist::saver::Saver;
pub use persist::state_file;
pub use persist::state_file::{StateFile, StateFileError};
pub use registry::{
    Lease, Openings, Overlaid, Registry, Replacement, check_base, check_overlay, uppermost,
};
pub use registry_error::{RegistryError, ResizeError};
pub use words::error::{BlockError, Cause, ErrorKind, Result, strerror};
pub use words::error_policy::{Action, Direction, OnError, Policy};
pub use words::event;
pub use words::event::{BlockImageCorrupted, BlockIoError, Event, EventKind};
pub use words::hold_scope::HoldScope;
pub use words::ids::{BackendId, ConnectionId, LocalId};
pub use words::image::Image;
pub use words::incident::{EndedIncident, ErrorRecord, HeldRecord, HoldEnd, Incident};
pub use words::io_status::{IoStatus, Status};
pub use words::permissions::{Access, Permissions};
pub use words::request::{Operation, Request, Tag};
pub use words::run_state::RunState;
pub use words::stats::{BackendStats, ClassStats};
pub use words::vm::{LinkState, LinkStatus, VmOrder, VmPause, VmPending, VmState};
pub use words::write_cache::WriteCache;
