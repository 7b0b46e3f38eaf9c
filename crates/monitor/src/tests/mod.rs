//! Whole sessions, over socket pairs, on a registry with run control and drivers that do no I/O.

mod chardevs;
mod counters;
mod daemon;
mod descriptors;
mod graph;
mod link;
mod protocol;
mod queries;
mod schema;
mod vm;
