//! `standfast`, against a running daemon and against none.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use frontend::{Disk, Options, Request};
use serde_json::{Value, json};
use testkit::daemon::Builder;
use testkit::place::{DISK_BYTES, PATIENCE, Place, eventually, stderr, stdout};
use testkit::{Daemon, Qmp};

/// The daemon that the tool has in itself, for the demo: cargo builds no program of another package
/// for the tests of this one. It ends with the thread that has started it.
fn daemon(place: &Place) -> Builder {
    let builder = Daemon::builder(env!("CARGO_BIN_EXE_standfast")).arg("demo-daemon");
    place.with_disk(builder.timeout(PATIENCE))
}

/// Runs the tool.
fn standfast(args: &[&str]) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_standfast"));
    tool.args(args).output().unwrap()
}

/// `standfast events`, running.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    /// Starts it and waits until it follows.
    fn start(args: &[&str]) -> Self {
        let socket = args.last().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_standfast"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut qmp = Qmp::connect(socket).unwrap();
        eventually("it follows", || {
            qmp.execute("stop", Value::Null).unwrap();
            qmp.execute("cont", Value::Null).unwrap();
            lines.recv_timeout(Duration::from_millis(50)).is_ok()
        });
        // What else has come of it; generously, because nothing says that all has come.
        while lines.recv_timeout(Duration::from_secs(1)).is_ok() {}
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It has ended unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn status_events_cont_and_stop() {
    let place = Place::new();
    let _daemon = daemon(&place).start().unwrap();
    let socket = place.name("qmp.sock");
    let socket = socket.as_str();

    let mut follower = Follower::start(&["events", socket]);
    let mut event = |name: &str| {
        loop {
            let line = follower.line();
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
            if rest.starts_with(name) {
                return rest.to_owned();
            }
        }
    };

    let text = stdout(&standfast(&["status", socket]));
    assert!(text.starts_with("Run state: running"), "{text}");
    assert!(
        text.contains("werror=stop rerror=report hold-scope=vm"),
        "{text}"
    );

    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let data = vec![0x5a; usize::try_from(DISK_BYTES).unwrap()];
    disk.submit(
        0,
        Request::Write {
            sector: 0,
            data: &data,
        },
    )
    .unwrap();
    disk.kick(0).unwrap();
    eventually("the write is held", || {
        let held = standfast(&["qmp", socket, "x-query-held"]);
        let held: Value = serde_json::from_str(&stdout(&held)).unwrap();
        held.as_array().unwrap().len() == 1
    });
    let failed = event("BLOCK_IO_ERROR");
    for word in [
        "device=vda",
        "operation=write",
        "action=stop",
        "nospace=true",
    ] {
        assert!(failed.contains(word), "{failed}");
    }
    event("STOP");

    let text = stdout(&standfast(&["status", socket]));
    assert!(text.starts_with("Run state: io-error"), "{text}");
    let row = text.lines().find(|line| line.starts_with("vda ")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(
        cells[..6],
        ["vda", "disk0", "1", "MiB", "nospace", "1"][..6],
        "{row}"
    );
    assert!(
        text.contains("No space left on device: write of 1048576 bytes at offset 0"),
        "{text}"
    );
    let all = stdout(&standfast(&["status", "--json", socket]));
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all["status"]["status"], "io-error");
    assert_eq!(all["disks"][0]["io-status"], "nospace");

    let output = standfast(&["qmp", socket, "x-quota-set", "node-name=disk0", "limit=4M"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = standfast(&["cont", socket]);
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(0), String::new())
    );
    event("RESUME");
    let done = disk.wait(0, PATIENCE).unwrap().unwrap();
    assert!(done.is_ok());

    assert!(standfast(&["stop", socket]).status.success());
    let text = stdout(&standfast(&["status", socket]));
    assert!(text.starts_with("Run state: paused"), "{text}");
    event("STOP");

    Qmp::connect(socket)
        .unwrap()
        .execute("quit", Value::Null)
        .unwrap();
    event("SHUTDOWN");
    assert_eq!(follower.child.wait().unwrap().code(), Some(0));
}

#[test]
fn events_as_json() {
    let place = Place::new();
    let _daemon = daemon(&place).start().unwrap();
    let mut follower = Follower::start(&["events", "--json", &place.name("qmp.sock")]);
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    qmp.execute("stop", Value::Null).unwrap();
    let event: Value = serde_json::from_str(&follower.line()).unwrap();
    assert_eq!(event["event"], "STOP");
    assert!(event["timestamp"]["seconds"].is_i64());
    qmp.execute("quit", Value::Null).unwrap();
    let event: Value = serde_json::from_str(&follower.line()).unwrap();
    assert_eq!(event["event"], "SHUTDOWN");
    assert_eq!(follower.child.wait().unwrap().code(), Some(0));
}

#[test]
fn any_command() {
    let place = Place::new();
    let _daemon = daemon(&place).start().unwrap();
    let socket = place.name("qmp.sock");
    let run = |args: &[&str]| {
        let words: Vec<_> = ["qmp", &socket]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        standfast(&words)
    };
    let value = |args: &[&str]| -> Value {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    assert_eq!(value(&["query-status"])["status"], "running");
    assert_eq!(
        value(&["query-blockstats", "query-nodes=true"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        value(&["query-blockstats", "{\"query-nodes\": true}"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(value(&["stop"]), json!({}));

    for (args, status, text) in [
        (&["nosuch"][..], 1, "The command nosuch has not been found"),
        (&["x-query-held", "id=zz"], 1, "zz"),
        (
            &["x-quota-set", "limit=1M"],
            1,
            "Parameter 'node-name' is missing",
        ),
        (
            &["query-status", "junk"],
            2,
            "Expected '=' after parameter 'junk'",
        ),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert_eq!(stdout(&output), "");
        let said = stderr(&output);
        assert!(
            said.starts_with("standfast: ") && said.contains(text),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn whoever_is_not_a_daemon_is_told_apart() {
    let place = Place::new();
    let _daemon = daemon(&place).start().unwrap();
    std::fs::write(place.file("file"), "").unwrap();
    drop(UnixListener::bind(place.file("stale")).unwrap());
    let listener = UnixListener::bind(place.file("other")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // SSH-2.0-like: something, but no QMP.
            let _ = std::io::Write::write_all(&mut stream.unwrap(), b"220 hello\r\n");
        }
    });
    for (name, text) in [
        ("nosuch", "does not exist: is the daemon running"),
        ("file", "is not a socket"),
        ("stale", "Connection refused"),
        ("other", "is not a QMP socket: it sent something else first"),
        (
            "vda.sock",
            "is not a QMP socket: it sent no greeting within 5 s",
        ),
    ] {
        for command in ["status", "cont"] {
            let output = standfast(&[command, &place.name(name)]);
            let said = stderr(&output);
            assert!(said.contains(text), "{name}: {said}");
            assert_eq!(output.status.code(), Some(3), "{name}");
            if name == "vda.sock" {
                break;
            }
        }
    }
}

#[test]
fn help_and_version() {
    for args in [&["--help"][..], &["qmp", "--help"]] {
        let output = standfast(args);
        assert_eq!(output.status.code(), Some(0));
        let text = stdout(&output);
        assert!(text.contains("Usage: standfast"), "{text}");
    }
    assert_eq!(
        stdout(&standfast(&["--version"])),
        format!("standfast {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_link_that_is_down_is_shown() {
    let place = Place::new();
    let link = format!("vmm-qemu,id=vm0,path={}", place.name("vmm.sock"));
    let daemon = daemon(&place).args(["--object", &link]);
    let _daemon = daemon.start().unwrap();
    eventually("the link is down", || {
        let text = stdout(&standfast(&["status", &place.name("qmp.sock")]));
        text.contains("VM: unknown (link 'vm0', vmm-qemu: down")
    });
}

/// A name that is not UTF-8 could not be given.
#[test]
fn file_names_are_bytes() {
    let place = Place::new();
    let _daemon = daemon(&place).start().unwrap();
    let vmm = place.path().join(OsStr::from_bytes(b"vmm\xfc.sock"));
    let listener = UnixListener::bind(&vmm).unwrap();
    let path = [b"path=", vmm.as_os_str().as_bytes()].concat();
    let qmp = place.path().join(OsStr::from_bytes(b"q\xfd.sock"));
    std::fs::hard_link(place.file("qmp.sock"), &qmp).unwrap();
    let added = Command::new(env!("CARGO_BIN_EXE_standfast"))
        .arg("qmp")
        .arg(&qmp)
        .args(["object-add", "qom-type=vmm-qemu", "id=vm0"])
        .arg(OsString::from_vec(path))
        .output()
        .unwrap();
    assert!(added.status.success(), "{}", added.stderr.escape_ascii());
    listener.accept().unwrap();
}

#[test]
fn usage_errors_have_their_own_status() {
    for args in [&[][..], &["nosuch"], &["status"], &["qmp", "s"]] {
        assert_eq!(standfast(args).status.code(), Some(2), "{args:?}");
    }
}

/// A daemon that hangs accepts nobody; the tool waited for a place in its backlog for ever.
#[test]
fn a_daemon_that_accepts_nobody_is_told() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let place = Place::new();
    let path = place.name("hangs");
    let address = SocketAddrUnix::new(path.as_str()).unwrap();
    let socket = |flags| {
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    };
    let server = socket(SocketFlags::CLOEXEC);
    rustix::net::bind(&server, &address).unwrap();
    rustix::net::listen(&server, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        if rustix::net::connect(&client, &address).is_err() {
            break;
        }
        waiting.push(client);
    }
    let output = standfast(&["status", &path]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("accepted nobody for 5 s"), "{said}");
}
