//! Images that QEMU has made, and its word on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// How an image is made.
#[derive(Debug)]
pub struct Kind {
    pub options: &'static str,
    /// Refcounts of one bit allow no snapshot.
    pub snapshot: bool,
    /// Version 2 has no bitmaps.
    pub bitmap: bool,
}

pub const KINDS: [Kind; 6] = [
    Kind {
        options: "compat=1.1,cluster_size=4k",
        snapshot: true,
        bitmap: true,
    },
    Kind {
        options: "compat=0.10,cluster_size=4k",
        snapshot: true,
        bitmap: false,
    },
    Kind {
        options: "compat=1.1,cluster_size=16k,extended_l2=on",
        snapshot: true,
        bitmap: true,
    },
    Kind {
        options: "compat=1.1,cluster_size=512,refcount_bits=64",
        snapshot: true,
        bitmap: true,
    },
    Kind {
        options: "compat=1.1,cluster_size=4k,refcount_bits=1",
        snapshot: false,
        bitmap: true,
    },
    Kind {
        options: "compat=1.1,cluster_size=64k,lazy_refcounts=on,compression_type=zstd,refcount_bits=8",
        snapshot: true,
        bitmap: true,
    },
];

/// Makes an image that has something of everything.
pub fn make(kind: &Kind, path: &Path) {
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            kind.options,
            name,
            "2M",
        ],
    );
    run(
        "qemu-io",
        &[
            "-c",
            "write -P 1 0 128k",
            "-c",
            "write -c -P 2 256k 64k",
            "-c",
            "write -c -P 3 320k 64k",
            "-c",
            "write -z 512k 64k",
            "-c",
            "write -P 4 1M 192k",
            "-c",
            "discard 1088k 64k",
            "-c",
            "write -z -u 1M 64k",
            name,
        ],
    );
    if kind.snapshot {
        run("qemu-img", &["snapshot", "-c", "one", name]);
        run("qemu-io", &["-c", "write -P 5 64k 128k", name]);
        run("qemu-img", &["snapshot", "-c", "two", name]);
        run(
            "qemu-io",
            &["-c", "write -P 6 1M 32k", "-c", "write -P 7 1600k 4k", name],
        );
    }
    if kind.bitmap {
        run("qemu-img", &["bitmap", "--add", "-g", "512", name, "b0"]);
        run("qemu-img", &["bitmap", "--add", "-g", "64k", name, "b1"]);
        run("qemu-io", &["-c", "write -P 8 700k 8k", name]);
    }
}

pub fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    output
}

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It cannot be opened, or the check could not go to its end.
    Refused,
    Checked {
        corrupt: bool,
        leaks: bool,
    },
}

impl Verdict {
    pub const CLEAN: Self = Self::Checked {
        corrupt: false,
        leaks: false,
    };
}

/// What `qemu-img check` says, and in which words.
pub fn peer(path: &PathBuf) -> (Verdict, String) {
    let mut check = Command::new("qemu-img");
    check
        .args(["check", "-f", "qcow2", "--output", "json"])
        .arg(path);
    let output = check.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(1) || !text.starts_with('{') {
        return (Verdict::Refused, words);
    }
    let verdict = Verdict::Checked {
        corrupt: text.contains("\"corruptions\""),
        leaks: text.contains("\"leaks\""),
    };
    (verdict, words)
}

/// What QEMU reads of it; none: not all of it can be read.
pub fn disk(path: &Path) -> Option<Vec<u8>> {
    let raw = path.with_extension("raw");
    let mut convert = Command::new("qemu-img");
    convert
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([path, &raw]);
    let output = convert.output().unwrap();
    output.status.success().then(|| std::fs::read(raw).unwrap())
}
