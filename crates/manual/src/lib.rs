//! Manual pages, shell completions and the reference of QMP. Nothing here knows an option, a command or a member:
//! they come from the clap descriptions by which the programs parse ([`programs`]), and from the types by which
//! the daemon does ([`schema`]).
//!
//! `cargo xtask dist` writes all of it.

pub mod completions;
pub mod pages;
pub mod programs;
pub mod reference;
pub mod schema;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Where, below `share`.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// Everything there is to install.
///
/// # Errors
/// If a type has no schema, or something is not text: bugs, both.
pub fn all() -> Result<Vec<Made>> {
    let mut files = pages::all()?;
    files.extend(completions::all()?);
    Ok(files)
}

/// Writes files below a directory.
///
/// # Errors
/// If one cannot be written.
pub fn write(directory: &Path, files: &[Made]) -> Result<()> {
    for Made { path, text } in files {
        let path = directory.join(path);
        let shown = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(shown)?;
        }
        fs::write(&path, text).with_context(shown)?;
    }
    Ok(())
}
