//! The configuration: a TOML file, taken whole or not at all.

mod check;
mod error;
mod file;
mod machines;
mod raw;
mod units;
mod wishes;

pub use check::in_words;
pub use error::ConfigError;
pub use file::{Config, JOURNAL, RUNTIME_DIRECTORY};
pub use machines::Section;

#[cfg(test)]
mod tests;
