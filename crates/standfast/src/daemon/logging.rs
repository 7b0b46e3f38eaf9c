//! The log: lines on stderr, filtered by the environment.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Ours from info, what we are built on from warn.
const DEFAULT: &str = "warn,standfast=info";

/// Sets the log up. Called once, first.
///
/// # Errors
/// A filter that cannot be understood: names the variable and the value.
pub fn init() -> Result<(), String> {
    let filter = ["STANDFAST_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| Some((name, std::env::var(name).ok()?)))
        .filter(|(_, value)| !value.trim().is_empty());
    let filter = match filter {
        None => EnvFilter::new(DEFAULT),
        Some((name, value)) => EnvFilter::builder().parse(&value).map_err(|error| {
            format!("{name}='{value}' is not a log filter: {error}; use e.g. {name}=debug")
        })?,
    };
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    Ok(())
}
