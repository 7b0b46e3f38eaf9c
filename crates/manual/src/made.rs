//! A file to be installed.

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
