//! What reads manual pages and completions understands ours.
#![allow(
    clippy::panic,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use standfast_manual::{all, write};
use tempfile::TempDir;

fn installed() -> (TempDir, Vec<PathBuf>) {
    let directory = TempDir::with_prefix("standfast-manual-").unwrap();
    let files = all().unwrap();
    write(directory.path(), &files).unwrap();
    let paths = files.iter().map(|file| directory.path().join(&file.path));
    let paths = paths.collect();
    (directory, paths)
}

fn run(program: &str, args: &[&str], path: &Path) -> Output {
    let mut command = Command::new(program);
    let output = command.args(args).arg(path).env("MANWIDTH", "80").output();
    output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

/// All that a program says to a file, which has to be nothing.
fn says_nothing(program: &str, args: &[&str], path: &Path) {
    let output = run(program, args, path);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // Pages have none: a build gives the same twice.
    let mistakes = said.lines().filter(|line| !line.contains("missing date"));
    let said = mistakes.collect::<String>();
    assert!(
        said.is_empty() && (output.status.success() || program == "mandoc"),
        "{program} {}: {}: {said}",
        path.display(),
        output.status
    );
}

#[test]
fn pages_have_no_mistakes() {
    let (_directory, paths) = installed();
    let pages: Vec<_> = paths
        .iter()
        .filter(|path| path.to_string_lossy().contains("/man/"))
        .collect();
    assert!(pages.len() > 10, "{pages:?}");
    for path in pages {
        says_nothing("mandoc", &["-T", "lint", "-W", "warning"], path);
        says_nothing("groff", &["-man", "-ww", "-z", "-T", "utf8"], path);
        let output = run("man", &["--warnings", "-l"], path);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("NAME") && said.contains("SEE ALSO"), "{said}");
    }
}

#[test]
fn shells_take_the_completions() {
    let (directory, paths) = installed();
    for path in &paths {
        let shown = path.to_string_lossy();
        if shown.contains("/bash-completion/") {
            says_nothing("bash", &["-n"], path);
        } else if shown.contains("/zsh/") {
            says_nothing("zsh", &["-n"], path);
        } else if shown.contains("/fish/") {
            says_nothing("fish", &["--no-execute"], path);
        }
    }
    // And they complete what is begun.
    let bash = directory.path().join("bash-completion/completions");
    let completed = |program: &str, words: &str, at: usize| {
        let file = bash.join(program);
        let script = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={at}; \
             _{program} {program} \"${{COMP_WORDS[{at}]}}\" x 2>/dev/null; echo ${{COMPREPLY[@]}}",
            file.display()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed("standfastd", "standfastd --blo", 1), "--blockdev");
    assert_eq!(completed("standfast", "standfast hist", 1), "history");
    let fish = directory
        .path()
        .join("fish/vendor_completions.d/standfast.fish");
    let script = format!("source {}; complete -C 'standfast hist'", fish.display());
    let mut command = Command::new("fish");
    let output = command
        .args(["-N", "-c", &script])
        .env("HOME", directory.path());
    let output = output.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("history"), "{said}");
}
