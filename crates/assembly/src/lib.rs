//! The one place that makes and unmakes what a daemon consists of: objects, nodes, exports. Both the
//! command line and QMP use it, and its errors are in QEMU's words.

mod access;
mod adding;
mod assembly;
mod blocking;
mod closing;
mod create;
mod definitions;
mod error_defaults;
mod exports;
mod fdset;
mod iothreads;
mod links;
mod lock_wait;
mod node_base;
mod nodes;
mod objects;
mod opening;
mod properties;
mod qcow2_node;
mod qom;
mod reopen;
mod secret;
mod setup_error;
mod snapshot;
mod socket;
mod throttle;
mod tree;
mod unmake;

pub use assembly::Assembly;
pub use blocking::{beside, tidy_up};
pub use closing::CLOSE_TIME_MAX;
pub use lock_wait::{LOCK_WAIT, wait_for_lock};
pub use opening::{OPEN_TIME_MAX, SNAPSHOT_TIME_MAX, TimeLimits};
pub use setup_error::SetupError;
pub use socket::{abstract_path, bind_abstract, bind_listener};
pub use unmake::Settled;
