//! The QMP server and HMP text.
//!
//! A [`Monitor`] serves QMP sessions: on unix sockets, on standard input and output, or on any
//! pair of streams. Each client has a session of its own: its own negotiation, its own output
//! queue, its own command under way. A command that takes long delays only the session it was sent
//! in. A client that leaves takes its session with it, whatever is under way: queries are given up,
//! changes go on alone ([`changes`]). No query waits for storage longer than a moment ([`storage`]).
//!
//! Events are delivered by run control into the output queues of all sessions that have
//! negotiated; that never waits. Replies go into the same queue. So a client that has seen an event
//! and then asks gets an answer that is no older than the event. A client that does not read is
//! disconnected when [`OUTPUT_BYTES_MAX`] wait for it.
//!
//! Sessions and the run control task belong on the same current-thread runtime: then nothing comes
//! between what a query reads and the reply that says it.

pub mod base64;
mod changes;
mod chardevs;
mod commands;
mod context;
mod convert;
mod counters;
mod descriptors;
mod door;
mod framing;
mod graph;
mod hmp;
mod hub;
mod image;
mod objects;
mod outbox;
mod server;
mod session;
mod storage;
mod table;

pub use chardevs::{ChardevObject, Chardevs};
pub use descriptors::{Descriptors, fdset_of};
pub use door::{Connection, Door, Input, Other, UnixInput};
pub use framing::{Framing, requests};
pub use graph::Graph;
pub use objects::Objects;
pub use outbox::OUTPUT_BYTES_MAX;
pub use server::{Monitor, SESSIONS_MAX};
pub use table::schema;

#[cfg(test)]
mod tests;
