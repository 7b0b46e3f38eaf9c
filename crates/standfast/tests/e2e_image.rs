//! `standfast image` against qemu-img, on images of all kinds that QEMU makes. Needs qemu-img and qemu-io.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn made(program: &str, args: &[&str]) {
    let output = run(program, args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
}

fn standfast(args: &[&str]) -> Output {
    let all: Vec<_> = std::iter::once("image")
        .chain(args.iter().copied())
        .collect();
    run(env!("CARGO_BIN_EXE_standfast"), &all)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Numbers by seed (an LCG).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

const SIZE: u64 = 4 << 20;

/// All combinations of what `qemu-img create` can make of an image.
fn combinations() -> Vec<String> {
    let mut all = Vec::new();
    for cluster in ["512", "4k", "16k", "64k", "2M"] {
        all.push(format!("compat=0.10,cluster_size={cluster}"));
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            for extended in ["off", "on"] {
                for compression in ["zlib", "zstd"] {
                    for lazy in ["off", "on"] {
                        if extended == "on" && matches!(cluster, "512" | "4k") {
                            continue;
                        }
                        all.push(format!(
                            "compat=1.1,cluster_size={cluster},refcount_bits={bits},extended_l2={extended},\
                             compression_type={compression},lazy_refcounts={lazy}"
                        ));
                    }
                }
            }
        }
    }
    for more in [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
    ] {
        all.push(format!("compat=1.1,{more}"));
        all.push(format!(
            "compat=1.1,extended_l2=on,cluster_size=128k,{more}"
        ));
    }
    all
}

/// An image in which something of everything was done, by seed.
fn make(name: &str, options: &str, seed: u64) {
    made(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            name,
            &SIZE.to_string(),
        ],
    );
    let cluster = cluster_size(name);
    let mut random = Random(seed);
    work(name, cluster, &mut random);
    if !options.contains("refcount_bits=1,") {
        for snapshot in ["one", "two"] {
            // Refcounts of two bits are soon full.
            run("qemu-img", &["snapshot", "-c", snapshot, name]);
            work(name, cluster, &mut random);
        }
    }
    if !options.contains("0.10") && seed.is_multiple_of(2) {
        run("qemu-img", &["bitmap", "--add", "-g", "512", name, "b0"]);
        run("qemu-img", &["bitmap", "--add", "--disable", name, "b1"]);
        work(name, cluster, &mut random);
    }
}

fn cluster_size(name: &str) -> u64 {
    let output = run("qemu-img", &["info", "--output", "json", name]);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    info["cluster-size"].as_u64().unwrap()
}

fn work(name: &str, cluster: u64, random: &mut Random) {
    let mut commands = Vec::new();
    for _ in 0..6 {
        let pattern = 1 + random.below(255);
        let offset = random.below(SIZE / 512) * 512;
        let length = (512 + random.below(256) * 512).min(SIZE - offset);
        let start = offset / cluster * cluster;
        commands.push(match random.below(6) {
            0 => format!("write -z {offset} {length}"),
            1 => format!("write -z -u {offset} {length}"),
            2 => format!("discard {offset} {length}"),
            3 => format!("write -c -P {pattern} {start} {cluster}"),
            _ => format!("write -P {pattern} {offset} {length}"),
        });
    }
    let mut args = Vec::new();
    for command in &commands {
        args.extend(["-c", command.as_str()]);
    }
    args.push(name);
    // Not all can be done: refcounts are soon full, a compressed cluster is not written compressed again.
    run("qemu-io", &args);
}

/// What both print about an image is the same: as JSON with its members in any order, as text letter for letter.
fn same(name: &str, case: &str) {
    for verb in ["info", "check", "map"] {
        let peer = run("qemu-img", &[verb, "--output", "json", name]);
        let ours = standfast(&[verb, "--output", "json", name]);
        assert_eq!(
            ours.status.code(),
            peer.status.code(),
            "{verb} {case}: {}",
            text(&ours)
        );
        let value = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).ok();
        assert_eq!(value(&ours), value(&peer), "{verb} {case}");
        let peer = run("qemu-img", &[verb, name]);
        let ours = standfast(&[verb, name]);
        assert_eq!(
            ours.status.code(),
            peer.status.code(),
            "{verb} {case}: {}",
            text(&ours)
        );
        if peer.status.success() {
            assert_eq!(text(&ours), text(&peer), "{verb} {case}");
        }
    }
}

#[test]
fn it_says_what_qemu_img_says() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory
        .path()
        .join("a.qcow2")
        .to_str()
        .unwrap()
        .to_owned();
    let all = combinations();
    let step = if std::env::var_os("STANDFAST_SOAK").is_some() {
        1
    } else {
        23
    };
    let (mut images, mut broken) = (0, 0);
    for (seed, options) in (0..).zip(&all).step_by(step) {
        make(&name, options, seed);
        let case = format!("{options} (seed {seed})");
        images += 1;
        // Where refcounts are full, QEMU's snapshots break their own images.
        let peer = run("qemu-img", &["check", &name]).status.code();
        if peer == Some(0) {
            same(&name, &case);
        } else {
            broken += 1;
            assert_eq!(standfast(&["check", &name]).status.code(), peer, "{case}");
        }
    }
    println!(
        "{images} images of {} kinds, {broken} of which QEMU has broken",
        all.len()
    );
    assert!(broken < images / 4 + 2, "{broken} of {images}");
}

#[test]
fn other_images() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let raw = place("raw.img");
    made("qemu-img", &["create", "-q", "-f", "raw", &raw, "1M"]);
    made("qemu-io", &["-f", "raw", "-c", "write -P 1 64k 64k", &raw]);
    same_as_json(&["info", "-f", "raw"], &raw);
    same_as_json(&["map", "-f", "raw"], &raw);
    assert_eq!(standfast(&["check", &raw]).status.code(), Some(63));
    let wrong = standfast(&["info", "-f", "qcow2", &raw]);
    assert_eq!(wrong.status.code(), Some(1));
    let words = String::from_utf8_lossy(&wrong.stderr).into_owned();
    let wanted = format!("standfast: Could not open '{raw}': Image is not in qcow2 format\n");
    assert_eq!(words, wanted);

    let data = place("data.img");
    let external = place("external.qcow2");
    let options = format!("data_file={data},data_file_raw=on");
    made(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "-o", &options, &external, "1M",
        ],
    );
    same(&external, "external data file");

    let backed = place("backed.qcow2");
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "external.qcow2",
        "-F",
        "qcow2",
    ];
    made("qemu-img", &[&create[..], &[backed.as_str()]].concat());
    same_as_json(&["info"], &backed);
    let info = text(&standfast(&["info", &backed]));
    assert_eq!(info, text(&run("qemu-img", &["info", &backed])));

    // Whoever gives it wrong options must not think that an image is corrupt, which 2 says.
    assert_eq!(
        standfast(&["check", "--no-such-option", &raw])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(
        standfast(&["check", "-U", "-r", "all", &backed])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(standfast(&["check", &place("none")]).status.code(), Some(1));
}

/// Chains as qemu-img shows them: bases shorter and longer than what is above, by all kinds of names.
#[test]
fn chains() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(place("sub")).unwrap();
    let base = place("base.img");
    made("qemu-img", &["create", "-q", "-f", "raw", &base, "1M"]);
    made(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 1 64k 320k", &base],
    );
    let overlay = |name: &str, backing: &str, format: &str, size: &str, writes: &[&str]| {
        let path = place(name);
        let create = [
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=16k,extended_l2=on",
        ];
        let backing = ["-b", backing, "-F", format, &path, size];
        made("qemu-img", &[&create[..], &backing[..]].concat());
        for write in writes {
            made("qemu-io", &["-f", "qcow2", "-c", write, &path]);
        }
        path
    };
    let writes = [
        "write -P 2 100k 5k",
        "write -z 200k 30k",
        "write -P 3 1900k 1k",
    ];
    let mid = overlay("mid", "base.img", "raw", "2M", &writes);
    let long = ["write -P 4 0 1k", "write -P 4 101k 1k", "discard 300k 40k"];
    let tops = [
        overlay("sub/top", "../mid", "qcow2", "3M", &long),
        overlay("short", "mid", "qcow2", "512k", &["write -P 5 400k 100k"]),
        overlay("absolute", &mid, "qcow2", "2M", &[]),
        overlay("protocol", &format!("file:{mid}"), "qcow2", "2M", &[]),
        overlay("file", "base.img", "file", "2M", &[]),
        overlay(
            "described",
            &format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{mid}"}}}}"#),
            "qcow2",
            "2M",
            &["write -P 6 1M 1M"],
        ),
    ];
    for top in &tops {
        same_as_json(&["info", "--backing-chain"], top);
        same_as_json(&["map"], top);
        for args in [&["info", "--backing-chain", top][..], &["map", top]] {
            let peer = run("qemu-img", args);
            assert_eq!(text(&standfast(args)), text(&peer), "{args:?}");
        }
    }
    let around = overlay("around", "./around", "qcow2", "1M", &[]);
    let gone = overlay("gone", "none", "raw", "1M", &[]);
    for args in [["info", "--backing-chain"], ["map", "-U"]] {
        for (name, words) in [
            (&around, "creates an infinite loop."),
            (&gone, "No such file or directory"),
        ] {
            let refused = standfast(&[&args[..], &[name.as_str()]].concat());
            assert_eq!(refused.status.code(), Some(1), "{name}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains(words), "{said}");
        }
    }
}

/// Names in a foreign image were printed as they were: a terminal did what they said. JSON has escapes of its own.
#[test]
fn names_are_shown_without_control_characters() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (name, foreign) = (at("a.qcow2"), "base\u{1b}[2J\nx");
    made("qemu-img", &["create", "-qfqcow2", &name, "1M"]);
    made("qemu-img", &["snapshot", "-c", "s\u{7}", &name]);
    made("qemu-img", &["bitmap", "--add", &name, "b\u{8}"]);
    made(
        "qemu-img",
        &["rebase", "-u", "-F", "raw", "-b", foreign, &name],
    );
    let shown = text(&standfast(&["info", &name]));
    let path = at("base");
    for line in [
        format!(r"backing file: base\u{{1b}}[2J\nx (actual path: {path}\u{{1b}}[2J\nx)"),
        r"            name: b\u{8}".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{shown}");
    }
    assert!(shown.contains(r"1         s\u{7} "), "{shown}");
    assert!(
        shown.chars().all(|one| one == '\n' || !one.is_control()),
        "{shown:?}"
    );
    let refused = standfast(&["info", "--backing-chain", &name]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    let words =
        format!("standfast: Could not open '{path}\\u{{1b}}[2J\nx': No such file or directory\n");
    assert_eq!(refused, words);
    let json = standfast(&["info", "--output=json", &name]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["backing-filename"], foreign);
}

fn same_as_json(args: &[&str], name: &str) {
    let all = [args, &["--output", "json", name]].concat();
    let (peer, ours) = (run("qemu-img", &all), standfast(&all));
    let value = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert_eq!(value(&ours), value(&peer), "{args:?} {name}");
}

#[test]
fn exit_statuses_and_repair() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    let name = path.to_str().unwrap();
    make(name, "compat=1.1,cluster_size=4k", 1);
    assert_eq!(standfast(&["check", name]).status.code(), Some(0));

    let block = number(&path, number(&path, 48));
    let leaked = 2000;
    put(&path, block + 2 * leaked, &[0, 1]);
    let length = path.metadata().unwrap().len();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len((leaked + 1) * 4096)
        .unwrap();
    let check = standfast(&["check", name]);
    assert_eq!(check.status.code(), Some(3));
    assert_eq!(text(&check), text(&run("qemu-img", &["check", name])));
    let repaired = standfast(&["check", "-r", "leaks", "--output", "json", name]);
    assert_eq!(repaired.status.code(), Some(0));
    let object: Value = serde_json::from_slice(&repaired.stdout).unwrap();
    assert_eq!(object["leaks-fixed"], 1);
    same(name, "repaired");
    assert!(
        path.metadata().unwrap().len() > length,
        "nothing is cut off"
    );

    // The refcount of the first cluster.
    put(&path, block, &[0, 0]);
    assert_eq!(standfast(&["check", name]).status.code(), Some(2));
    assert_eq!(
        standfast(&["check", "-q", "-r", "leaks", name])
            .status
            .code(),
        Some(2)
    );
    let repaired = standfast(&["check", "-r", "all", name]);
    assert_eq!(repaired.status.code(), Some(0));
    assert!(
        text(&repaired).contains("\n    1 corruptions\n"),
        "{}",
        text(&repaired)
    );
    same(name, "repaired");
}

/// An image that somebody writes is not looked at, unless that is wanted, and never repaired; one that somebody looks at
/// is not repaired.
#[test]
fn locks_are_qemus() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    let name = path.to_str().unwrap();
    made("qemu-img", &["create", "-q", "-f", "qcow2", name, "1M"]);
    let user = |args: &[&str]| {
        let mut user = Command::new("qemu-io");
        user.args(args)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut user = user.spawn().unwrap();
        user.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(user.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        user
    };
    let end = |mut user: std::process::Child| {
        drop(user.stdin.take());
        assert!(user.wait().unwrap().success());
    };
    let writer = user(&[]);
    for verb in ["info", "check", "map"] {
        let refused = standfast(&[verb, name]);
        assert_eq!(refused.status.code(), Some(1), "{verb}");
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        let peer = run("qemu-img", &[verb, name]);
        let peer = String::from_utf8_lossy(&peer.stderr).into_owned();
        assert_eq!(words.replace("standfast:", "qemu-img:"), peer);
        assert_eq!(
            standfast(&[verb, "-U", name]).status.code(),
            Some(0),
            "{verb}"
        );
    }
    end(writer);
    let reader = user(&["-r"]);
    assert_eq!(standfast(&["check", name]).status.code(), Some(0));
    assert_eq!(
        standfast(&["check", "-r", "all", name]).status.code(),
        Some(1)
    );
    end(reader);
    assert_eq!(
        standfast(&["check", "-r", "all", name]).status.code(),
        Some(0)
    );
}

fn number(path: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    u64::from_be_bytes(bytes)
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}
