//! The daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    standfast_daemon::main(std::env::args_os())
}
