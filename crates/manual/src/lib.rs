//! Manual pages, shell completions and the reference of QMP. Nothing here knows an option, a command or a member:
//! they come from the clap descriptions by which the programs parse ([`programs`]), and from the types by which
//! the daemon does ([`schema`]).
//!
//! `cargo xtask dist` writes all of it.

pub mod completions;
pub mod made;
pub mod pages;
pub mod programs;
pub mod reference;
pub mod schema;

use anyhow::Result;

pub use made::{Made, write};

/// Everything there is to install.
///
/// # Errors
/// If a type has no schema, or something is not text: bugs, both.
pub fn all() -> Result<Vec<Made>> {
    let mut files = pages::all()?;
    files.extend(completions::all()?);
    Ok(files)
}
