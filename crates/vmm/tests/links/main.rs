//! Links to servers that behave as the VMMs' published interfaces say, and as no VMM should.

#![allow(clippy::panic, reason = "a failed test")]

mod api;
mod command;
mod harness;
mod http;
mod qemu;
