//! The back-end program conventions of vhost-user.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use common::{PATIENCE, Place, stderr, stdout};
use frontend::{Disk, Options, Request};
use serde_json::{Value, json};
use testkit::Daemon;

const PROGRAM: &str = env!("CARGO_BIN_EXE_standfast-vhost-user-blk");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

#[test]
fn it_says_what_it_can() {
    // Whatever else is said.
    for args in [
        &["--print-capabilities"][..],
        &["--fd=99", "--print-capabilities", "--frob"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        let said: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(
            said,
            json!({"type": "block", "features": ["read-only", "blk-file"]})
        );
    }
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../share/qemu/vhost-user/50-standfast-vhost-user-blk.json"
    );
    let described: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(described["type"], "block");
    let binary = described["binary"].as_str().unwrap();
    assert!(binary.ends_with("/standfast-vhost-user-blk"), "{binary}");
}

#[test]
fn mistakes() {
    for (args, text) in [
        (&["--socket-path=/s"][..], "--blk-file is missing"),
        (
            &["--blk-file=/dev/null"],
            "--socket-path or --fd is missing",
        ),
        (
            &["--blk-file=/dev/null", "--fd=3", "--socket-path=/s"],
            "--socket-path and --fd are mutually exclusive",
        ),
        (
            &["--blk-file=/nonexistent", "--fd=3"],
            "Could not open '/nonexistent': No such file or directory",
        ),
        (
            &["--blk-file=/dev/null", "--fd=x"],
            "--fd x: expected the number of a descriptor",
        ),
        (
            &["--blk-file=/dev/null", "--socket-path="],
            "--socket-path is empty",
        ),
        // These were told of as options of the daemon, by the daemon's name.
        (
            &["--blk-file=/", "--socket-path=/nonexistent/s"],
            "--blk-file /: Could not open '/': Is a directory",
        ),
        (&["--frob"], "unrecognized option '--frob'"),
        (&["x"], "x: Unexpected argument"),
    ] {
        let output = run(args);
        assert_eq!(
            stderr(&output),
            format!("standfast-vhost-user-blk: {text}\n")
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

fn read(disk: &mut Disk) -> Vec<u8> {
    let request = Request::Read {
        sector: 0,
        len: 512,
    };
    let done = disk.execute(0, request, PATIENCE).unwrap();
    assert!(done.is_ok(), "{done:?}");
    done.data
}

#[test]
fn an_image_is_served() {
    let place = Place::new();
    // Names are taken as they are.
    let (image, socket) = (place.name("disk,1=2.img"), place.name("s"));
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let [blk_file, socket_path] = [
        format!("--blk-file={image}"),
        format!("--socket-path={socket}"),
    ];
    for read_only in [true, false] {
        let mut program = Daemon::builder(PROGRAM)
            .timeout(PATIENCE)
            .args([&blk_file, &socket_path]);
        if read_only {
            program = program.arg("--read-only");
        }
        let mut program = program.socket(&socket).start().unwrap();
        let mut disk = Disk::connect(&socket, Options::default()).unwrap();
        assert_eq!(read(&mut disk), [7; 512]);
        let data = [8; 512];
        let write = Request::Write {
            sector: 1,
            data: &data,
        };
        let done = disk.execute(0, write, PATIENCE).unwrap();
        assert_eq!(done.is_ok(), !read_only, "{done:?}");
        drop(disk);
        assert_eq!(program.terminate(PATIENCE).unwrap().code(), Some(0));
    }
    assert_eq!(fs::read(&image).unwrap()[512..1024], [8; 512]);
    assert_eq!(place.files(), ["disk,1=2.img"]);
}

/// The socket is passed as a descriptor; a shell passes its own on.
#[test]
fn a_socket_is_passed() {
    let place = Place::new();
    fs::write(place.file("image"), vec![7; 1 << 20]).unwrap();
    let listener = UnixListener::bind(place.file("s")).unwrap();
    let passed = rustix::io::dup(&listener).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&passed);
    let program = Daemon::builder(PROGRAM)
        .timeout(PATIENCE)
        .arg(format!("--fd={number}"))
        .arg(format!("--blk-file={}", place.name("image")))
        .start()
        .unwrap();
    let mut disk = Disk::connect(place.file("s"), Options::default()).unwrap();
    assert_eq!(read(&mut disk), [7; 512]);
    drop((disk, program, passed));
}
