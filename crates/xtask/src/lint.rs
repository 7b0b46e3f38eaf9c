//! `cargo xtask lint`: style, lints, licences, advisories, documentation.

use crate::report::Report;
use crate::run::{cargo, output, run};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the command.
pub fn main() -> ExitCode {
    let mut report = Report::default();
    report.part("fmt", || {
        fmt()?;
        run(&mut cargo([
            "fmt",
            "--manifest-path",
            FUZZ_MANIFEST,
            "--check",
        ]))
    });
    report.part("clippy", || {
        clippy()?;
        let fuzz = [
            "clippy",
            "--manifest-path",
            FUZZ_MANIFEST,
            "--all-targets",
            "--",
        ];
        run(cargo(fuzz).args(WARNINGS_ARE_ERRORS))
    });
    report.part("doc", || {
        let mut command = cargo([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]);
        run(command.env("RUSTDOCFLAGS", "-D warnings"))
    });
    report.part("deny", || {
        ensure_cargo_deny()?;
        run(&mut cargo(["deny", "check", "licenses", "bans", "sources"]))?;
        let fuzz = ["deny", "--manifest-path", FUZZ_MANIFEST];
        run(cargo(fuzz).args(["check", "licenses", "bans", "sources"]))
    });
    report.part("advisories", advisories);
    report.finish()
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

fn ensure_cargo_deny() -> Result<()> {
    if output(&mut cargo(["deny", "--version"])).is_ok() {
        return Ok(());
    }
    println!("cargo-deny is missing; installing it with cargo, which takes some minutes");
    run(&mut cargo(["install", "--locked", "cargo-deny"]))
}

/// Known vulnerabilities. Without the network there is nothing to compare with, and that is not
/// the fault of the code.
fn advisories() -> Result<()> {
    ensure_cargo_deny()?;
    if let Err(error) = run(&mut cargo(["deny", "fetch", "db"])) {
        println!("NOT CHECKED: the advisory database cannot be reached: {error:#}");
        return Ok(());
    }
    run(&mut cargo([
        "deny",
        "check",
        "--disable-fetch",
        "advisories",
    ]))
}
