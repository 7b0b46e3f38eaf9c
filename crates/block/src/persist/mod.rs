//! What survives a restart: its form, its file, and the thread that writes it.

pub mod changes;
pub mod saved;
pub mod saver;
pub mod state_file;
