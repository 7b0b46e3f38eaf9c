//! `standfast image create` beside `qemu-img create`: the same words, the same images, and refusals that say what helps.
//! Needs qemu-img.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

fn run(directory: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(directory).args(args).output().unwrap()
}

fn create(directory: &Path, args: &[&str]) -> Output {
    let all = [&["image", "create"], args].concat();
    run(directory, env!("CARGO_BIN_EXE_standfast"), &all)
}

fn qemu_img(directory: &Path, args: &[&str]) -> Output {
    run(directory, "qemu-img", args)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn info(directory: &Path) -> String {
    let output = qemu_img(directory, &["info", "-U", "--output=json", "a.img"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all = text(&output.stdout);
    let kept = all.lines().filter(|line| !line.contains("actual-size"));
    kept.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_same_words_make_the_same_images() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    assert!(
        qemu_img(at, &["create", "-qfraw", "base.raw", "5M"])
            .status
            .success()
    );
    assert!(
        qemu_img(at, &["create", "-qfqcow2", "base.qcow2", "7M"])
            .status
            .success()
    );
    for words in [
        &["a.img", "1000"][..],
        &["-fraw", "-o", "preallocation=full", "a.img", "1M"],
        &[
            "-fraw",
            "-o",
            "preallocation=falloc,nocow=on",
            "a.img",
            "1M",
        ],
        &["-fqcow2", "a.img", "1.5G"],
        &["-fqcow2", "a.img", "1000"],
        &["-fqcow2", "-o", "size=2M", "a.img"],
        &["-fqcow2", "-ocompat=0.10", "a.img", "1M"],
        &[
            "-fqcow2",
            "-ocompat=v3,lazy_refcounts=on,refcount_bits=1",
            "a.img",
            "1M",
        ],
        &[
            "-fqcow2",
            "-o",
            "extended_l2=on,cluster_size=128k",
            "-o",
            "compression_type=zstd",
            "a.img",
            "1M",
        ],
        &["-fqcow2", "-opreallocation=metadata", "a.img", "5M"],
        &[
            "-fqcow2",
            "-opreallocation=full,cluster_size=2M",
            "a.img",
            "5M",
        ],
        &["-fqcow2", "-bbase.raw", "-Fraw", "a.img"],
        &["-fqcow2", "-bbase.qcow2", "-Fqcow2", "a.img"],
        &[
            "-fqcow2",
            "-obacking_file=base.qcow2,backing_fmt=qcow2",
            "a.img",
            "9M",
        ],
        &["-fqcow2", "-u", "-bnot,there", "-Fraw", "a.img", "1M"],
        &[
            "-fqcow2",
            "-odata_file=a.data,data_file_raw=on",
            "a.img",
            "1M",
        ],
        &["-q", "-fqcow2", "-odata_file=a.data", "a.img", "1M"],
    ] {
        for name in ["a.img", "a.data"] {
            let _ = fs::remove_file(at.join(name));
        }
        let theirs = qemu_img(at, &[&["create"], words].concat());
        assert!(
            theirs.status.success(),
            "{words:?}: {}",
            text(&theirs.stderr)
        );
        let their_info = info(at);
        let theirs_is = fs::metadata(at.join("a.img")).unwrap();
        let their_blocks = theirs_is.blocks();
        // It begins anew, or is not there.
        if words.len() % 2 == 0 {
            fs::remove_file(at.join("a.img")).unwrap();
        }
        let ours = create(at, words);
        assert!(ours.status.success(), "{words:?}: {}", text(&ours.stderr));
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{words:?}");
        assert_eq!(info(at), their_info, "{words:?}");
        let ours_is = fs::metadata(at.join("a.img")).unwrap();
        let blocks = ours_is.blocks();
        // Whole sectors, of a raw image, too.
        let is_raw = !words.contains(&"-fqcow2");
        assert!(!is_raw || ours_is.len() == theirs_is.len(), "{words:?}");
        // At most a cluster more: that of the L1 table is written as a whole.
        assert!(
            blocks <= their_blocks + 4096,
            "{words:?}: {blocks}, {their_blocks}"
        );
        assert!(qemu_img(at, &["check", "-q", "a.img"]).status.code() != Some(2));
    }
}

#[test]
fn refusals_say_what_helps() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    fs::write(at.join("base.raw"), vec![1; 4096]).unwrap();
    assert!(run(at, "mkfifo", &["fifo"]).status.success());
    for (words, said) in [
        (&[][..], "standfast: Expecting image file name"),
        (
            &["a.img"],
            "standfast: a.img: Image creation needs a size parameter",
        ),
        (
            &["-fvmdk", "a.img", "1M"],
            "standfast: Unknown file format 'vmdk': raw and qcow2",
        ),
        (
            &["a.img", "1X"],
            "standfast: Invalid image size specified. You may use k, M",
        ),
        (
            &["a.img", "9E"],
            "standfast: Invalid image size specified. Must be between",
        ),
        (
            &["-osize=1M", "a.img", "1M"],
            "standfast: a.img: The image size must be specified only once",
        ),
        (
            &["-fqcow2", "-ofoo=1", "a.img", "1M"],
            "standfast: a.img: Invalid parameter 'foo'",
        ),
        (
            &["-fqcow2", "-oencryption=on", "a.img", "1M"],
            "standfast: a.img: encryption is not supported: let dm-crypt",
        ),
        (
            &["-fqcow2", "-bbase.raw", "a.img"],
            "standfast: a.img: Backing file specified without backing format: say -F raw",
        ),
        (
            &["-fqcow2", "-Fraw", "a.img", "1M"],
            "standfast: a.img: Backing format cannot be used without backing file",
        ),
        (
            &["-fraw", "-bbase.raw", "-Fraw", "a.img", "1M"],
            "standfast: a.img: Backing file not supported for file format 'raw'",
        ),
        (
            &["-fqcow2", "-bnope", "-Fraw", "a.img", "1M"],
            "standfast: a.img: Could not open 'nope': No such file or directory",
        ),
        (
            &["-fqcow2", "-bbase.raw", "-Fqcow2", "a.img"],
            "standfast: a.img: Could not open 'base.raw': Image is not in qcow2 format",
        ),
        (
            &["-fqcow2", "-bbase.raw", "-Fraw", "base.raw"],
            "standfast: base.raw: Error: Trying to create an image with the same filename",
        ),
        (
            &["-fqcow2", "-u", "-bx", "-Fraw", "a.img"],
            "standfast: a.img: Image creation needs",
        ),
        (
            &["-fqcow2", "-bjson:{}", "-Fraw", "a.img"],
            "standfast: a.img: Could not open 'json:{}': Parameter 'file' is missing\nCould not open backing image.",
        ),
        (
            &["-fqcow2", "-bbase.raw", "-Fvmdk", "a.img"],
            "standfast: a.img: Unknown backing format 'vmdk': say the size, and -u",
        ),
        (
            &["fifo", "1M"],
            "standfast: fifo: Could not create 'fifo': it is there, and no regular file",
        ),
        (
            &["-fqcow2", "/dev/null", "1M"],
            "standfast: /dev/null: Could not create '/dev/null': it is there, and no regular file",
        ),
        (
            &["-fqcow2", ".", "1M"],
            "standfast: .: Could not create '.': Is a directory\n",
        ),
        (
            &["-fqcow2", "-ocluster_size=3", "a.img", "1M"],
            "standfast: a.img: Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            &["-fraw", "-opreallocation=metadata", "a.img", "1M"],
            "standfast: a.img: Unsupported preallocation mode: metadata",
        ),
        (
            &["-fqcow2", "-odata_file=a.img", "a.img", "1M"],
            "standfast: a.img: the image cannot be its own data file",
        ),
        (
            &["-fqcow2", "nowhere/a.img", "1M"],
            "standfast: nowhere/a.img: Could not create 'nowhere/a.img': No such file",
        ),
    ] {
        let output = create(at, words);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
        assert!(stderr.starts_with(said), "{words:?}: {stderr}");
        assert!(
            words.contains(&"-fraw") || !at.join("a.img").exists(),
            "{words:?}"
        );
        let _ = fs::remove_file(at.join("a.img"));
    }
    assert_eq!(fs::read(at.join("base.raw")).unwrap(), vec![1; 4096]);
    let help = create(at, &["-fqcow2", "-ohelp"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("  lazy_refcounts   - "));
}

/// Only the backing file itself was looked at: an image was made on a chain that cannot be opened, or that it closed to a loop.
#[test]
fn all_that_is_behind_the_backing_file_is_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let make = |words: &[&str]| {
        let output = create(at, &[&["-q", "-fqcow2"], words].concat());
        let status = output.status.success();
        assert!(status, "{words:?}: {}", text(&output.stderr));
    };
    make(&["base", "3M"]);
    let before = fs::read(at.join("base")).unwrap();
    make(&["-bbase", "-Fqcow2", "mid"]);
    for (name, backing) in [("gone", "nope"), ("loop", "loop2"), ("loop2", "./loop")] {
        make(&["-u", "-b", backing, "-Fqcow2", name, "1M"]);
    }
    for (words, said) in [
        (
            &["-bgone", "-Fqcow2", "a.img"][..],
            "a.img: Could not open 'nope': No such file or directory\nCould not open backing image.\n",
        ),
        (
            &["-bloop", "-Fqcow2", "a.img", "1M"],
            "a.img: Backing file './loop' creates an infinite loop.\nCould not open backing image.\n",
        ),
        (
            &["-bmid", "-Fqcow2", "base"],
            "base: Backing file 'base' creates an infinite loop.\nCould not open backing image.\n",
        ),
    ] {
        let output = create(at, &[&["-fqcow2"], words].concat());
        assert_eq!(text(&output.stderr), format!("standfast: {said}"));
        assert_eq!(output.status.code(), Some(1));
        assert!(!at.join("a.img").exists());
    }
    assert_eq!(fs::read(at.join("base")).unwrap(), before);
    for backing in [
        "mid",
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"mid"}}"#,
    ] {
        make(&["-b", backing, "-Fqcow2", "a.img"]);
        assert!(info(at).contains(r#""virtual-size": 3145728"#));
    }
    make(&["-u", "-bgone", "-Fqcow2", "a.img", "1M"]);
}

/// What is in use stays as it is; want of room leaves no file behind.
#[test]
fn what_cannot_be_made_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let tmpfs = testkit::Tmpfs::new(4 << 20).expect("root");
    let at = tmpfs.path();
    let words = ["-fqcow2", "-opreallocation=falloc", "a.img", "64M"];
    let output = create(at, &words);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("No space left on device"), "{stderr}");
    assert!(!at.join("a.img").exists());

    let at = place.path();
    assert!(
        create(at, &["-q", "-fqcow2", "a.img", "1M"])
            .status
            .success()
    );
    let before = fs::read(at.join("a.img")).unwrap();
    let mut user = Command::new("qemu-io");
    let user = user.args([
        "-fqcow2",
        "-c",
        "write -q 0 64k",
        "-c",
        "sleep 600000",
        "a.img",
    ]);
    let mut user = user.current_dir(at).spawn().unwrap();
    while fs::read(at.join("a.img")).unwrap() == before {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = create(at, &["-fqcow2", "a.img", "1M"]);
    user.kill().unwrap();
    user.wait().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("Failed to get "), "{stderr}");
}
