//! The block layer: requests, error policy, I/O status, held requests, run control.

pub mod error;
pub mod error_policy;
pub mod event;
pub mod fault;
pub mod future;
pub mod io_status;
pub mod node;
pub mod request;

pub use error::{BlockError, Cause, ErrorKind, Result};
pub use error_policy::{Action, Direction, OnError, Policy};
pub use event::{BlockIoError, Event, EventKind, Observer};
pub use fault::FaultPlan;
pub use future::IoFuture;
pub use io_status::{IoStatus, Status};
pub use node::{DiscardStats, Driver, GuestFault, Limits, Node, NodeInfo};
pub use request::{Io, Operation, Request, Tag};
