//! What the two binaries are made of: `standfastd`, the daemon, and `standfast`, the operator's
//! tool. Wiring and command lines, nothing else; the work is done in the crates below.

pub mod daemon;
pub mod demo;
pub mod tool;
