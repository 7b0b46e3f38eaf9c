//! Load for vhost-user-blk devices, and what comes of it.
//!
//! * `standfast-bench client`: one load against one device; its figures.
//!
//! `cargo xtask bench` and `cargo xtask test bench-gate` run it; it is no part of the product.

mod client;
mod load;
mod process;
mod size;

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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Client(args) => client::main(&args),
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
