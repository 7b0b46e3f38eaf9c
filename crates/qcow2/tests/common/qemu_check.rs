//! What `qemu-img check` says of an image.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::panic, reason = "a failed test")]

use std::path::Path;
use std::process::Command;

/// What a checker finds, of the worst kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Clean,
    Leaks,
    Corrupt,
}

/// The verdict on the image at `path`, and the words.
pub fn of_file(path: &Path) -> (Verdict, String) {
    let mut command = Command::new("qemu-img");
    let output = command.args(["check", "-fqcow2"]).arg(path).output();
    let output = output.expect("qemu-img is there");
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
    let verdict = match output.status.code() {
        Some(0) => Verdict::Clean,
        Some(3) => Verdict::Leaks,
        // 2: corruptions; 1: it cannot be checked.
        Some(1 | 2) => Verdict::Corrupt,
        other => panic!("qemu-img ends with {other:?}: {words}"),
    };
    (verdict, words)
}

/// The same for an image in memory.
pub fn of_bytes(image: &[u8]) -> (Verdict, String) {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    std::fs::write(file.path(), image).expect("there is memory");
    of_file(file.path())
}

/// It must be as a clean end leaves it.
pub fn is_clean(path: &Path, what: &str) {
    let (verdict, words) = of_file(path);
    assert_eq!(verdict, Verdict::Clean, "{what}: {words}");
}
