//! `standfast`, the operator's tool, and its demo.

pub mod demo;
pub mod tool;
