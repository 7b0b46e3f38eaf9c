//! The log: lines on stderr, filtered by the environment.
//!
//! Whoever logs waits for nobody: lines go into a buffer of a fixed size, and a thread of its own
//! writes them ([`writer`]). If stderr is not read, lines are dropped and counted. Lines of one kind
//! that come too often are counted, too ([`limit`]).

mod limit;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use self::limit::Limited;
use self::writer::{LOG, Line};

/// Where only what matters is wanted: as qemu-storage-daemon, which says nothing when all is well.
const QUIET: &str = "warn";

/// Where lines have a place of their own: ours from info, what we are built on from warn.
const JOURNAL: &str = "warn,standfast=info";

/// How long the last lines may take. A stderr that nobody reads then does not keep the process.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Sets the log up. Called once, first.
///
/// # Errors
/// A filter that cannot be understood: names the variable and the value. A thread that the system
/// refuses.
pub fn init() -> Result<(), String> {
    let filter = ["STANDFAST_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| Some((name, std::env::var(name).ok()?)))
        .filter(|(_, value)| !value.trim().is_empty());
    let filter = match filter {
        None => EnvFilter::new(if is_journal() { JOURNAL } else { QUIET }),
        Some((name, value)) => EnvFilter::builder().parse(&value).map_err(|error| {
            format!("{name}='{value}' is not a log filter: {error}; use e.g. {name}=debug")
        })?,
    };
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::stderr().is_terminal();
    LOG.start(limit::LEFT_OUT)
        .map_err(|error| format!("cannot start the thread that writes the log: {error}"))?;
    std::panic::set_hook(Box::new(panicked));
    iothread::set_last_words(last_words);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Line)
        .with_ansi(colour)
        .with_target(false)
        .map_event_format(Limited)
        .init();
    Ok(())
}

/// Whether stderr is the journal of systemd, which says so by device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stat = rustix::fs::fstat(std::io::stderr());
    stat.is_ok_and(|stat| told == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Says `text` on stderr, before or after [`init`], and waits until it is out, as far as somebody reads
/// it within a second: for the last words of a process.
pub fn say(text: &[u8]) {
    LOG.push_anyway(text);
    finish();
}

fn last_words(text: &str) {
    say(text.as_bytes());
}

/// Waits until all lines are out, as far as somebody reads them within a second.
pub fn finish() {
    limit::report();
    LOG.flush(LAST_LINES);
}

/// What the standard library says of a panic, without waiting for whoever reads it.
fn panicked(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("stack backtrace:\n{backtrace}"),
        _ => String::new(),
    };
    last_words(&format!("thread '{thread}' {info}\n{backtrace}"));
}
