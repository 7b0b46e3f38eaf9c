//! `cargo xtask bench`: standfastd against qemu-storage-daemon; and the gate of the tests.

use crate::metadata::Metadata;
use crate::packages;
use crate::run::{cargo, root, run};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only loads and sections whose name contains one of these; `--list` shows the names
    #[arg(value_name = "LOAD")]
    loads: Vec<String>,
    /// Show the names of loads and sections
    #[arg(long)]
    list: bool,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, value_name = "N")]
    rounds: Option<u16>,
    /// One short round: shows that it works, and roughly where we are
    #[arg(long)]
    quick: bool,
    /// Where the files on disk and on tmpfs are made [default: target/bench and /dev/shm]
    #[arg(long, value_name = "DIR", num_args = 2)]
    directories: Vec<PathBuf>,
    /// Instead: count the instructions per request and make them what `test bench-gate` expects
    #[arg(long)]
    update_baseline: bool,
}

/// Debian packages of the benchmark.
const PACKAGES: [&str; 5] = [
    "qemu-system-common",
    "qemu-utils",
    "fio",
    "valgrind",
    "linux-perf",
];

/// Runs the command.
pub fn main(args: &Args) -> Result<ExitCode> {
    let metadata = Metadata::of(Path::new("Cargo.toml"))?;
    if !args.list {
        packages::ensure_named(&PACKAGES)?;
    }
    if args.update_baseline {
        gate(&metadata, true)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = program(&metadata, "run")?;
    command.args(&args.loads);
    let mut words = args.loads.iter();
    let instructions = "instructions";
    if !args.list
        && (args.loads.is_empty() || words.any(|word| instructions.contains(word.as_str())))
    {
        command.arg("--bypass").arg(bypass(&metadata)?);
    }
    if args.list {
        command.arg("--list");
    }
    if args.quick {
        command.arg("--quick");
    }
    if let Some(rounds) = args.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if let Some(file) = &args.json {
        command.arg("--json").arg(std::path::absolute(file)?);
    }
    if !args.directories.is_empty() {
        command.arg("--directories").args(&args.directories);
    }
    run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds a release and compares its instructions per request with the baseline, or makes them it.
pub fn gate(metadata: &Metadata, update: bool) -> Result<()> {
    let mut command = program(metadata, "gate")?;
    command
        .arg("--baseline")
        .arg(root().join("crates/bench/instructions.json"));
    if update {
        command.arg("--update");
    }
    run(&mut command)
}

/// Builds a release of the daemon that has no policy, for the sole purpose of telling what policy
/// costs. It has a directory of its own, so that nobody takes it for the real one.
fn bypass(metadata: &Metadata) -> Result<PathBuf> {
    let directory = metadata.target_directory.join("bench").join("no-policy");
    let daemon = ["build", "--release", "--bin", "standfastd"];
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default() + " --cfg standfast_bypass";
    run(cargo(daemon)
        .env("RUSTFLAGS", flags.trim())
        .env("CARGO_TARGET_DIR", &directory))?;
    Ok(directory.join("release").join("standfastd"))
}

/// Builds a release of the daemon and of what measures it.
fn program(metadata: &Metadata, subcommand: &str) -> Result<Command> {
    // What ships by itself: together with others its dependencies could get other features, and
    // what is measured would not be what ships.
    run(&mut cargo(["build", "--release"]))?;
    let ours = ["standfast-bench", "standfast-valgrind-shim"];
    let ours = ours.iter().flat_map(|package| ["--package", package]);
    run(cargo(["build", "--release"]).args(ours))?;
    let release = metadata.target_directory.join("release");
    let mut command = Command::new(release.join("standfast-bench"));
    command.current_dir(root()).arg(subcommand);
    command.arg("--standfastd").arg(release.join("standfastd"));
    command
        .arg("--shim")
        .arg(release.join("libvalgrind_shim.so"));
    command
        .arg("--directory")
        .arg(metadata.target_directory.join("bench"));
    Ok(command)
}
