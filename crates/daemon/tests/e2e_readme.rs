//! The commands of README work as they stand.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

mod harness;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::{PATIENCE, eventually};
use serde_json::{Value, json};
use testkit::{Daemon, Qmp};

const README: &str = include_str!("../../../README.md");

/// The block that begins with a line which begins with `first`, for other directories.
fn block(first: &str, dir: &Path) -> Result<String> {
    let blocks = README.split("```\n").skip(1).step_by(2);
    let mut found = blocks.filter(|block| block.starts_with(first));
    let block = found
        .next()
        .with_context(|| format!("no block begins with {first}"))?;
    let dir = dir.display().to_string();
    let block = block
        .replace("/run/vm", "/run-vm")
        .replace("/vm", &format!("{dir}/vm"));
    Ok(block.replace("/run-vm", &format!("{dir}/run")))
}

/// A shell that finds the programs under test first. Whoever runs this has built them all: cargo builds
/// those of this package only.
fn shell(script: &str) -> Result<(String, String)> {
    let programs = Path::new(env!("CARGO_BIN_EXE_standfastd")).parent();
    let programs = programs.context("the directory of the programs")?.display();
    let path = std::env::var("PATH")?;
    Ok((format!("{programs}:{path}"), format!("set -e; {script}")))
}

fn run(script: &str) -> Result<String> {
    let (path, script) = shell(script)?;
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("PATH", path)
        .output()?;
    ensure!(output.status.success(), "{script}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn start(script: &str, sockets: &[&Path]) -> Result<Daemon> {
    let (path, script) = shell(&format!("exec {script}"))?;
    let mut builder = Daemon::builder("sh")
        .args(["-c", &script])
        .env("PATH", path);
    for socket in sockets {
        builder = builder.socket(socket);
    }
    builder.timeout(PATIENCE).start()
}

/// It spoke of a daemon that nobody had built, of directories and an image that were not there; and
/// QEMU with two CPUs did not start. Its firmware looks for something to boot.
#[test]
fn daemon_qemu_and_tool() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let use_it = block("cargo build --release\n", dir.path())?;
    let (prepare, serve) = use_it.split_once("\n\n").context("two parts")?;
    let prepare = prepare
        .lines()
        .filter(|line| !line.starts_with("cargo") && !line.starts_with("export"));
    run(&prepare.collect::<Vec<_>>().join("\n"))?;
    let sockets = ["run/vda.sock", "run/standfast.qmp"].map(|name| dir.path().join(name));
    let mut daemon = start(serve, &[&sockets[0], &sockets[1]])?;
    let qemu = block("qemu-system-x86_64 -m 2G", dir.path())?;
    let mut vm = start(&format!("{} -display none", qemu.trim_end()), &[])?;
    let mut qmp = Qmp::connect(&sockets[1])?;
    eventually("the firmware reads", || {
        ensure!(vm.try_wait()?.is_none(), "QEMU has ended: {}", vm.stderr());
        let stats = qmp.execute("query-blockstats", Value::Null)?;
        let reads = stats
            .pointer("/0/stats/rd_operations")
            .and_then(Value::as_u64);
        Ok(reads.context("rd_operations")? > 0)
    })?;
    let operate = block("$ standfast events", dir.path())?;
    let commands = operate
        .lines()
        .filter_map(|line| line.strip_prefix("$ standfast "));
    for command in commands.filter(|command| !command.starts_with("events")) {
        run(&format!("standfast {command}"))?;
    }
    let events = operate
        .lines()
        .find(|line| line.starts_with("$ standfast events"));
    let events = events
        .and_then(|line| line.strip_prefix("$ "))
        .context("events")?;
    let listener = start(events, &[])?;
    eventually("an event", || {
        for command in ["stop", "cont"] {
            qmp.execute(command, json!({}))?;
        }
        Ok(listener.stdout().contains(" STOP"))
    })?;
    vm.kill()?;
    daemon.terminate(PATIENCE)?;
    Ok(())
}
