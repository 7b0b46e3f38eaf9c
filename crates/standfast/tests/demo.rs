//! `standfast demo` shows what it promises, and cleans up.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::place::{Place, eventually, stderr, stdout};

fn demo(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standfast"));
    command.arg("demo").args(args).env("TMPDIR", place.path());
    command
}

#[test]
fn figures() {
    let place = Place::new();
    let output = demo(&place, &["--json"]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}\n{}",
        stdout(&output),
        stderr(&output)
    );
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["ok"], true, "{report:#}");
    let (stop, control) = (&report["stop"], &report["report"]);
    let number = |value: &Value| value.as_u64().unwrap();
    let disk = number(&report["disk_bytes"]);

    assert_eq!(stop["guest_errors"], 0);
    assert_eq!(stop["bytes_lost"], 0);
    assert_eq!(stop["writes_done"], stop["writes"]);
    assert_eq!(number(&stop["blocks_verified"]) * 4096, disk);
    assert!(number(&stop["held"]) >= 1);
    assert_eq!(stop["completed_while_held"], 0);
    assert_eq!(stop["status_without_space"], "io-error");
    assert_eq!(stop["io_status_without_space"], "nospace");
    assert_eq!(stop["status_at_end"], "running");
    assert_eq!(stop["io_status_at_end"], "ok");

    assert_eq!(control["status_without_space"], "running");
    assert_eq!(control["io_status_without_space"], json!(null));
    let errors = number(&control["guest_errors"]);
    assert!(errors > 0);
    // Every failed write is lost, and no other.
    assert_eq!(
        number(&control["bytes_lost"]),
        errors * number(&report["request_bytes"])
    );
    assert_eq!(
        number(&control["writes_done"]) + errors,
        number(&control["writes"])
    );
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn story() {
    let place = Place::new();
    let output = demo(&place, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for line in [
        "1. Standfast: werror=stop",
        "event         STOP",
        "query-block   io-status nospace",
        "event         RESUME",
        "Side by side",
    ] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }
    assert!(
        !text.contains('\x1b') && !text.contains('\r'),
        "only a terminal gets colours"
    );
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let place = Place::new();
    let mut child = demo(&place, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| {
        let line = line.unwrap();
        line.contains("standfastd (pid ").then_some(line)
    });
    let line = line.unwrap();
    let pid = line
        .split_once("(pid ")
        .unwrap()
        .1
        .split_once(')')
        .unwrap()
        .0;
    let daemon = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let demo = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(demo, Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        rustix::process::test_kill_process(daemon).is_err(),
        "the daemon lives on"
    );
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_killed_demo_leaves_no_daemon() {
    let place = Place::new();
    let mut child = demo(&place, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| {
        let line = line.unwrap();
        line.contains("standfastd (pid ").then_some(line)
    });
    let line = line.unwrap();
    let pid = line
        .split_once("(pid ")
        .unwrap()
        .1
        .split_once(')')
        .unwrap()
        .0;
    let daemon = Pid::from_raw(pid.parse().unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the daemon ends", || {
        rustix::process::test_kill_process(daemon).is_err()
    });
}
