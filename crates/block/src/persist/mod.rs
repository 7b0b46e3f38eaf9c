//! What survives a restart: its content, its form, its file, and the thread that writes it.

pub mod changes;
pub mod json;
pub mod mapped_file;
pub mod saved;
pub mod saver;
pub mod state_file;
