//! The daemon in the background.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{PATIENCE, Place, eventually, stderr};
use frontend::{Disk, Options, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::Qmp;

/// Runs the command to its end; what it has written is read to its end, too, so that nobody may still have
/// the pipes.
fn run(place: &Place, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .args(args)
        .current_dir(place.file(""))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

struct Background(Pid);

impl Background {
    fn new(pidfile: &Path) -> Self {
        let pid = fs::read_to_string(pidfile).unwrap();
        Self(Pid::from_raw(pid.trim().parse().unwrap()).unwrap())
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.as_raw_nonzero())
    }

    fn is_there(&self) -> bool {
        // Whoever has become its parent may not have waited for it.
        let status = fs::read_to_string(self.proc("stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}

/// The session as /proc tells it: 0 for one that began outside of our PID namespace, where
/// `rustix::process::getsid` panics (a test run in a container ended by that).
fn session(stat: &str) -> u32 {
    let stat = fs::read_to_string(stat).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3);
    session.unwrap().parse().unwrap()
}

/// What Proxmox does: the command returns, and the monitor is there.
#[test]
fn the_command_returns_when_all_is_there() {
    let place = Place::new();
    // Relative names count where the command was run.
    let chardev = "socket,id=qmp,path=qmp.sock,server=on,wait=off";
    let output = run(
        &place,
        &[
            "--daemonize",
            "--chardev",
            chardev,
            "--monitor",
            "chardev=qmp,mode=control",
            "--pidfile",
            "pid",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let daemon = Background::new(&place.file("pid"));
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    assert_eq!(fs::read_link(daemon.proc("cwd")).unwrap(), Path::new("/"));
    for fd in 0..3 {
        let name = fs::read_link(daemon.proc(&format!("fd/{fd}"))).unwrap();
        assert_eq!(name, Path::new("/dev/null"), "descriptor {fd}");
    }
    assert_ne!(session(&daemon.proc("stat")), session("/proc/self/stat"));
    // A second one is told why it cannot be.
    let second = run(&place, &["--daemonize", "--pidfile", "pid"]);
    assert_eq!(second.status.code(), Some(1));
    let said = stderr(&second);
    assert!(
        said.starts_with(
            "standfastd: cannot create PID file: Cannot lock pid file: Resource temporarily \
             unavailable\n"
        ),
        "{said}"
    );
    qmp.execute("quit", Value::Null).unwrap();
    eventually("its end", || !daemon.is_there());
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_start_that_fails_is_told() {
    let place = Place::new();
    let output = run(
        &place,
        &["--daemonize", "--pidfile", "pid", "--monitor", "nosuch"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "standfastd: --monitor nosuch: chardev \"nosuch\" not found\n"
    );
    assert_eq!(place.files(), Vec::<String>::new());
    let output = run(&place, &["--daemonize", "--frob"]);
    assert_eq!(
        stderr(&output),
        "standfastd: unrecognized option '--frob'\n"
    );
}

/// The fork comes before the first thread. A disk works afterwards: iothreads, rings and all.
#[test]
fn a_disk_in_the_background() {
    let place = Place::new();
    fs::write(place.file("disk.img"), vec![7; 1 << 20]).unwrap();
    let output = run(
        &place,
        &[
            "--daemonize",
            "--blockdev",
            "file,node-name=d,filename=disk.img",
            "--export",
            "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path=e.sock",
            "--pidfile",
            "pid",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let daemon = Background::new(&place.file("pid"));
    let mut disk = Disk::connect(place.file("e.sock"), Options::default()).unwrap();
    let read = Request::Read {
        sector: 8,
        len: 4096,
    };
    let done = disk.execute(0, read, PATIENCE).unwrap();
    assert!(done.is_ok(), "{done:?}");
    drop(disk);
    kill_process(daemon.0, Signal::TERM).unwrap();
    eventually("its end", || !daemon.is_there());
    assert_eq!(place.files(), ["disk.img"]);
    assert!(UnixStream::connect(place.file("e.sock")).is_err());
}
