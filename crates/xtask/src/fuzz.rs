//! `cargo xtask fuzz`: libFuzzer on stable Rust.
//!
//! The compiler's coverage pass is reached through flags that stable accepts, so that neither
//! nightly nor cargo-fuzz is needed; without a sanitizer, what is found are panics, overflows,
//! hangs and memory without bound.

use crate::metadata::Metadata;
use crate::report::Report;
use crate::run::{cargo, output, root, run, show};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to fuzz; every target if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Coverage counters, the table that maps them to code, and the operands of comparisons.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg",
    "fuzzing",
];

/// Optimisation where each target runs for some seconds only: a build at the level of the profile takes a minute more.
const SMOKE_OPT_LEVEL: &str = "1";
/// One input may take this long, in seconds.
const INPUT_SECONDS_MAX: u32 = 10;
/// The process may use this much memory, in MiB.
const MEMORY_MIB_MAX: u32 = 1024;
/// Longest input, in bytes: beyond the length limits of what is parsed nothing new happens.
const INPUT_BYTES_MAX: u32 = 16 << 10;

/// The fuzz targets, built.
#[derive(Debug)]
struct Fuzzers {
    names: Vec<String>,
    binaries: PathBuf,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<ExitCode> {
    let fuzzers = Fuzzers::build(None)?;
    let names = fuzzers.choose(&args.targets)?;
    let mut report = Report::default();
    for name in names {
        report.part(name, || fuzzers.run(name, args.seconds));
    }
    Ok(report.finish())
}

/// Builds all targets and runs each, as long as there is time for in so many seconds; all run even if one
/// finds something.
pub fn run_all(seconds: u32) -> Result<()> {
    let fuzzers = Fuzzers::build(Some(SMOKE_OPT_LEVEL))?;
    let seconds = share(seconds, fuzzers.names.len());
    let failures: Vec<String> = fuzzers
        .names
        .iter()
        .filter_map(|name| fuzzers.run(name, seconds).err())
        .map(|error| format!("{error:#}"))
        .collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// What each of `count` gets; libFuzzer takes 0 for no limit.
fn share(seconds: u32, count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    seconds.checked_div(count).unwrap_or(seconds).max(1)
}

impl Fuzzers {
    /// Builds all, with the optimisation of their profile unless another one is named.
    fn build(opt_level: Option<&str>) -> Result<Self> {
        let manifest = Path::new("fuzz/Cargo.toml");
        let metadata = Metadata::of(manifest)?;
        let host = host_triple(&output(Command::new("rustc").arg("-vV"))?)?;
        let mut command = cargo(["build", "--release", "--bins"]);
        command.arg("--manifest-path").arg(manifest);
        // With a target named, the flags do not reach build scripts and macros, which could not be
        // linked with them.
        command.args(["--target", &host]);
        command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        if let Some(opt_level) = opt_level {
            command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", opt_level);
        }
        run(&mut command)?;
        let names = metadata
            .targets("bin")
            .iter()
            .map(|target| target.name.clone())
            .collect();
        Ok(Self {
            names,
            binaries: metadata.target_directory.join(host).join("release"),
        })
    }

    fn choose<'a>(&'a self, wanted: &'a [String]) -> Result<&'a [String]> {
        if wanted.is_empty() {
            return Ok(&self.names);
        }
        match wanted.iter().find(|name| !self.names.contains(name)) {
            Some(name) => {
                bail!(
                    "there is no fuzz target '{name}'; there are: {}",
                    self.names.join(", ")
                )
            }
            None => Ok(wanted),
        }
    }

    /// Runs one target. New inputs go to the corpus, findings to the artifacts; neither is
    /// committed, the seeds are.
    fn run(&self, name: &str, seconds: u32) -> Result<()> {
        let fuzz = root().join("fuzz");
        let corpus = fuzz.join("corpus").join(name);
        let artifacts = fuzz.join("artifacts").join(name);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let binary = self.binaries.join(name);
        let mut command = Command::new(&binary);
        command
            .current_dir(root())
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1")
            .args(["-verbosity=0", "-print_funcs=0"]);
        let dictionary = fuzz.join("dictionaries").join(format!("{name}.dict"));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        // libFuzzer writes to the first directory and only reads the others.
        command.arg(corpus).arg(fuzz.join("seeds").join(name));
        run_quietly(&mut command).with_context(|| {
            let (binary, artifacts) = (binary.display(), artifacts.display());
            format!("'{name}' found something: run {binary} with the newest file in {artifacts}")
        })
    }
}

/// Runs libFuzzer and leaves out the dictionary it recommends at the end, a screenful.
fn run_quietly(command: &mut Command) -> Result<()> {
    let line = show(command);
    println!("$ {line}");
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let stderr = child.stderr.take().expect("it is piped");
    let mut in_dictionary = false;
    // Lines, but not necessarily UTF-8: it prints inputs.
    for text in BufReader::new(stderr).split(b'\n') {
        let text = text?;
        in_dictionary |= text.starts_with(b"###### Recommended dictionary");
        if !in_dictionary {
            eprintln!("{}", String::from_utf8_lossy(&text));
        }
        in_dictionary &= !text.starts_with(b"###### End of recommended dictionary");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn host_triple(version: &str) -> Result<String> {
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("`rustc -vV` does not name the host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_read_from_rustc() {
        let version = "rustc 1.95.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n";
        assert_eq!(host_triple(version).unwrap(), "x86_64-unknown-linux-gnu");
        host_triple("rustc").unwrap_err();
    }

    #[test]
    fn the_time_of_the_smoke_test_is_divided() {
        let shares = [1, 12, 41].map(|count| share(40, count));
        assert_eq!(shares, [40, 3, 1]);
    }

    #[test]
    fn unknown_targets_are_named() {
        let fuzzers = Fuzzers {
            names: vec!["a".into(), "b".into()],
            binaries: PathBuf::new(),
        };
        assert_eq!(fuzzers.choose(&[]).unwrap(), ["a", "b"]);
        assert_eq!(fuzzers.choose(&["b".into()]).unwrap(), ["b"]);
        assert_eq!(
            fuzzers.choose(&["c".into()]).unwrap_err().to_string(),
            "there is no fuzz target 'c'; there are: a, b"
        );
    }
}
