//! `standfast watch`: the management application.
//!
//! Storage that runs full stops a machine ([`standfastd`] holds what failed; QEMU does so itself with
//! `werror=enospc` or `stop`). Somebody must listen, make room and continue it; that is done here, for
//! any number of machines, over their QMP sockets.
//!
//! * [`core`] decides. It is pure: what is seen goes in, what is to be done comes out, time and chance are
//!   told. Tables, properties and a model test it.
//! * [`config`], [`settings`], [`pattern`]: what is wanted.
//! * `shell` does what was decided: connections, programs, measuring, telling.
//! * [`history`] reads back what was told.
//!
//! [`standfastd`]: https://github.com/standfast/standfast

pub mod config;
pub mod core;
pub mod history;
pub mod pattern;
pub mod settings;
mod shell;

pub use shell::{Options, StatusError, WatchError, ask_status, run, sockets_of};
