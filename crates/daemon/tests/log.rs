//! The log stops nobody: neither a stderr that nobody reads, nor somebody who causes many lines.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, eventually, standfastd};
use frontend::{Disk, Options, Request};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use testkit::Qmp;

/// A pipe in which there is no room.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap() - rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

fn export(place: &Place, name: &str) -> String {
    let socket = place.name(&format!("{name}.sock"));
    format!(
        "vhost-user-blk,id={name},node-name={name},writable=on,addr.type=unix,addr.path={socket}"
    )
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The log collector had stopped. When the pipe was full, run control stopped at its next line, and
/// with it the monitor and the signals; then every disk whose guest broke a queue.
#[test]
fn nobody_reads_stderr_and_everything_goes_on() {
    let place = Place::new();
    let (reader, writer) = full_pipe();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"));
    daemon.env("STANDFAST_LOG", "warn,standfast=info");
    for name in ["a", "b"] {
        daemon.args(["--blockdev", &format!("null-co,node-name={name}")]);
        daemon.args(["--export", &export(&place, name)]);
    }
    let chardev = format!("socket,id=c,path={},server=on,wait=off", place.name("q"));
    daemon.args(["--chardev", &chardev, "--monitor", "c"]);
    let daemon = daemon.stdin(Stdio::null()).stderr(writer).spawn().unwrap();
    let mut daemon = Killed(daemon);
    eventually("the monitor's socket", || {
        UnixStream::connect(place.file("q")).is_ok()
    });
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    for _ in 0..100 {
        qmp.execute("stop", Value::Null).unwrap();
        qmp.execute("cont", Value::Null).unwrap();
    }
    // An iothread says that a queue is broken.
    let mut first = Disk::connect(place.file("a.sock"), Options::default()).unwrap();
    let mut second = Disk::connect(place.file("b.sock"), Options::default()).unwrap();
    first.ring_mut(0).unwrap().set_avail_index(5000);
    first.kick_always(0).unwrap();
    qmp.wait_event("X_BLOCK_EXPORT_QUEUE_BROKEN", PATIENCE)
        .unwrap();
    let data = [0; 512];
    let write = Request::Write {
        sector: 0,
        data: &data,
    };
    second.submit(0, write).unwrap();
    second.kick(0).unwrap();
    assert!(second.wait(0, PATIENCE).unwrap().unwrap().is_ok());
    let pid = i32::try_from(daemon.0.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    drop(reader);
}

/// What was logged while nobody read comes when somebody does, up to the very last line.
#[test]
fn a_reader_that_comes_back_gets_what_has_waited() {
    let place = Place::new();
    let (reader, writer) = full_pipe();
    let chardev = format!("socket,id=c,path={},server=on,wait=off", place.name("q"));
    let daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .env("STANDFAST_LOG", "warn,standfast=info")
        .args(["--chardev", &chardev, "--monitor", "c"])
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut daemon = Killed(daemon);
    eventually("the monitor's socket", || {
        UnixStream::connect(place.file("q")).is_ok()
    });
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    qmp.execute("stop", Value::Null).unwrap();
    let flags = rustix::fs::fcntl_getfl(&reader).unwrap() - rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&reader, flags).unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    qmp.execute("quit", Value::Null).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    let text = reading.join().unwrap();
    for line in ["is ready", "stopped: no request", "quit: shutting down"] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}

/// A VMM that sends nonsense and connects again made 19,000 lines a second.
#[test]
fn a_client_that_causes_many_lines_makes_few() {
    const CONNECTIONS: usize = 300;
    let place = Place::new();
    let mut daemon = standfastd();
    for name in ["a", "b"] {
        daemon = daemon
            .args(["--blockdev", &format!("null-co,node-name={name}")])
            .args(["--export", &export(&place, name)])
            .socket(place.file(&format!("{name}.sock")));
    }
    let mut daemon = daemon.start().unwrap();
    let nonsense = |name: &str| {
        let mut client = UnixStream::connect(place.file(&format!("{name}.sock"))).unwrap();
        client.write_all(&[0xff; 12]).unwrap();
        // It ends without an answer.
        let _ = client.read(&mut [0; 1]);
    };
    let start = Instant::now();
    for _ in 0..CONNECTIONS {
        nonsense("a");
    }
    nonsense("b");
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    daemon
        .wait_for_stderr("client disconnected", PATIENCE)
        .unwrap();
    daemon.terminate(PATIENCE).unwrap();
    let said = daemon.stderr();
    let lines = |text: &str| said.lines().filter(|line| line.contains(text)).count();
    let written = said
        .lines()
        .filter(|line| line.contains("ERROR") && line.contains("export=\"a\""))
        .count();
    assert!((10..=12 + seconds).contains(&written), "{written}:\n{said}");
    assert_eq!(lines("export=\"b\""), 1, "{said}");
    // At the end at the latest it is said how many there were.
    let left: usize = said
        .lines()
        .filter_map(|line| {
            line.split_once(" more line")?
                .0
                .rsplit(' ')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .sum();
    assert_eq!(written + left, CONNECTIONS, "{said}");
}
