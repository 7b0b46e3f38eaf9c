//! What is decided: without I/O, locks or clocks. Time is told, chance is told.

pub mod backoff;
pub mod early;
pub mod headroom;
pub mod incident;
pub mod ledger;
pub mod lvm;
pub mod machine;
pub mod notice;
pub mod record;
pub mod room;
pub mod view;
pub mod zfs;

#[cfg(test)]
mod tests;
