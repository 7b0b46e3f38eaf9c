//! The operator's tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    standfast::tool::main(std::env::args_os())
}
