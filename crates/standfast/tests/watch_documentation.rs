//! The examples of docs/watch.md are right.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::standfast;
use testkit::place::{Place, stderr, stdout};

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
