//! Does what was decided: the only part that knows files, sockets, programs and clocks.

mod beside;
mod context;
mod control;
mod desk;
mod figures;
mod fleet;
mod link;
mod lock;
mod measure;
mod pairs;
mod program;
mod service;
mod session;
mod shows;
mod sockets;
mod teller;
mod volumes;
mod watcher;

pub use control::{StatusError, ask_status};
pub use watcher::{Options, WatchError, run, sockets_of};
