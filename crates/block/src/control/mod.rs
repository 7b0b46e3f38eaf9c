//! Run control: a pure state machine, and the task that runs it.

pub mod accounting;
mod alarm;
pub mod inbox;
pub mod listeners;
pub mod reports;
pub mod run_control;
pub mod task;
pub mod wiring;
