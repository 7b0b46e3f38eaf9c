//! `cargo xtask lint`: style, lints, licences, advisories, documentation.

use crate::circles;
use crate::metadata::Metadata;
use crate::report::Report;
use crate::run::{cargo, output, root, run};
use anyhow::Result;
use clap::ValueEnum;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask lint`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to check; everything if nothing is named
    #[arg(value_name = "PART")]
    parts: Vec<Part>,
}

/// What can be checked on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting
    Fmt,
    /// Clippy, on the fuzz targets too
    Clippy,
    /// Circles between the files of a crate
    Circles,
    /// Documentation
    Doc,
    /// Dependencies that nobody uses
    Unused,
    /// Licences and sources of dependencies
    Deny,
    /// Known vulnerabilities of dependencies
    Advisories,
}

/// Runs the command.
pub fn main(args: &Args) -> ExitCode {
    let mut report = Report::default();
    let mut unreachable = None;
    let parts = Part::value_variants().iter();
    for part in parts.filter(|part| args.parts.is_empty() || args.parts.contains(part)) {
        let name = part.to_possible_value().expect("no part is hidden");
        report.part(name.get_name(), || match part {
            Part::Fmt => {
                let fuzz = ["fmt", "--manifest-path", FUZZ_MANIFEST, "--check"];
                let (ours, fuzz) = (fmt(), run(&mut cargo(fuzz)));
                ours.and(fuzz)
            }
            Part::Clippy => {
                let metadata = Metadata::of(Path::new("Cargo.toml"))?;
                let (ours, fuzz) = (clippy(), clippy_of_fuzz_targets(&metadata));
                ours.and(fuzz)
            }
            Part::Circles => circles(),
            Part::Doc => doc(),
            Part::Unused => unused(),
            Part::Deny => deny(),
            Part::Advisories => advisories().map(|why_not| unreachable = why_not),
        });
    }
    let status = report.finish();
    if let Some(why) = unreachable {
        println!("advisories were NOT CHECKED, the database cannot be reached: {why}");
    }
    status
}

fn doc() -> Result<()> {
    let mut command = cargo([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    // Private items are documented too, so links to them lead somewhere.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    run(command.env("RUSTDOCFLAGS", flags))
}

fn unused() -> Result<()> {
    ensure("machete")?;
    run(&mut subcommand("machete"))
}

fn deny() -> Result<()> {
    ensure("deny")?;
    run(&mut cargo(["deny", "check", "licenses", "bans", "sources"]))?;
    let fuzz = ["deny", "--manifest-path", FUZZ_MANIFEST];
    run(cargo(fuzz).args(["check", "licenses", "bans", "sources"]))
}

const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";
const WARNINGS_ARE_ERRORS: [&str; 2] = ["-D", "warnings"];

/// The formatting of the workspace.
pub fn fmt() -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))
}

/// Clippy, with the lints of the workspace; a warning is an error.
pub fn clippy() -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--"];
    run(cargo(clippy).args(WARNINGS_ARE_ERRORS))
}

/// No circle between the files of a crate.
pub fn circles() -> Result<()> {
    circles::check(&Metadata::of(Path::new("Cargo.toml"))?, &root())
}

/// Clippy on the fuzz targets, as they are built for fuzzing; in a directory of its own, since the
/// flag changes every crate.
fn clippy_of_fuzz_targets(metadata: &Metadata) -> Result<()> {
    let mut command = cargo(["clippy", "--manifest-path", FUZZ_MANIFEST, "--all-targets"]);
    command.env("RUSTFLAGS", "--cfg fuzzing");
    let directory = metadata.target_directory.join("fuzz-lint");
    command.arg("--target-dir").arg(directory).arg("--");
    run(command.args(WARNINGS_ARE_ERRORS))
}

/// A subcommand of cargo that is a program of its own.
fn subcommand(name: &str) -> Command {
    let mut command = cargo([name]);
    // cargo-machete takes itself for started without cargo if it sees what we have from `cargo run`.
    command.env_remove("CARGO_PKG_NAME");
    command
}

/// Sees to it that a subcommand of cargo is there.
fn ensure(name: &str) -> Result<()> {
    if output(subcommand(name).arg("--version")).is_ok() {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    println!("{package} is missing; installing it with cargo, which takes some minutes");
    run(&mut cargo(["install", "--locked", &package]))
}

/// Known vulnerabilities. Without the network there is nothing to compare with, and that is not
/// the fault of the code: the reason is returned.
fn advisories() -> Result<Option<String>> {
    ensure("deny")?;
    if let Err(error) = run(&mut cargo(["deny", "fetch", "db"])) {
        return Ok(Some(format!("{error:#}")));
    }
    run(&mut cargo(["deny", "check", "advisories"]))?;
    Ok(None)
}
