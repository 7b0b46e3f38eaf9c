//! What is written down is what there is.
#![allow(
    clippy::panic,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::fs;
use std::path::Path;

use clap::Command;
use standfast_manual::schema::Schema;
use standfast_manual::{Made, all, programs, reference};

#[test]
fn the_reference_of_qmp_is_that_of_the_types() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = fs::read_to_string(root.join(reference::DOCUMENT)).unwrap();
    let expected = reference::with_types(&document).unwrap();
    assert!(
        document == expected,
        "{} is not as the types are: `cargo xtask dist --bless-docs`",
        reference::DOCUMENT
    );
}

/// What a page says, without the marks of roff.
fn page(files: &[Made], name: &str) -> String {
    let mut found = files
        .iter()
        .filter(|file| file.path.file_name().is_some_and(|it| it == name));
    let file = found
        .next()
        .unwrap_or_else(|| panic!("{name} is not there"));
    assert!(found.next().is_none(), "{name} is there twice");
    let marks = [
        ("\\-", "-"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\*(Aq", "'"),
    ];
    (marks.iter()).fold(file.text.clone(), |text, (mark, meant)| {
        text.replace(mark, meant)
    })
}

/// Every option stands in the page of its command, and every subcommand has one.
fn check(files: &[Made], command: &Command, name: &str, section: &str) {
    let text = page(files, &format!("{name}.{section}"));
    for argument in command.get_arguments().filter(|it| !it.is_hide_set()) {
        let what = match (argument.get_long(), argument.get_value_names()) {
            (Some(long), _) => format!("--{long}"),
            (None, names) => names.unwrap()[0].to_string(),
        };
        assert!(text.contains(&what), "{name}: {what}");
        let help = argument.get_help().unwrap().to_string();
        assert!(text.contains(&help), "{name}: {help}");
    }
    for subcommand in command.get_subcommands() {
        let own = format!("{name}-{}", subcommand.get_name());
        assert!(text.contains(&format!("{own}({section})")), "{name}: {own}");
        check(files, subcommand, &own, section);
    }
}

#[test]
fn every_option_and_subcommand_is_in_the_pages_and_completions() {
    let files = all().unwrap();
    for program in programs::all() {
        let (name, section) = (program.command.get_name(), program.section);
        check(&files, &program.command, name, section);
        for file in [name, &format!("_{name}"), &format!("{name}.fish")] {
            let text = page(&files, file);
            for argument in program.command.get_arguments() {
                if let Some(long) = argument.get_long() {
                    assert!(text.contains(long), "{file}: {long}");
                }
            }
            for subcommand in program.command.get_subcommands() {
                assert!(text.contains(subcommand.get_name()), "{file}");
            }
            assert!(!text.contains("demo-daemon"), "{file}");
        }
    }
}

#[test]
fn every_command_event_and_member_is_in_the_pages() {
    let files = all().unwrap();
    let qmp = page(&files, "standfastd-qmp.7");
    let schema = Schema::new().unwrap();
    for entity in schema
        .commands()
        .unwrap()
        .iter()
        .chain(&schema.events().unwrap())
    {
        assert!(
            qmp.contains(&format!(".SS {}\n", entity.name)),
            "{}",
            entity.name
        );
    }
    let daemon = page(&files, "standfastd.8");
    for expected in [
        ".SS driver=quota\n.TP\n",
        "\nlimit\n",
        "[cache.direct]\n",
        "[werror]\n",
        ".SS iothread\n",
        "poll-max-ns\n",
    ] {
        assert!(daemon.contains(expected), "{expected}");
    }
}
