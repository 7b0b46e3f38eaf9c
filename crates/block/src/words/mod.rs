//! The words that everything else speaks: plain data and pure functions, which know nothing of the rest
//! of the crate.

pub mod error;
pub mod error_policy;
pub mod event;
pub mod hold_scope;
pub mod ids;
pub mod image;
pub mod incident;
pub mod io_status;
pub mod job;
pub mod permissions;
pub mod request;
pub mod run_state;
pub mod stats;
pub mod vm;
pub mod write_cache;
