//! What monitors talk through.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use common::{PATIENCE, Place, eventually, standfastd};
use serde_json::{Value, json};
use testkit::{Daemon, Qmp};

/// A daemon with a monitor of its own, to ask by, and whatever else `args` say.
struct Asked {
    _daemon: Daemon,
    qmp: Qmp,
}

impl Asked {
    fn new(place: &Place, args: &[&str]) -> Self {
        let path = place.name("asked");
        let chardev = format!("socket,id=asked,path={path},server=on,wait=off");
        let daemon = standfastd()
            .args(["--chardev", &chardev, "--monitor", "asked"])
            .args(args)
            .socket(&path)
            .start()
            .unwrap();
        let qmp = Qmp::connect(&path).unwrap();
        Self {
            _daemon: daemon,
            qmp,
        }
    }

    fn filename(&mut self, id: &str) -> String {
        let all = self.qmp.execute("query-chardev", Value::Null).unwrap();
        let mut all = all.as_array().unwrap().iter();
        let info = all.find(|info| info["label"] == id).unwrap();
        info["filename"].as_str().unwrap().to_owned()
    }
}

/// Speaks QMP through anything.
fn converse(stream: impl Read, mut writer: impl Write) {
    let mut lines = BufReader::new(stream).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(next()["QMP"].is_object());
    writer
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .unwrap();
    assert_eq!(next(), json!({"return": {}}));
    writer
        .write_all(b"{\"execute\":\"query-status\",\"id\":7}\n")
        .unwrap();
    assert_eq!(next()["id"], 7);
}

#[test]
fn tcp_listens_where_it_is_told() {
    let place = Place::new();
    let chardev = "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off";
    let mut asked = Asked::new(&place, &["--chardev", chardev, "--monitor", "t"]);
    let name = asked.filename("t");
    let address = name.strip_prefix("disconnected:tcp:").unwrap();
    let address = address.strip_suffix(",server=on").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    converse(stream.try_clone().unwrap(), &stream);
    assert_eq!(asked.filename("t"), format!("tcp:{address},server=on"));
    drop(stream);
    eventually("the end of the client", || asked.filename("t") == name);
    // The next port that is free, as far as 'to' says.
    let port = address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let backend = |to: Value| {
        json!({"id": "u", "backend": {"type": "socket", "data": {"wait": false,
        "addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": port.to_string(), "to": to}}}}})
    };
    let mut without = backend(Value::Null);
    without["backend"]["data"]["addr"]["data"]
        .as_object_mut()
        .unwrap()
        .remove("to");
    let taken = asked.qmp.execute("chardev-add", without).unwrap_err();
    assert!(
        taken
            .to_string()
            .contains("Failed to find an available port: Address already in use"),
        "{taken}"
    );
    let added = asked.qmp.execute("chardev-add", backend(json!(u16::MAX)));
    assert_eq!(added.unwrap(), json!({}));
}

#[test]
fn abstract_names() {
    let place = Place::new();
    let pid = std::process::id();
    let (tight, loose) = (format!("standfast-{pid}-a"), format!("standfast-{pid}-b"));
    let chardevs = [
        format!("socket,id=a,path={tight},abstract=on,server=on,wait=off"),
        format!("socket,id=b,path={loose},abstract=on,tight=off,server=on,wait=off"),
    ];
    let args = [
        "--chardev",
        &chardevs[0],
        "--monitor",
        "a",
        "--chardev",
        &chardevs[1],
        "--monitor",
        "b",
    ];
    let mut asked = Asked::new(&place, &args);
    let name = |id: &str, rest: &str| format!("disconnected:unix:{id},abstract=on{rest},server=on");
    assert_eq!(asked.filename("a"), name(&tight, ",tight=on"));
    assert_eq!(asked.filename("b"), name(&loose, ""));
    let mut padded = loose.into_bytes();
    padded.resize(107, 0);
    for name in [tight.into_bytes(), padded] {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let stream = UnixStream::connect_addr(&address).unwrap();
        converse(stream.try_clone().unwrap(), &stream);
    }
}

/// A monitor that connects goes on when whoever it talks to comes back; nobody need be there first.
#[test]
fn a_client_comes_back() {
    let place = Place::new();
    let path = place.name("theirs");
    let chardev = format!("socket,id=c,path={path},reconnect-ms=20");
    let mut asked = Asked::new(&place, &["--chardev", &chardev, "--monitor", "c"]);
    assert_eq!(asked.filename("c"), format!("disconnected:unix:{path}"));
    for _ in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        converse(stream.try_clone().unwrap(), &stream);
        assert_eq!(asked.filename("c"), format!("unix:{path}"));
        drop((listener, stream));
        fs::remove_file(&path).unwrap();
    }
    asked.qmp.execute("quit", Value::Null).unwrap();
}

#[test]
fn a_tcp_client_comes_back_after_a_second() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let chardev = format!("socket,id=c,host=127.0.0.1,port={port},reconnect=1");
    let _asked = Asked::new(&place, &["--chardev", &chardev, "--monitor", "c"]);
    for _ in 0..2 {
        let (stream, _) = listener.accept().unwrap();
        converse(stream.try_clone().unwrap(), &stream);
    }
}

/// Whoever opens the terminal has a session, from the greeting on, and so has the next one.
#[test]
fn a_terminal() {
    let place = Place::new();
    let link = place.file("tty");
    let chardev = format!("pty,id=p,path={}", link.display());
    let mut asked = Asked::new(&place, &["--chardev", &chardev, "--monitor", "p"]);
    let name = fs::read_link(&link).unwrap();
    assert_eq!(asked.filename("p"), format!("pty:{}", name.display()));
    for _ in 0..2 {
        let tty = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&link)
            .unwrap();
        converse(tty.try_clone().unwrap(), &tty);
        drop(tty);
        // It is seen to be closed before it can be opened anew.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    asked.qmp.execute("quit", Value::Null).unwrap();
    eventually("the end of the link", || {
        fs::symlink_metadata(&link).is_err()
    });
}

#[test]
fn files_rings_and_logs() {
    let place = Place::new();
    fs::write(
        place.file("in"),
        "{'execute':'qmp_capabilities'}{'execute':'query-version'}",
    )
    .unwrap();
    fs::write(place.file("log"), "before\n").unwrap();
    let file = format!(
        "file,id=f,path={},input-path={}",
        place.name("out"),
        place.name("in")
    );
    let ring = format!(
        "ringbuf,id=r,size=64K,logfile={},logappend=on",
        place.name("log")
    );
    let mut asked = Asked::new(
        &place,
        &[
            "--chardev",
            &file,
            "--monitor",
            "f",
            "--chardev",
            &ring,
            "--monitor",
            "r,pretty=on",
            "--chardev",
            "null,id=n",
            "--monitor",
            "n",
        ],
    );
    let lines = || {
        fs::read_to_string(place.file("out"))
            .unwrap()
            .lines()
            .count()
    };
    eventually("the answers", || lines() == 3);
    let mut read = |size: usize| {
        let arguments = json!({"device": "r", "size": size});
        asked.qmp.execute("ringbuf-read", arguments).unwrap()
    };
    let begin = read(7);
    assert_eq!(begin, "{\n    \"");
    let rest = read(1 << 16);
    let text = format!("{}{}", begin.as_str().unwrap(), rest.as_str().unwrap());
    let greeting: Value = serde_json::from_str(&text).unwrap();
    assert!(greeting["QMP"].is_object());
    let log = || fs::read_to_string(place.file("log")).unwrap();
    eventually("the copy", || log() == format!("before\n{text}"));
    assert_eq!(asked.filename("n"), "null");
    let wrong = asked
        .qmp
        .execute("ringbuf-read", json!({"device": "n", "size": 1}));
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .contains("n is not a ringbuf device")
    );
    asked.qmp.execute("quit", Value::Null).unwrap();
}

/// As QEMU's: what a monitor uses stays, all else comes and goes.
#[test]
fn they_come_and_go_by_qmp() {
    let place = Place::new();
    let mut asked = Asked::new(&place, &["--chardev", "stdio,id=s"]);
    let mut execute = |command: &str, arguments: Value| {
        let result = asked.qmp.execute(command, arguments);
        result.map_err(|error| error.to_string())
    };
    let backend = |kind: &str, data: Value| json!({"type": kind, "data": data});
    let socket = |path: &str| {
        backend(
            "socket",
            json!({"addr": {"type": "unix", "data": {"path": path}}}),
        )
    };
    let mut add =
        |id: &str, backend: Value| execute("chardev-add", json!({"id": id, "backend": backend}));
    assert_eq!(add("n", backend("null", json!({}))).unwrap(), json!({}));
    let pty = add("p", backend("pty", json!({}))).unwrap();
    assert!(pty["pty"].as_str().unwrap().starts_with("/dev/pts/"));
    assert_eq!(add("l", socket(&place.name("l"))).unwrap(), json!({}));
    for (id, backend, desc) in [
        (
            "n",
            backend("null", json!({})),
            "Chardev with id 'n' already exists",
        ),
        (
            "l2",
            socket(&place.name("l")),
            "Failed to add chardev 'l2': Failed to bind socket to",
        ),
        (
            "o",
            backend("stdio", json!({})),
            "Failed to add chardev 'o': cannot use stdio by multiple",
        ),
        (
            "f",
            backend("file", json!({"out": "/nonexistent/f"})),
            "Failed to add chardev 'f': Could not open '/nonexistent/f': No such file",
        ),
    ] {
        let error = add(id, backend).unwrap_err();
        assert!(error.contains(desc), "{error}");
    }
    let error = execute("chardev-remove", json!({"id": "asked"})).unwrap_err();
    assert!(error.contains("Chardev 'asked' is busy"), "{error}");
    let error = execute("chardev-remove", json!({"id": "nosuch"})).unwrap_err();
    assert!(error.contains("Chardev 'nosuch' not found"), "{error}");
    let nothing = backend("null", json!({}));
    let error = execute("chardev-change", json!({"id": "asked", "backend": nothing})).unwrap_err();
    assert!(
        error.contains("Chardev user does not support chardev hotswap"),
        "{error}"
    );
    // Whoever gives standard input back leaves it to the next one.
    execute("chardev-change", json!({"id": "s", "backend": nothing})).unwrap();
    execute(
        "chardev-add",
        json!({"id": "o", "backend": {"type": "stdio", "data": {}}}),
    )
    .unwrap();
    execute("chardev-remove", json!({"id": "l"})).unwrap();
    assert_eq!(place.files(), ["asked", "asked.lock"]);
    let all = execute("query-chardev", Value::Null).unwrap();
    let all: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|info| {
            (
                info["label"].as_str().unwrap(),
                info["filename"].as_str().unwrap(),
                info["frontend-open"] == true,
            )
        })
        .collect();
    let (asked_name, pty_name) = (
        format!("unix:{},server=on", place.name("asked")),
        format!("pty:{}", pty["pty"].as_str().unwrap()),
    );
    assert_eq!(
        all,
        [
            ("asked", &*asked_name, true),
            ("n", "null", false),
            ("p", &*pty_name, false),
            ("s", "null", false),
            ("o", "stdio", false),
        ]
    );
}

/// It used to say so only in a log that nobody asks for.
#[test]
fn whoever_waits_for_a_client_says_so() {
    let place = Place::new();
    let path = place.name("q");
    let chardev = format!("socket,id=c,path={path},server=on");
    let daemon = standfastd()
        .env("STANDFAST_LOG", "")
        .args(["--chardev", &chardev, "--monitor", "c"])
        .socket(&path)
        .start()
        .unwrap();
    let line = format!(
        "standfastd: --chardev {chardev}: info: QEMU waiting for connection on: disconnected:unix:{path},server=on"
    );
    daemon.wait_for_stderr(&line, PATIENCE).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    converse(stream.try_clone().unwrap(), &stream);
    assert_eq!(
        daemon.stderr().trim(),
        line,
        "nothing else is said when all is well"
    );
}
