//! What a storage driver sees: nodes and the trait that makes them, the memory that requests move and
//! the future of an operation, locks on ranges, the graph of names, who uses what, what a driver has
//! lost, how a driver waits, what is told when much is written or an image is corrupt, and what only some drivers
//! can do.

pub mod beside;
pub mod buffers;
pub mod capabilities;
pub mod closing;
pub mod corruption;
pub mod fault;
pub mod format_info;
pub mod future;
pub mod graph;
pub mod growth;
pub mod io;
pub mod limits;
pub mod lines;
pub mod loss;
pub mod node;
pub mod own_io;
pub mod owned;
pub mod park;
pub mod range_lock;
pub mod sharing;
pub mod status;
pub mod threads;
pub mod threshold;
pub mod users;
