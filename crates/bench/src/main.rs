//! Load for vhost-user-blk devices, and what comes of it.
//!
//! * `standfast-bench client`: one load against one device; its figures;
//! * `standfast-bench gate`: instructions per request against the baseline;
//! * `standfast-bench run`: all loads on all servers, and the report.
//!
//! `cargo xtask bench` and `cargo xtask test bench-gate` run it; it is no part of the product.

mod beside;
mod client;
mod creation;
mod error_path;
mod fio;
mod gate;
mod hanging;
mod html;
mod images;
mod instructions;
mod judge;
mod latency;
mod load;
mod loads;
mod process;
mod profile;
mod qcow2;
mod release;
mod report;
mod run;
mod server;
mod size;
mod statistics;
mod targets;
mod throttle;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load for vhost-user-blk devices, and what comes of it.
#[derive(Debug, Parser)]
#[command(name = "standfast-bench", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put a load on a device and print its figures
    Client(client::Args),
    /// Compare the instructions per request with the baseline
    Gate(gate::Args),
    /// Measure everything and write the report
    Run(run::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Client(args) => client::main(&args),
        Command::Gate(args) => gate::main(&args),
        Command::Run(args) => run::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("standfast-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
