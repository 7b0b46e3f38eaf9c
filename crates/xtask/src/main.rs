//! Every developer command; CI runs exactly these.
//!
//! * `cargo xtask test [PART...] [--soak]`: everything that must hold before a change goes in.
//! * `cargo xtask lint [PART...]`: style, lints, circles, licences, advisories, documentation.
//! * `cargo xtask bench [LOAD...]`: standfastd against qemu-storage-daemon.
//! * `cargo xtask dist [DIRECTORY]`: manual pages and shell completions.
//! * `cargo xtask fuzz [TARGET...] [--seconds N]`: the parsers that face strangers.

mod bench;
mod circles;
mod demo;
mod dist;
mod fuzz;
mod lint;
mod metadata;
mod packages;
mod part;
mod qsd;
mod report;
mod run;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer commands of Standfast.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the tests need and run them
    Test(test::Args),
    /// Check style, lints, circles, licences, advisories and documentation
    Lint(lint::Args),
    /// Measure standfastd against qemu-storage-daemon
    Bench(bench::Args),
    /// Write the manual pages and shell completions
    Dist(dist::Args),
    /// Feed the parsers random input
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test::main(&args),
        Command::Lint(args) => Ok(lint::main(&args)),
        Command::Bench(args) => bench::main(&args),
        Command::Dist(args) => dist::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn unknown_commands_and_values_are_refused() {
        for args in [
            &["benchmark"][..],
            &["test", "all"],
            &["fuzz", "--seconds", "0"],
            &["lint", "x"],
        ] {
            let line = ["xtask"].iter().chain(args);
            Cli::try_parse_from(line).expect_err("this is not a command");
        }
        Cli::try_parse_from(["xtask", "test", "unit", "e2e", "--soak"]).unwrap();
    }
}
