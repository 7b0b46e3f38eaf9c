//! `cargo xtask dist`: what is installed beside the programs.

use crate::metadata::Metadata;
use crate::run::{cargo, root, run};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prefix below which `share` is made. Default: target/dist
    directory: Option<PathBuf>,
    /// Bring docs/qmp.md up to the types, too
    #[arg(long)]
    bless_docs: bool,
}

/// Where the types are told of.
const DOCUMENT: &str = "docs/qmp.md";

/// Runs the command.
pub fn main(args: &Args) -> Result<ExitCode> {
    let directory = match &args.directory {
        // cargo runs it elsewhere.
        Some(directory) => std::path::absolute(directory)?,
        None => Metadata::of(Path::new("Cargo.toml"))?
            .target_directory
            .join("dist"),
    };
    let mut command = cargo(["run", "--quiet", "--package", "standfast-manual", "--"]);
    command.arg(directory.join("share"));
    if args.bless_docs {
        command.arg(root().join(DOCUMENT));
    }
    run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
