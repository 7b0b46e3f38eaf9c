//! The examples of docs/watch.md are right.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Setup, standfast};
use testkit::place::{PATIENCE, Place, stderr, stdout};

const TEXT: &str = include_str!("../../../docs/watch.md");

#[test]
fn every_example_passes_the_check() {
    let place = Place::new();
    let examples: Vec<_> = TEXT.split("```toml\n").skip(1).collect();
    assert!(examples.len() >= 4);
    for example in examples {
        let example = example.split("```").next().unwrap();
        std::fs::write(place.file("watch.toml"), example).unwrap();
        let output = standfast(&["watch", "--config", &place.name("watch.toml"), "--check"]);
        assert!(output.status.success(), "{example}\n{}", stderr(&output));
        assert!(
            stdout(&output).starts_with("Machines "),
            "{}",
            stdout(&output)
        );
    }
}

/// Every metric that is documented is there, and the other way round.
#[test]
fn the_metrics_are_the_documented_ones() {
    let source = include_str!("../../watch/src/shell/figures.rs");
    let names = source
        .split('"')
        .filter_map(|word| word.strip_prefix("watch_"));
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        assert!(
            TEXT.contains(&format!("`{name}")),
            "{name} is not documented"
        );
    }
}

/// Dashboard and alert rules name metrics that a running watcher has, and labels that those have.
#[test]
fn what_is_monitored_is_there() {
    const DASHBOARD: &str = include_str!("../../../monitoring/watch-dashboard.json");
    const RULES: &str = include_str!("../../../monitoring/watch-alerts.yml");
    let setup = Setup::new("listen = \"127.0.0.1:0\"\n[[machines]]\nsockets = [\"@PLACE@/*.qmp\"]");
    let mut watcher = setup.watch(0);
    watcher
        .wait_for_stderr("metrics at http://", PATIENCE)
        .unwrap();
    let log = watcher.stderr();
    let address = log
        .split("metrics at http://")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();

    let is_of_name = |char: char| char.is_ascii_lowercase() || char == '_';
    let names = |text: &'static str| {
        let begins = text
            .match_indices("standfast_watch_")
            .map(|(at, _)| &text[at..]);
        begins.map(move |rest| &rest[..rest.find(|char| !is_of_name(char)).unwrap_or(rest.len())])
    };
    let of_dashboard: BTreeSet<_> = names(DASHBOARD).collect();
    let of_rules: BTreeSet<_> = names(RULES).collect();
    assert!(
        of_dashboard.len() >= 10 && of_rules.len() >= 5,
        "{of_dashboard:?} {of_rules:?}"
    );
    for name in of_dashboard.union(&of_rules) {
        let there = |line: &str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        assert!(metrics.lines().any(there), "{name} is not in\n{metrics}");
    }
    for (label, values) in [
        ("state", ["unreachable", "taken"]),
        ("result", ["grown", "failed"]),
    ] {
        for value in values {
            assert!(
                metrics.contains(&format!("{{{label}=\"{value}\"}}")),
                "{label} {value}"
            );
        }
    }
    serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// The unit starts what is there: its program, its options, its directories.
#[test]
fn the_unit_fits_the_program() {
    const UNIT: &str = include_str!("../../../systemd/standfast-watch.service");
    let line = |key: &str| {
        let mut lines = UNIT
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines
            .next()
            .unwrap_or_else(|| panic!("no {key}"))
            .to_owned()
    };
    let place = Place::new();
    std::fs::write(place.file("watch.toml"), "[[machines]]\nsockets = [\"/x\"]").unwrap();
    let start = line("ExecStart").replace("/etc/standfast/watch.toml", &place.name("watch.toml"));
    let arguments: Vec<_> = start.split(' ').skip(1).chain(["--check"]).collect();
    let output = standfast(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains(&format!(
            "Journal: /var/lib/{}/journal\n",
            line("StateDirectory")
        )),
        "{text}"
    );
    assert_eq!(
        format!("/run/{}", line("RuntimeDirectory")),
        "/run/standfast-watch"
    );
}
