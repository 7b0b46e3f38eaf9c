//! Python's `qemu.qmp`, as others' programs use it, against standfastd.

use crate::run::{root, run};
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What is installed, from the Python package index, into an environment of its own.
const PACKAGE: &str = "qemu.qmp==0.0.6";
/// What talks to the daemon.
const SCRIPT: &str = "tests/qsd/qemu_qmp.py";

/// Runs the script against this daemon; what it needs is kept in `directory` for the next time.
pub fn run_against(daemon: &Path, directory: &Path) -> Result<()> {
    let environment = directory.join("venv");
    let python = environment.join("bin/python");
    // Written at the end: an environment without it is not whole.
    let whole = environment.join(PACKAGE);
    if !whole.is_file() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment))?;
        let installed = run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            PACKAGE,
        ]));
        if let Err(error) = installed {
            println!("warning: {PACKAGE} cannot be had, and is not run: {error:#}");
            return Ok(());
        }
        fs::write(&whole, "")?;
    }
    run(Command::new(&python).arg(root().join(SCRIPT)).arg(daemon))
}
