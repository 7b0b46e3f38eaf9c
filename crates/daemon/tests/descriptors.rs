//! Images and sockets that management opens, and passes.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use common::{PATIENCE, Place, standfastd};
use frontend::{Disk, Options, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use testkit::Daemon;

/// A QMP client that passes descriptors.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    fn new(place: &Place) -> (Daemon, Self) {
        let path = place.name("q");
        let chardev = format!("socket,id=c,path={path},server=on,wait=off");
        let daemon = standfastd()
            .args(["--chardev", &chardev, "--monitor", "c"])
            .socket(&path)
            .start()
            .unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut client = Self { stream, lines };
        client.receive();
        client.execute("qmp_capabilities", json!({}), None);
        (daemon, client)
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn execute(&mut self, command: &str, arguments: Value, fd: Option<BorrowedFd<'_>>) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.stream, &bytes, &mut control, SendFlags::empty()).unwrap();
        loop {
            let answer = self.receive();
            if answer.get("event").is_none() {
                return answer;
            }
        }
    }
}

fn file(name: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": "/dev/fdset/7"})
}

/// A disk of which the daemon can reach neither the image nor the directory of the socket.
#[test]
fn a_disk_that_is_passed() {
    let place = Place::new();
    let elsewhere = Place::new();
    fs::write(elsewhere.file("image"), vec![0; 1 << 20]).unwrap();
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .open(elsewhere.file("image"))
        .unwrap();
    let (_daemon, mut client) = Client::new(&place);
    let set = json!({"fdset-id": 7, "opaque": "a disk"});
    let added = client.execute("add-fd", set, Some(image.as_fd()));
    assert_eq!(added["return"]["fdset-id"], 7, "{added}");
    // Nothing is asked of the name.
    fs::rename(elsewhere.file("image"), elsewhere.file("another")).unwrap();
    drop(image);
    let added = client.execute("blockdev-add", file("d"), None);
    assert_eq!(added, json!({"return": {}}));
    // It is open, and stays so.
    client.execute("remove-fd", json!({"fdset-id": 7}), None);
    let left = client.execute("query-fdsets", json!({}), None);
    assert_eq!(left, json!({"return": []}));
    let listener = UnixListener::bind(elsewhere.file("sock")).unwrap();
    let got = client.execute("getfd", json!({"fdname": "sock"}), Some(listener.as_fd()));
    assert_eq!(got, json!({"return": {}}));
    drop(listener);
    let export = json!({"type": "vhost-user-blk", "id": "e", "node-name": "d", "writable": true,
        "addr": {"type": "fd", "str": "sock"}});
    let exported = client.execute("block-export-add", export.clone(), None);
    assert_eq!(exported, json!({"return": {}}));
    let mut disk = Disk::connect(elsewhere.file("sock"), Options::default()).unwrap();
    let data = [7; 512];
    let write = Request::Write {
        sector: 1,
        data: &data,
    };
    let done = disk.execute(0, write, PATIENCE).unwrap();
    assert!(done.is_ok(), "{done:?}");
    drop(disk);
    assert_eq!(
        fs::read(elsewhere.file("another")).unwrap()[512..1024],
        data
    );
    // The export has it now, and nobody else.
    let again = client.execute("closefd", json!({"fdname": "sock"}), None);
    assert_eq!(
        again["error"]["desc"],
        "File descriptor named 'sock' not found"
    );
}

/// As QEMU's: what is wanted has to be among what was passed.
#[test]
fn what_was_passed_for_reading_is_not_written() {
    let place = Place::new();
    fs::write(place.file("image"), vec![0; 1 << 20]).unwrap();
    let (_daemon, mut client) = Client::new(&place);
    let desc = |answer: Value| answer["error"]["desc"].as_str().unwrap().to_owned();
    let answer = client.execute("blockdev-add", file("d"), None);
    assert_eq!(
        desc(answer),
        "Could not dup FD for /dev/fdset/7 flags 2: No such file or directory"
    );
    let image = File::open(place.file("image")).unwrap();
    client.execute("add-fd", json!({"fdset-id": 7}), Some(image.as_fd()));
    let answer = client.execute("blockdev-add", file("d"), None);
    assert_eq!(
        desc(answer),
        "Could not dup FD for /dev/fdset/7 flags 2: Permission denied"
    );
    let mut read_only = file("d");
    read_only["read-only"] = json!(true);
    let answer = client.execute("blockdev-add", read_only, None);
    assert_eq!(answer, json!({"return": {}}));
    let mut auto = file("e");
    auto["auto-read-only"] = json!(true);
    let answer = client.execute("blockdev-add", auto, None);
    assert_eq!(answer, json!({"return": {}}));
    let number = client.execute("getfd", json!({"fdname": "7x"}), Some(image.as_fd()));
    assert_eq!(
        desc(number),
        "Parameter 'fdname' expects a name not starting with a digit"
    );
}
