//! A QMP client, for Standfast's own monitor and for those of QEMU (7.2 to 10) and
//! qemu-storage-daemon.
//!
//! Three layers, each usable without the next:
//!
//! * [`Wire`]: JSON values over any stream that tokio can read and write (a Unix socket, the two
//!   pipes of a child process). No value and nothing that waits grows beyond its limit.
//! * [`Connection`]: greeting, negotiation, commands with their ids. One owner takes events and
//!   answers in the order in which they came; several commands may be under way.
//! * [`Client`] and [`Events`]: the same for many owners. A [`driver`](start) that the caller spawns
//!   moves the messages.
//!
//! What a server says that this client does not know (events, members, commands) goes to the caller
//! as it is. What is no QMP ends the connection: nothing that follows could be trusted.
//!
//! **No event is lost in silence.** Events that nobody takes wait, up to [`EVENTS_BYTES_MAX`]; then
//! the connection ends, and [`Events`] says so behind the last event that had room. Whoever must not
//! miss a STOP connects again and asks for the state, as after any other end.
//!
//! **All that waits can be dropped.** A future of this crate that is dropped loses no message; a
//! command that was sent may be carried out all the same, and its late answer is not taken for
//! another one.
//!
//! # Why not the crate `qapi`
//!
//! `qapi` 0.15 has types for every command and event of QEMU's schema, which a build script makes of a
//! copy of the schema. They are closed: an event that they do not know, such as our `X_VMM_LINK`, is an
//! error. Its lines have no longest length. It sends ids only where the server offers `oob`, which
//! Standfast does not; else one command is under way at a time. A late answer that nobody waits for any
//! more ends its connection. Without its types, what would be left of it is less than what is here.

mod client;
mod connection;
mod dial;
mod error;
mod events;
mod limits;
mod message;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{Client, start};
pub use connection::{Answer, Connection, Incoming};
pub use dial::connect_unix;
pub use error::{ClientError, ProtocolError};
pub use events::Events;
pub use limits::{ANSWER_LIMITS, COMMANDS_MAX, EVENTS_BYTES_MAX, GREETING_TIMEOUT};
pub use message::{Event, Message};
pub use wire::Wire;
