//! `standfast demo`: what it is about, in a minute, with nothing but this program.
//!
//! A daemon is started as a process of its own, and a disk driver in this process plays the VM. The
//! storage under the disk runs full. With `werror=stop` the VM waits and nothing is lost; beside
//! it, with `werror=report`, what every other daemon does.

mod figures;
mod guest;
mod interrupt;
mod narrator;
mod pattern;
mod scenario;
mod server;

pub use self::server::DAEMON_COMMAND;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use self::figures::{Figures, Report};
use self::narrator::Narrator;
use self::scenario::{Scene, Werror, play};
use crate::tool::size::human;

const DISK_BYTES: u64 = 32 << 20;
const LIMIT_BYTES: u64 = 20 << 20;

/// What a shell says of a process that SIGINT has ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Options of the demo.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Print nothing but one JSON document with all figures
    #[arg(long)]
    json: bool,
    /// Give no time to read along
    #[arg(long)]
    fast: bool,
}

/// Runs the demo.
pub fn main(options: Options) -> ExitCode {
    let narrator = Narrator::new(options.json, options.fast);
    match run(&narrator) {
        Ok(report) => {
            if options.json {
                match serde_json::to_string_pretty(&report) {
                    Ok(text) => println_or_nothing(&text),
                    Err(error) => return fail(&error.into()),
                }
            } else {
                summarize(&report, &narrator);
            }
            if report.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(_) if interrupt::interrupted() => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => fail(&error),
    }
}

/// The daemon of the demo, in a process of its own.
pub fn daemon_main(arguments: Vec<OsString>) -> ExitCode {
    // Without the demo nobody would ever end it.
    let parent = rustix::process::Signal::TERM;
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(parent)) {
        return fail(&error.into());
    }
    daemon::main(std::iter::once(daemon::PROGRAM.into()).chain(arguments))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Nowhere to print to: the exit status says it.
    let _ = writeln!(io::stderr(), "standfast: demo: {error:#}");
    ExitCode::FAILURE
}

fn println_or_nothing(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn run(narrator: &Narrator) -> Result<Report> {
    let begin = Instant::now();
    interrupt::listen().context("cannot listen for Ctrl-C")?;
    let dir = tempfile::Builder::new()
        .prefix("standfast-demo-")
        .tempdir()
        .context("cannot make a temporary directory (set TMPDIR)")?;
    // The same for both runs, another one each time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map_or(1, |now| now.as_secs() ^ u64::from(now.subsec_nanos()));
    let scene = Scene {
        dir: dir.path(),
        disk_bytes: DISK_BYTES,
        limit_bytes: LIMIT_BYTES,
        seed,
    };
    narrator.line("A VM fills its disk, and the storage under the disk runs full. Twice:");
    narrator.heading("1. Standfast: werror=stop");
    let stop = play(scene, Werror::Stop, narrator)?;
    narrator.heading("2. What every other storage daemon does: werror=report");
    let report = play(scene, Werror::Report, narrator)?;
    dir.close()
        .context("cannot remove the temporary directory")?;
    Ok(Report {
        ok: stop.ok && report.ok,
        version: env!("CARGO_PKG_VERSION"),
        disk_bytes: DISK_BYTES,
        limit_bytes: LIMIT_BYTES,
        request_bytes: guest::REQUEST_BYTES as u64,
        queue_depth: guest::QUEUE_DEPTH as u64,
        stop,
        report,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn summarize(report: &Report, narrator: &Narrator) {
    let Report {
        stop,
        report: control,
        ..
    } = report;
    let row = |name: &str, stop: &str, control: &str| {
        narrator.line(format!("  {name:<26}{stop:<22}{control}").trim_end());
    };
    let errors = |figures: &Figures| figures.guest_errors.to_string();
    let lost = |figures: &Figures| match figures.bytes_lost {
        0 => "nothing".to_owned(),
        lost => human(lost),
    };
    narrator.heading("Side by side");
    row("", "werror=stop", "werror=report");
    row("I/O errors in the VM", &errors(stop), &errors(control));
    row("data lost", &lost(stop), &lost(control));
    row(
        "the VM meanwhile",
        "waits, then goes on",
        "runs on, on a broken disk",
    );
    narrator.line("");
    if report.ok {
        narrator.line("  Next: standfastd --help; standfast status|events|cont SOCKET");
    } else {
        narrator.line("  Not all was as it has to be: see 'wrong' above.");
    }
}
