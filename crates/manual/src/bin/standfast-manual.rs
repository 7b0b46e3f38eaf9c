//! Writes manual pages and shell completions below a directory, and brings the documentation up to the types;
//! `cargo xtask dist` runs it.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use standfast_manual::{all, reference, write};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), document) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: standfast-manual DIRECTORY [DOCUMENT]");
        return ExitCode::from(2);
    };
    match run(Path::new(&directory), document.as_deref().map(Path::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path, document: Option<&Path>) -> Result<()> {
    let files = all()?;
    write(directory, &files)?;
    for file in &files {
        println!("{}", directory.join(&file.path).display());
    }
    if let Some(document) = document {
        let shown = || document.display().to_string();
        let text = fs::read_to_string(document).with_context(shown)?;
        fs::write(document, reference::with_types(&text)?).with_context(shown)?;
    }
    Ok(())
}
