//! A daemon's life: what it makes, whom it does not disturb, and what it leaves behind.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{DISK_BYTES, LIMIT_BYTES, PATIENCE, Place, eventually, refused, standfastd, stderr};
use frontend::{Disk, Options, Request};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{Daemon, Qmp};

fn mode(place: &Place, name: &str) -> u32 {
    let metadata = std::fs::metadata(place.file(name)).unwrap();
    metadata.permissions().mode() & 0o777
}

fn start(place: &Place) -> Daemon {
    let daemon = place.with_disk(standfastd()).start().unwrap();
    eventually("the pid file", || place.file("pid").exists());
    daemon
}

#[test]
fn every_signal_ends_it_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::new();
        let mut daemon = start(&place);
        let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
        for name in ["pid", "vda.sock", "qmp.sock"] {
            assert_eq!(mode(&place, name), 0o600, "{name}");
        }
        let pid = std::fs::read_to_string(place.file("pid")).unwrap();
        assert_eq!(pid, format!("{}\n", daemon.pid()));
        daemon.signal(signal).unwrap();
        let shutdown = qmp.wait_event("SHUTDOWN", PATIENCE).unwrap();
        assert_eq!(
            shutdown.data,
            json!({"guest": false, "reason": "host-signal"})
        );
        let deleted = qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE).unwrap();
        assert_eq!(deleted.data, json!({"id": "vda"}));
        assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
        assert_eq!(place.files(), ["disk.img"], "{signal:?}");
    }
}

#[test]
fn quit_ends_it_in_order() {
    let place = Place::new();
    let mut daemon = start(&place);
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    assert_eq!(qmp.execute("quit", Value::Null).unwrap(), json!({}));
    let shutdown = qmp.wait_event("SHUTDOWN", PATIENCE).unwrap();
    assert_eq!(shutdown.data["reason"], "host-qmp-quit");
    qmp.wait_event("BLOCK_EXPORT_DELETED", PATIENCE).unwrap();
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.files(), ["disk.img"]);
}

/// Writes behind the limit; the write is held.
fn fill(place: &Place) -> Disk {
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let data = vec![0xa5; 64 << 10];
    let last = DISK_BYTES / data.len() as u64;
    for number in 0..last {
        let sector = number * (data.len() as u64 / 512);
        disk.submit(
            0,
            Request::Write {
                sector,
                data: &data,
            },
        )
        .unwrap();
    }
    disk.kick(0).unwrap();
    disk
}

#[test]
fn what_is_held_is_neither_completed_nor_failed_at_the_end() {
    let place = Place::new();
    let mut daemon = start(&place);
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut disk = fill(&place);
    qmp.wait_event("STOP", PATIENCE).unwrap();
    // Those before the limit end well.
    let mut done = 0;
    while let Some(completion) = disk.wait(0, Duration::from_millis(300)).unwrap() {
        assert!(completion.is_ok());
        done += 1;
    }
    assert!(done <= LIMIT_BYTES / (64 << 10), "{done} writes fit");
    daemon.signal(Signal::TERM).unwrap();
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
    assert!(disk.poll(0).is_none(), "completed at the end");
    let said = daemon.stderr();
    let warns = |line: &str| {
        line.contains("WARN") && line.contains("export 'vda'") && line.contains("held request")
    };
    assert!(said.lines().any(warns), "{said}");
}

/// Storage that hangs must not keep whoever wants the daemon gone.
#[test]
fn a_second_signal_does_not_wait_for_storage() {
    let place = Place::new();
    let export = format!(
        "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={}",
        place.name("vda.sock")
    );
    let mut daemon = standfastd()
        .args(["--blockdev", "null-co,node-name=n,latency-ns=600000000000"])
        .args(["--export", &export])
        .socket(place.file("vda.sock"))
        .start()
        .unwrap();
    daemon.wait_for_stderr("is ready", PATIENCE).unwrap();
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let read = Request::Read {
        sector: 0,
        len: 512,
    };
    disk.submit(0, read).unwrap();
    disk.kick(0).unwrap();
    // It is in flight, and no signal can take it back.
    assert!(disk.wait(0, Duration::from_millis(300)).unwrap().is_none());
    daemon.signal(Signal::TERM).unwrap();
    daemon.wait_for_stderr("shutting down", PATIENCE).unwrap();
    // Right after the first one it is none: `timeout` and systemd send two.
    daemon.signal(Signal::TERM).unwrap();
    daemon.signal(Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(daemon.try_wait().unwrap().is_none(), "it does not wait");
    daemon.signal(Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(daemon.try_wait().unwrap().is_none(), "SIGHUP is no haste");
    daemon.signal(Signal::INT).unwrap();
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(1));
    assert!(daemon.stderr().contains("ending at once"));
}

/// `stop` was answered before the state file had it: a daemon that was killed right then came back
/// `running`, and started what an administrator had been told would wait for `cont`.
#[test]
fn what_stop_has_answered_a_crash_does_not_forget() {
    let place = Place::new();
    let state = place.name("state");
    let chardev = format!(
        "socket,id=q,path={},server=on,wait=off",
        place.name("qmp.sock")
    );
    let start = || {
        let daemon = standfastd()
            .args(["--state-dir", &state, "--chardev", &chardev])
            .args(["--monitor", "q"])
            .socket(place.file("qmp.sock"))
            .start()
            .unwrap();
        (daemon, Qmp::connect(place.file("qmp.sock")).unwrap())
    };
    for _ in 0..5 {
        let (mut daemon, mut qmp) = start();
        qmp.execute("cont", Value::Null).unwrap();
        qmp.execute("stop", Value::Null).unwrap();
        daemon.kill().unwrap();
        let (mut daemon, mut qmp) = start();
        let status = qmp.execute("query-status", Value::Null).unwrap();
        assert_eq!(status["status"], "paused");
        daemon.kill().unwrap();
    }
}

#[test]
fn nobody_takes_over_what_is_in_use() {
    let place = Place::new();
    let mut daemon = start(&place);
    let (qmp, disk, pid) = (
        place.name("qmp.sock"),
        place.name("vda.sock"),
        place.name("pid"),
    );
    let in_use = |output: std::process::Output, path: &str| {
        let said = stderr(&output);
        let text = format!("Failed to bind socket to {path}: Address already in use");
        assert!(said.contains(&text), "{said}");
        assert_eq!(output.status.code(), Some(1));
    };
    for path in [&qmp, &disk] {
        let chardev = format!("socket,id=c,path={path},server=on,wait=off");
        in_use(refused(&["--chardev", &chardev]), path);
        let export = format!("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={path}");
        in_use(
            refused(&["--blockdev=null-co,node-name=n", "--export", &export]),
            path,
        );
    }
    let output = refused(&["--pidfile", &pid]);
    let said = stderr(&output);
    assert!(said.contains("Cannot lock pid file"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    let text = std::fs::read_to_string(&pid).unwrap();
    assert_eq!(
        text,
        format!("{}\n", daemon.pid()),
        "the pid file is as it was"
    );

    let image = place.name("disk.img");
    let blockdev = format!("file,node-name=n,filename={image}");
    let other = place.name("other.sock");
    let export =
        format!("vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path={other}");
    let output = refused(&["--blockdev", &blockdev, "--export", &export]);
    let said = stderr(&output);
    let expected = format!(
        "standfastd: --export {export}: Failed to get \"write\" lock on '{image}'\n\
         Is another process using the image [{image}]?\n"
    );
    assert!(said.contains(&expected), "{said}");
    assert_eq!(output.status.code(), Some(1));

    // It has not noticed.
    let mut monitor = Qmp::connect(&qmp).unwrap();
    let status = monitor.execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "running");
    drop(Disk::connect(&disk, Options::default()).unwrap());
    assert_eq!(daemon.terminate(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.files(), ["disk.img"]);
}

#[test]
fn what_a_killed_daemon_leaves_is_replaced() {
    let place = Place::new();
    let mut daemon = start(&place);
    daemon.kill().unwrap();
    let left = [
        "disk.img",
        "pid",
        "qmp.sock",
        "qmp.sock.lock",
        "vda.sock",
        "vda.sock.lock",
    ];
    assert_eq!(place.files(), left);
    // A socket that another program left has no lock.
    std::fs::remove_file(place.file("qmp.sock.lock")).unwrap();
    let mut daemon = start(&place);
    Qmp::connect(place.file("qmp.sock")).unwrap();
    assert_eq!(daemon.terminate(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.files(), ["disk.img"]);
}

#[test]
fn a_file_is_not_taken_for_a_stale_socket() {
    let place = Place::new();
    std::fs::write(place.file("precious"), "data").unwrap();
    let path = place.name("precious");
    let chardev = format!("socket,id=c,path={path},server=on,wait=off");
    let said = stderr(&refused(&["--chardev", &chardev]));
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn wait_on_waits_for_the_first_client() {
    let place = Place::new();
    let chardev = format!("socket,id=c,path={},server=on", place.name("qmp.sock"));
    let mut daemon = standfastd()
        .args(["--chardev", &chardev, "--monitor", "c,pretty=on"])
        .args(["--pidfile", &place.name("pid")])
        .socket(place.file("qmp.sock"))
        .start()
        .unwrap();
    daemon
        .wait_for_stderr("waiting for connection", PATIENCE)
        .unwrap();
    assert!(!place.file("pid").exists(), "it does not wait");
    let mut first = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut second = Qmp::connect(place.file("qmp.sock")).unwrap();
    for qmp in [&mut first, &mut second] {
        qmp.execute("query-version", Value::Null).unwrap();
    }
    drop(first);
    second.execute("quit", Value::Null).unwrap();
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_signal_ends_it_while_it_waits() {
    let place = Place::new();
    let chardev = format!("socket,id=c,path={},server=on", place.name("qmp.sock"));
    let mut daemon = standfastd()
        .args(["--chardev", &chardev])
        .socket(place.file("qmp.sock"))
        .start()
        .unwrap();
    daemon
        .wait_for_stderr("waiting for connection", PATIENCE)
        .unwrap();
    assert_eq!(daemon.terminate(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_monitor_on_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .args(["--chardev", "stdio,id=c", "--monitor", "c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let commands = "{'execute':'qmp_capabilities'}{'execute':'quit'}";
    stdin.write_all(commands.as_bytes()).unwrap();
    // The end of the input would end the monitor, not the daemon: it stays open.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert!(
        lines[0]["QMP"]["version"]["package"]
            .as_str()
            .unwrap()
            .starts_with("standfast-")
    );
    assert_eq!(lines[1], json!({"return": {}}));
    assert_eq!(lines[2], json!({"return": {}}));
    assert_eq!(lines[3]["event"], "SHUTDOWN");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stdin);
}

#[test]
fn a_monitor_that_connects() {
    let place = Place::new();
    let listener = UnixListener::bind(place.file("manager")).unwrap();
    let chardev = format!("socket,id=c,path={}", place.name("manager"));
    let mut daemon = standfastd()
        .args(["--chardev", &chardev, "--monitor", "c"])
        .start()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let greeting: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
    assert_eq!(daemon.terminate(PATIENCE).unwrap().code(), Some(0));
    assert!(
        lines.next().is_none(),
        "the connection ends with the daemon"
    );
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_standfastd"))
        .env("STANDFAST_LOG", "a=b=c")
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(
        said.starts_with("standfastd: STANDFAST_LOG='a=b=c' is not a log filter"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// A stop policy cannot hold what the page cache loses: whoever configures that is told. On tmpfs,
/// where writes fail at once, there is nothing to tell.
#[test]
fn a_buffered_disk_under_a_stop_policy_is_warned_of() {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    // Not in the temporary directory, which often is a tmpfs.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![0; 4096]).unwrap();
    let node = format!("file,node-name=n,filename={}", image.display());
    let socket = dir.path().join("vda.sock");
    let export = format!(
        "vhost-user-blk,id=vda,node-name=n,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let on_tmpfs = rustix::fs::statfs(dir.path()).unwrap().f_type == TMPFS_MAGIC;
    for (policy, warned) in [("werror=stop", !on_tmpfs), ("werror=report", false)] {
        let export = format!("{export},{policy}");
        let mut daemon = standfastd()
            .args(["--blockdev", &node, "--export", &export])
            .socket(&socket)
            .start()
            .unwrap();
        daemon.wait_for_stderr("is ready", PATIENCE).unwrap();
        let said = daemon.stderr();
        let warning = said
            .lines()
            .any(|line| line.contains("WARN") && line.contains("'vda'"));
        assert_eq!(warning, warned, "{policy}\n{said}");
        assert_eq!(daemon.terminate(PATIENCE).unwrap().code(), Some(0));
    }
}

/// An export on an abstract name, which leaves no file and is not taken from whoever has it.
#[test]
fn an_abstract_name_is_listened_on() {
    let name = format!("standfast-test-{}", std::process::id());
    let export = |id: &str| {
        format!(
            "vhost-user-blk,id={id},node-name=n,addr.type=unix,addr.path={name},addr.abstract=on"
        )
    };
    let node = ["--blockdev", "null-co,node-name=n,size=1048576"];
    let mut daemon = Daemon::builder(env!("CARGO_BIN_EXE_standfastd"))
        .args(node)
        .args(["--export", &export("e")])
        .start()
        .unwrap();
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    eventually("somebody listens", || {
        UnixStream::connect_addr(&address).is_ok()
    });
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // GET_FEATURES, of version 1, without content; the answer has 8 bytes.
    let words = [1_u32, 1, 0].map(u32::to_ne_bytes);
    client.write_all(words.as_flattened()).unwrap();
    let mut answer = [0; 20];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], words[0]);
    let export = export("f");
    let said = stderr(&refused(&[node[0], node[1], "--export", &export]));
    assert!(
        said.ends_with(&format!(
            "Failed to bind socket to {name}: Address already in use\n"
        )),
        "{said}"
    );
    daemon.kill().unwrap();
}
