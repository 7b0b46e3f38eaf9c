//! The commands, by what they are about. Each is an async function from the context and its arguments
//! to its result.

pub(crate) mod block;
pub(crate) mod chardev;
pub(crate) mod debug;
pub(crate) mod descriptor;
pub(crate) mod graph;
pub(crate) mod job;
pub(crate) mod misc;
pub(crate) mod object;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod transaction;
