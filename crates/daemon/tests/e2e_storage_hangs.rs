//! Storage that does not answer, on a real file system that hangs: the monitor answers, and the daemon
//! ends.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, eventually, standfastd};
use frontend::{Disk, Options, Request};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::daemon::Builder;
use testkit::{Daemon, FuseFile, FuseOp, Qmp};

const BYTES: usize = 4 << 20;

/// What a person, or a manager that asks again and again, can live with; generous on a busy machine.
const SOON: Duration = Duration::from_secs(5);

fn builder(place: &Place, fuse: &FuseFile) -> Builder {
    let blockdev = format!("file,node-name=n,filename={}", fuse.path().display());
    let export = format!(
        "vhost-user-blk,id=vda,node-name=n,writable=on,werror=stop,addr.type=unix,addr.path={}",
        place.name("vda.sock")
    );
    let chardev = format!(
        "socket,id=c,path={},server=on,wait=off",
        place.name("qmp.sock")
    );
    standfastd()
        .args(["--blockdev", &blockdev, "--export", &export])
        .args(["--chardev", &chardev, "--monitor", "c"])
}

const ALL: [FuseOp; 5] = [
    FuseOp::GetAttr,
    FuseOp::SetAttr,
    FuseOp::Read,
    FuseOp::Write,
    FuseOp::Fsync,
];

/// Nothing hangs any more.
fn answer(fuse: &FuseFile) {
    for op in ALL {
        fuse.hang(op, false);
    }
}

/// A daemon whose storage answers again before it is killed: a process that waits for FUSE cannot die.
struct Served<'a> {
    daemon: Daemon,
    fuse: &'a FuseFile,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        answer(self.fuse);
    }
}

impl Deref for Served<'_> {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Served<'_> {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

fn start<'a>(place: &Place, fuse: &'a FuseFile) -> Served<'a> {
    let builder = builder(place, fuse)
        .socket(place.file("vda.sock"))
        .socket(place.file("qmp.sock"));
    let daemon = builder.start().unwrap();
    Served { daemon, fuse }
}

fn qmp(place: &Place) -> Qmp {
    Qmp::connect(place.file("qmp.sock")).unwrap()
}

/// fstat(2) hung, and with it `query-block`, which is how a manager reads the I/O status; the clients
/// that gave up kept the 64 places of the monitor, and nobody could say `cont`; SIGTERM waited for them,
/// and the image stayed locked.
#[test]
fn nobody_waits_for_storage_that_does_not_answer() {
    let (place, fuse) = (Place::new(), FuseFile::new(BYTES).unwrap());
    let mut daemon = start(&place, &fuse);
    let mut own = qmp(&place);
    own.execute("query-block", Value::Null).unwrap();
    fuse.hang(FuseOp::GetAttr, true);
    // What the kernel knows of the file's attributes is good for a second.
    std::thread::sleep(Duration::from_millis(1100));
    for _ in 0..70 {
        let mut given_up = qmp(&place);
        given_up
            .send_raw(json!({"execute": "query-block"}).to_string().as_bytes())
            .unwrap();
    }
    let begin = Instant::now();
    let mut fresh = qmp(&place);
    for command in [
        "query-status",
        "stop",
        "cont",
        "query-block",
        "x-query-held",
    ] {
        fresh.execute(command, Value::Null).unwrap();
        own.execute(command, Value::Null).unwrap();
    }
    let named = fresh.execute("query-named-block-nodes", Value::Null);
    assert_eq!(named.unwrap()[0]["node-name"], "n");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // The end, too; and the image is free for the next daemon.
    let status = daemon.terminate(SOON).unwrap();
    assert_eq!(status.code(), Some(0), "{}", daemon.stderr());
    answer(&fuse);
    drop(start(&place, &fuse));
}

/// A resize that hangs had its client wait for ever; and each client that asked again left something
/// behind.
#[test]
fn a_change_that_hangs_is_told_and_leaves_the_monitor_alone() {
    let (place, fuse) = (Place::new(), FuseFile::new(BYTES).unwrap());
    let _daemon = start(&place, &fuse);
    let resize = json!({"node-name": "n", "size": 2 * BYTES});
    let command = json!({"execute": "block_resize", "arguments": resize});
    fuse.hang(FuseOp::SetAttr, true);
    let mut first = qmp(&place);
    first.send_raw(command.to_string().as_bytes()).unwrap();
    for _ in 0..100 {
        let mut given_up = qmp(&place);
        given_up.send_raw(command.to_string().as_bytes()).unwrap();
    }
    let mut other = qmp(&place);
    other.execute("query-status", Value::Null).unwrap();
    other.execute("query-block", Value::Null).unwrap();
    let mut waiting = qmp(&place);
    waiting.set_timeout(PATIENCE + PATIENCE);
    let refused = waiting.execute("block_resize", resize.clone());
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("was not begun"), "{refused}");
    let told = first.receive_raw(PATIENCE).unwrap();
    let told = told["error"]["desc"].as_str().unwrap();
    assert!(told.contains("does not answer; it goes on"), "{told}");
    first.execute("query-status", Value::Null).unwrap();
    // When it does, all is as it should be.
    answer(&fuse);
    eventually("the resize", || {
        let blocks = other.execute("query-block", Value::Null).unwrap();
        blocks[0]["inserted"]["image"]["virtual-size"] == 2 * BYTES
    });
    waiting.execute("block_resize", resize).unwrap();
}

/// I/O in flight on storage that hangs is waited for at the end; who sends a second signal is not kept.
/// The monitor answers meanwhile.
#[test]
fn the_monitor_answers_while_requests_hang() {
    let (place, fuse) = (Place::new(), FuseFile::new(BYTES).unwrap());
    let mut daemon = start(&place, &fuse);
    let mut own = qmp(&place);
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    for op in ALL {
        fuse.hang(op, true);
    }
    let read = Request::Read {
        sector: 0,
        len: 4096,
    };
    disk.submit(0, read).unwrap();
    disk.kick(0).unwrap();
    let begin = Instant::now();
    for _ in 0..20 {
        for command in [
            "query-block",
            "query-status",
            "stop",
            "cont",
            "query-blockstats",
        ] {
            own.execute(command, Value::Null).unwrap();
        }
        qmp(&place);
    }
    assert!(begin.elapsed() < 2 * SOON, "{:?}", begin.elapsed());
    daemon.signal(Signal::TERM).unwrap();
    assert!(daemon.wait(Duration::from_millis(300)).is_err(), "it waits");
    answer(&fuse);
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
}

/// A start that hangs in the image was deaf to SIGTERM where the question came from the control thread.
#[test]
fn a_start_that_hangs_can_be_ended() {
    let (place, fuse) = (Place::new(), FuseFile::new(BYTES).unwrap());
    fuse.hang(FuseOp::GetAttr, true);
    let daemon = builder(&place, &fuse).start().unwrap();
    let mut daemon = Served {
        daemon,
        fuse: &fuse,
    };
    std::thread::sleep(Duration::from_millis(300));
    daemon.signal(Signal::TERM).unwrap();
    daemon
        .wait_for_stderr("SIGTERM: shutting down", PATIENCE)
        .unwrap();
    // A question that has reached the server keeps the process in the kernel.
    answer(&fuse);
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(0));
}

/// Whoever sends commands and shuts its side gets the answers all the same: that is what
/// `echo ... | socat - UNIX:...` does.
#[test]
fn a_client_that_has_said_all_is_answered() {
    let (place, fuse) = (Place::new(), FuseFile::new(BYTES).unwrap());
    let _daemon = start(&place, &fuse);
    fuse.hang(FuseOp::SetAttr, true);
    let mut client = UnixStream::connect(place.file("qmp.sock")).unwrap();
    let resize = json!({"execute": "block_resize",
        "arguments": {"node-name": "n", "size": 2 * BYTES}});
    write!(client, "{{\"execute\": \"qmp_capabilities\"}}\n{resize}\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    answer(&fuse);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut client, &mut said).unwrap();
    assert_eq!(said.matches("{\"return\": {}}").count(), 2, "{said}");
}
