//! `cargo xtask test`: everything that must hold before a change goes in.

use crate::metadata::{Metadata, Target};
use crate::part::Part;
use crate::report::Report;
use crate::run::{cargo, run};
use crate::{bench, demo, fuzz, lint, packages, qsd};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to run; everything if nothing is named
    #[arg(value_name = "PART")]
    parts: Vec<Part>,
    /// Raise the counts: more requests, more random schedules, more time
    #[arg(long)]
    soak: bool,
    #[command(flatten)]
    qsd: qsd::QsdArgs,
}

/// Test targets with this prefix need the packages and run in the part `e2e`.
const E2E_PREFIX: &str = "e2e_";
/// Test targets with this prefix are empty unless built for loom.
const LOOM_PREFIX: &str = "loom_";
/// Where loom tests are.
const LOOM_PACKAGE: &str = "standfast-iothread";
/// How long all fuzz targets together run, in seconds.
const FUZZ_SMOKE_SECONDS: u32 = 40;
/// The profile of unit and end-to-end tests; .cargo/config.toml says why.
const PROFILE: [&str; 2] = ["--profile", "checked"];

/// Runs the command.
pub fn main(args: &Args) -> Result<ExitCode> {
    let parts: Vec<Part> = Part::value_variants()
        .iter()
        .filter(|part| args.parts.is_empty() || args.parts.contains(part))
        .copied()
        .collect();
    let metadata = Metadata::of(Path::new("Cargo.toml"))?;
    let tests = metadata.targets("test");
    let mut report = Report::default();
    report.part("packages", || packages::ensure(&parts));
    for part in parts {
        report.part(&part.name(), || match part {
            Part::Check => check(),
            Part::Unit => unit(&tests, args.soak),
            Part::Loom => loom(&tests, &metadata),
            Part::E2e => e2e(&tests, args.soak),
            Part::Qsd => qsd::main(&args.qsd, &metadata, &PROFILE, args.soak),
            Part::Demo => demo::run(&metadata),
            Part::BenchGate => bench::gate(&metadata, false),
            Part::FuzzSmoke => fuzz::run_all(FUZZ_SMOKE_SECONDS),
        });
    }
    Ok(report.finish())
}

fn check() -> Result<()> {
    let fmt = lint::fmt();
    let clippy = lint::clippy();
    let circles = lint::circles();
    fmt.and(clippy).and(circles)
}

fn unit(tests: &[&Target], soak: bool) -> Result<()> {
    let mut command = cargo_test(soak);
    command.args(["--workspace", "--lib", "--bins"]);
    // A name stands for the targets of all packages that have it.
    let names: BTreeSet<_> = tests.iter().map(|target| target.name.as_str()).collect();
    for name in names {
        if !name.starts_with(E2E_PREFIX) && !name.starts_with(LOOM_PREFIX) {
            command.args(["--test", name]);
        }
    }
    let tests = run(&mut command);
    let doc_tests = run(cargo_test(soak).args(["--workspace", "--doc"]));
    tests.and(doc_tests)
}

fn loom(tests: &[&Target], metadata: &Metadata) -> Result<()> {
    let tests = chosen(tests, LOOM_PREFIX)?;
    // Optimised, since loom tries very many interleavings; and in a directory of its own, since
    // the flag changes every crate.
    let mut command = cargo(["test", "--package", LOOM_PACKAGE]);
    command.args(PROFILE).env("RUSTFLAGS", "--cfg loom");
    command
        .arg("--target-dir")
        .arg(metadata.target_directory.join("loom"));
    for target in tests {
        command.args(["--test", &target.name]);
    }
    run(&mut command)
}

fn e2e(tests: &[&Target], soak: bool) -> Result<()> {
    let tests = chosen(tests, E2E_PREFIX)?;
    // cargo builds the binaries of a package for that package's own tests only.
    run(cargo(["build", "--workspace", "--bins"]).args(PROFILE))?;
    let mut command = cargo_test(soak);
    for target in tests {
        command.args(["--package", &target.package, "--test", &target.name]);
    }
    run(&mut command)
}

fn cargo_test(soak: bool) -> Command {
    let mut command = cargo(["test", "--no-fail-fast"]);
    command.args(PROFILE);
    if soak {
        command.env("STANDFAST_SOAK", "1");
    }
    command
}

/// The test targets with a prefix. That there are none is an error: they got lost.
fn chosen<'a>(tests: &[&'a Target], prefix: &str) -> Result<Vec<&'a Target>> {
    let chosen: Vec<_> = tests
        .iter()
        .filter(|t| t.name.starts_with(prefix))
        .copied()
        .collect();
    if chosen.is_empty() {
        bail!("no crate has a test target whose name starts with '{prefix}'");
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_target_is_an_error() {
        let target = |name: &str| Target {
            package: "p".into(),
            name: name.into(),
            kind: "test".into(),
            source: "t.rs".into(),
        };
        let (ring, crash) = (target("ring"), target("e2e_crash"));
        assert_eq!(chosen(&[&ring, &crash], E2E_PREFIX).unwrap(), [&crash]);
        assert_eq!(
            chosen(&[&ring], E2E_PREFIX).unwrap_err().to_string(),
            "no crate has a test target whose name starts with 'e2e_'"
        );
    }
}
