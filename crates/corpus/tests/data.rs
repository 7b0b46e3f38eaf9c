//! The cases, the ledger and the documentation are in accordance with each other.

use standfast_corpus::{case, document, ledger::Ledger};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("two directories below the root")
        .to_owned()
}

fn ledger() -> (String, Ledger) {
    let text = fs::read_to_string(root().join("tests/qsd/ledger.toml")).expect("there is a ledger");
    let ledger = Ledger::parse(&text).expect("the ledger can be read");
    (text, ledger)
}

#[test]
fn cases_can_be_read_and_are_many() {
    let cases = case::all(&root().join("tests/qsd")).unwrap();
    assert!(cases.len() >= 400, "{} cases", cases.len());
    for case in &cases {
        assert!(!case.steps.is_empty(), "{} does nothing", case.name);
    }
}

/// Sorted, so that changes of several people merge.
#[test]
fn ledger_is_as_it_would_be_written() {
    let (text, ledger) = ledger();
    assert_eq!(text, ledger.render());
}

#[test]
fn ledger_knows_only_cases_that_there_are() {
    let cases = case::all(&root().join("tests/qsd")).unwrap();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let (_, ledger) = ledger();
    for case in ledger.cases() {
        assert!(names.contains(case), "there is no case {case}");
    }
}

#[test]
fn documentation_has_what_the_ledger_says() {
    let document = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let (_, ledger) = ledger();
    let expected = document::with_ledger(&document, &ledger).unwrap();
    assert_eq!(
        document, expected,
        "`cargo xtask test qsd --bless-ledger` writes it"
    );
}
