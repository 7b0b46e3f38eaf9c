//! The daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    standfast::daemon::main(std::env::args_os())
}
