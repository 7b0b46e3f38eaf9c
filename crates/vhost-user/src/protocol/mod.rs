//! The vhost-user protocol: bytes and descriptors on one side, typed messages on the other.
//!
//! An own codec, and not the crate `vhost`: that one keeps the back channel to itself, so a resize
//! could not be announced; it refuses messages whose protocol features were negotiated on a former
//! connection, which is what QEMU 7.2 sends when the daemon is replaced under a stopped VM; and it
//! answers messages it does not know by ending the connection without a word. What is left of it
//! when these are solved is a header of twelve bytes.
//!
//! - [`code`], [`message`]: what there is to say;
//! - [`mod@decode`], [`answer`]: pure; total on whatever a client sends, and nothing is allocated by its
//!   word;
//! - `socket`: whole messages with their descriptors, from and to a stream;
//! - `back_channel`: what the device says unasked.

pub mod answer;
pub(crate) mod back_channel;
pub mod code;
pub mod decode;
pub mod message;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
