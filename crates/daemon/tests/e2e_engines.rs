//! `aio`: what is asked for is done, refused or said; and storage that hangs is alone with it.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, standfastd};
use frontend::{Disk, Options, Request, Token};
use serde_json::Value;
use testkit::daemon::Builder;
use testkit::{FuseFile, FuseOp, Qmp};

const EPERM: i32 = 1;
const BYTES: usize = 4 << 20;

fn with_monitor(place: &Place) -> Builder {
    let chardev = format!("socket,id=c,path={},server=on,wait=off", place.name("q"));
    standfastd()
        .args(["--chardev", &chardev, "--monitor", "c"])
        .socket(place.file("q"))
}

fn with_disk(builder: Builder, place: &Place, name: &str, options: &str) -> Builder {
    let blockdev = format!("file,node-name={name},{options}");
    let socket = place.file(&format!("{name}.sock"));
    let export = format!(
        "vhost-user-blk,id=e-{name},node-name={name},writable=on,werror=stop,addr.type=unix,addr.path={}",
        socket.display()
    );
    builder
        .args(["--blockdev", &blockdev, "--export", &export])
        .socket(socket)
}

fn connect(place: &Place, name: &str) -> Disk {
    Disk::connect(place.file(&format!("{name}.sock")), Options::default()).unwrap()
}

/// On a file system that does not block: not /tmp, which is in memory on many a machine.
fn image(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(BYTES as u64).unwrap();
    path.display().to_string()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn write(disk: &mut Disk, sector: u64, data: &[u8]) {
    let done = disk.execute(0, Request::Write { sector, data }, PATIENCE);
    let done = done.unwrap();
    assert!(done.is_ok(), "{done:?}");
}

/// `x-engine` by node, in their order; nodes without storage of their own have none.
fn engines(qmp: &mut Qmp) -> Vec<(String, Option<String>)> {
    let nodes = qmp.execute("query-named-block-nodes", Value::Null).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let shown = |node: &Value| (text(&node["node-name"]).unwrap(), text(&node["x-engine"]));
    nodes.as_array().unwrap().iter().map(shown).collect()
}

const ASKED: [(&str, &str); 4] = [
    ("auto", ""),
    ("ring", ",aio=io_uring"),
    ("native", ",aio=native,cache.direct=on"),
    ("threads", ",aio=threads"),
];

/// Starts with one disk for each `aio`, writes to each, and ends; what `x-engine` and the log say.
fn served(asked: &[(&str, &str)], errno: Option<i32>) -> (Vec<(String, Option<String>)>, String) {
    let (place, directory) = (Place::new(), directory());
    let mut builder = with_monitor(&place);
    if let Some(errno) = errno {
        builder = builder.without_io_uring(errno);
    }
    for (name, aio) in asked {
        let image = image(directory.path(), name);
        builder = with_disk(builder, &place, name, &format!("filename={image}{aio}"));
    }
    let filter = "quota,node-name=filter,limit=1G,file.driver=null-co,file.node-name=below";
    let mut daemon = builder.args(["--blockdev", filter]).start().unwrap();
    for (name, _) in asked {
        let mut disk = connect(&place, name);
        write(&mut disk, 8, &[7; 4096]);
        let path = directory.path().join(name);
        assert_eq!(
            std::fs::read(path).unwrap()[4096..8192],
            [7; 4096],
            "{name}"
        );
    }
    let shown = engines(&mut Qmp::connect(place.file("q")).unwrap());
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    (shown, daemon.stderr())
}

fn expected(engines: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    let mut expected: Vec<_> = engines
        .iter()
        .map(|&(name, engine)| (name.to_owned(), Some(engine.to_owned())))
        .chain(["below", "filter"].map(|name| (name.to_owned(), None)))
        .collect();
    expected.sort();
    expected
}

fn lines<'a>(log: &'a str, text: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(text)).collect()
}

#[test]
fn each_node_has_what_it_asks_for() {
    if testkit::engine::is_threads() {
        // There is no io_uring in this run: the test beside is what there is to see.
        return without_io_uring_threads_do_all_of_it();
    }
    let (mut shown, log) = served(&ASKED, None);
    shown.sort();
    let all = [
        ("auto", "io_uring"),
        ("ring", "io_uring"),
        ("native", "io_uring"),
        ("threads", "threads"),
    ];
    assert_eq!(shown, expected(&all));
    assert_eq!(
        lines(&log, "node 'threads': aio=threads: threads do").len(),
        1,
        "{log}"
    );
    assert_eq!(
        lines(&log, "node 'native': aio=native: io_uring does").len(),
        1,
        "{log}"
    );
    assert_eq!(lines(&log, " its I/O").len(), 2, "{log}");
}

#[test]
fn without_io_uring_threads_do_all_of_it() {
    let asked: Vec<_> = ASKED
        .into_iter()
        .filter(|(name, _)| *name != "ring")
        .collect();
    let (mut shown, log) = served(&asked, Some(EPERM));
    shown.sort();
    let all = [
        ("auto", "threads"),
        ("native", "threads"),
        ("threads", "threads"),
    ];
    assert_eq!(shown, expected(&all));
    assert_eq!(
        lines(&log, "node 'native': aio=native: threads do").len(),
        1,
        "{log}"
    );
}

/// Asked for by name, and not to be had.
#[test]
fn io_uring_by_name_is_that_or_an_error() {
    let (place, directory) = (Place::new(), directory());
    let image = image(directory.path(), "image");
    let options = format!("filename={image},aio=io_uring");
    let builder = with_disk(with_monitor(&place), &place, "n", &options);
    let refused = builder
        .without_io_uring(EPERM)
        .start()
        .unwrap_err()
        .to_string();
    let text = "Unable to use io_uring: io_uring is not available (Operation not permitted";
    assert!(refused.contains(text), "{refused}");
}

#[test]
fn native_needs_o_direct_as_with_qemu() {
    let (place, directory) = (Place::new(), directory());
    let image = image(directory.path(), "image");
    let options = format!("filename={image},aio=native");
    let builder = with_disk(with_monitor(&place), &place, "n", &options);
    let refused = builder.start().unwrap_err().to_string();
    let text =
        "aio=native was specified, but it requires cache.direct=on, which was not specified.";
    assert!(refused.contains(text), "{refused}");
}

/// Storage that answers again before the daemon is killed: a process that waits for FUSE cannot die.
struct Hanging<'a>(&'a FuseFile);

impl<'a> Hanging<'a> {
    fn writes(fuse: &'a FuseFile) -> Self {
        fuse.hang(FuseOp::Write, true);
        Self(fuse)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hang(FuseOp::Write, false);
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < 3 * PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn submit(disk: &mut Disk, sector: u64) -> Token {
    let data = [9; 4096];
    let write = Request::Write {
        sector,
        data: &data,
    };
    let token = disk.submit(0, write).unwrap();
    disk.kick(0).unwrap();
    token
}

/// An image on FUSE with O_DIRECT that did not answer stopped every disk of the daemon.
#[test]
fn a_file_that_hangs_stops_no_disk_beside_it() {
    for aio in ["", ",aio=io_uring", ",aio=threads", ",aio=native"] {
        if testkit::engine::is_threads() && aio == ",aio=io_uring" {
            continue;
        }
        let (place, directory) = (Place::new(), directory());
        let fuse = FuseFile::new(BYTES).unwrap();
        let slow = format!("cache.direct=on,filename={}{aio}", fuse.path().display());
        let builder = with_disk(with_monitor(&place), &place, "slow", &slow);
        let other = format!("filename={}", image(directory.path(), "other"));
        let mut daemon = with_disk(builder, &place, "other", &other).start().unwrap();
        let (mut slow, mut other) = (connect(&place, "slow"), connect(&place, "other"));
        write(&mut slow, 0, &[1; 4096]);
        let hanging = Hanging::writes(&fuse);
        let before = fuse.count(FuseOp::Write);
        let hangs = submit(&mut slow, 8);
        until("it hangs", || fuse.count(FuseOp::Write) > before);
        for sector in 0..32 {
            write(&mut other, sector * 8, &[2; 4096]);
        }
        let mut qmp = Qmp::connect(place.file("q")).unwrap();
        let shown = engines(&mut qmp);
        assert!(
            shown.contains(&("slow".to_owned(), Some("threads".to_owned()))),
            "{aio} {shown:?}"
        );
        drop(hanging);
        let done = slow.wait(0, PATIENCE).unwrap();
        assert!(done.is_some_and(|done| done.token == hangs && done.is_ok()));
        assert_eq!(fuse.content()[4096..8192], [9; 4096]);
        assert!(daemon.terminate(PATIENCE).unwrap().success());
        let log = daemon.stderr();
        assert_eq!(lines(&log, "node 'slow': ").len(), 1, "{aio}: {log}");
    }
}

/// Three disks with 200 requests each that hang: the workers are bounded, a fourth disk is served, and
/// `quit`, which waited for them for ever, says what is in flight and ends.
#[test]
fn many_that_hang_are_bounded_and_do_not_keep_the_daemon() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    const REQUESTS: u64 = 200;
    let (place, directory) = (Place::new(), directory());
    let fuses = NAMES.map(|_| FuseFile::new(BYTES).unwrap());
    let mut builder = with_monitor(&place);
    for (name, fuse) in NAMES.iter().zip(&fuses) {
        let options = format!("cache.direct=on,filename={}", fuse.path().display());
        builder = with_disk(builder, &place, name, &options);
    }
    let other = format!("filename={}", image(directory.path(), "other"));
    let mut daemon = with_disk(builder, &place, "other", &other).start().unwrap();
    let threads = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .count()
    };
    let at_rest = threads(daemon.pid());
    let hanging = fuses.each_ref().map(Hanging::writes);
    let many = Options {
        queue_size: 1024,
        ..Options::default()
    };
    let mut disks: Vec<_> = (NAMES.iter())
        .map(|name| Disk::connect(place.file(&format!("{name}.sock")), many.clone()).unwrap())
        .collect();
    for disk in &mut disks {
        for request in 0..REQUESTS {
            submit(disk, request * 8);
        }
    }
    for fuse in &fuses {
        until("they hang", || fuse.count(FuseOp::Write) > 0);
    }
    let mut served = connect(&place, "other");
    for sector in 0..64 {
        write(&mut served, sector * 8, &[2; 4096]);
    }
    let begun: u64 = fuses.iter().map(|fuse| fuse.count(FuseOp::Write)).sum();
    assert!(begun < 64, "{begun} of them are in calls");
    let now = threads(daemon.pid());
    assert!(now <= at_rest + 64, "{at_rest} threads have become {now}");
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    qmp.execute("quit", Value::Null).unwrap();
    for when in ["still waiting", "the daemon ends without"] {
        for name in NAMES {
            let said =
                format!("export 'e-{name}': {REQUESTS} requests are in flight, the first for ");
            let is_said = || {
                let log = daemon.stderr();
                lines(&log, &said).iter().any(|line| line.contains(when))
            };
            until(&format!("{when}: {said}"), is_said);
        }
    }
    assert!(lines(&daemon.stderr(), "export 'e-other': ").is_empty());
    // The kernel lets no process go whose request has come to FUSE and is not answered.
    drop(hanging);
    assert_eq!(daemon.wait(PATIENCE).unwrap().code(), Some(1));
}
