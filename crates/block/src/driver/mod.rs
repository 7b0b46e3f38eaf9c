//! What a storage driver sees: nodes and the trait that makes them, the future of an operation, the
//! graph of names, who uses what, what a driver has lost, and what only some drivers can do.

pub mod capabilities;
pub mod fault;
pub mod future;
pub mod graph;
pub mod io;
pub mod loss;
pub mod node;
pub mod users;
