//! `standfast watch` extends before it is full: the machine never stops.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the whole file is a test"
)]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::report::Report;
use common::{Script, Setup, disk};
use frontend::{Disk, Options, Request};
use serde_json::{Value, json};
use testkit::place::{PATIENCE, Place, eventually};
use testkit::{Daemon, Guest, LoopDevice, Qmp, Tmpfs, VirtioBlk, soak};

const MIB: u64 = 1 << 20;

/// An emulated guest on a busy machine is slow.
const GUEST: Duration = Duration::from_secs(300);

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

fn truncate(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.set_len(bytes).unwrap();
}

/// QEMU's own disk: qcow2 on a device that a program makes larger, in 200 ms. The guest writes `rounds` times what
/// the device has at first, with so much of a pause between 16 MiB each; returns the figures.
fn guest(what: &str, keys: &str, rounds: u64, pause: &str) -> Report {
    let dir = tempfile_in_target();
    let file = dir.path().join("disk");
    truncate(&file, 64 * MIB);
    let device = LoopDevice::new(&file, true).unwrap();
    let path = device.path().to_str().unwrap().to_owned();
    let bytes = rounds * 64 * MIB;
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path, &bytes.to_string()],
    );
    let setup = Setup::new(&format!(
        r#"
[limits]
extensions-per-hour = 1000
[[machines]]
sockets = ["@PLACE@/*.qmp"]
strategy = "command"
command = ["@PLACE@/grow"]
step = "64M"
{keys}
"#
    ));
    setup.script(
        "grow",
        &format!(
            "sleep 0.2; truncate -s $STANDFAST_NEW_SIZE {} && losetup -c $STANDFAST_PATH",
            file.display()
        ),
    );
    let monitor = format!("unix:{},server=on,wait=off", setup.place.name("vm.qmp"));
    let mut guest = Guest::builder()
        .disk(VirtioBlk::new(&path).qcow2_on_device())
        .qemu_arg("-qmp")
        .qemu_arg(monitor)
        .start()
        .unwrap();
    let mut watcher = setup.watch(1);
    guest.wait_boot(GUEST).unwrap();
    guest
        .run_ok("head -c 16777216 /dev/urandom >/tmp/pattern || head -c 16777216 /dev/urandom >/pattern", GUEST)
        .unwrap();
    let begin = Instant::now();
    let chunks = bytes / (16 * MIB) - 1;
    let write = format!(
        "p=/tmp/pattern; [ -e $p ] || p=/pattern
         n=0; while [ $n -lt {chunks} ]; do
         dd if=$p of=/dev/vda bs=1M seek=$((n * 16)) conv=notrunc,fsync 2>/dev/null || exit 1
         n=$((n + 1)); {pause}
         done"
    );
    guest.run_ok(&write, GUEST).unwrap();
    let took = begin.elapsed();
    // Every byte is there.
    guest.drop_caches(GUEST).unwrap();
    let check = format!(
        "p=/tmp/pattern; [ -e $p ] || p=/pattern
         n=0; while [ $n -lt {chunks} ]; do
         dd if=/dev/vda bs=1M skip=$((n * 16)) count=16 2>/dev/null | cmp - $p || exit 1
         n=$((n + 5)); done"
    );
    guest.run_ok(&check, GUEST).unwrap();
    guest.check_no_io_errors().unwrap();
    let nodes = guest
        .qmp()
        .execute("query-named-block-nodes", Value::Null)
        .unwrap();
    let host = nodes.as_array().unwrap().iter();
    let mut host = host.filter(|node| node["node-name"] == "host0");
    println!(
        "threshold at the end: {}",
        host.next().unwrap()["write_threshold"]
    );
    assert!(guest.power_off(GUEST).unwrap().success());
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    let report = Report::new(what, &setup.records(), chunks * 16 * MIB, took);
    report.print();
    // The journal tells early ones as such.
    let early = setup.history();
    let early = early.iter().filter(|told| told["cause"] == "early").count();
    let records = setup.records();
    let told = records
        .iter()
        .filter(|record| record["early"] == true && record["incident"].is_null());
    assert_eq!(early, told.count());
    report
}

/// A directory on a real disk, so that the loop device has direct I/O.
fn tempfile_in_target() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A guest that writes to many times the first size never stops after the first two extensions.
#[test]
fn a_guest_of_plain_qemu_is_never_paused() {
    // What is tested in short is slow enough for a busy machine: the soak is not.
    let keys = soak("head-room-min = \"48M\"\n", "");
    let report = guest(
        "guest, adaptive head-room",
        keys,
        soak(6, 32),
        soak("sleep 0.3", ""),
    );
    assert!(report.early.len() >= 3, "{report:?}");
    assert_eq!(report.late_pauses, 0, "{report:?}");
}

/// Beside it: a head-room that does not know how fast the guest writes.
#[test]
fn a_fixed_head_room_beside_it() {
    let fixed = "head-room-min = \"4M\"\nhead-room-max = \"4M\"\n";
    let report = guest("guest, fixed head-room of 4 MiB", fixed, soak(4, 32), "");
    assert!(report.early.len() + report.pauses >= 2, "{report:?}");
}

/// A client that writes at up to so many bytes a second, one MiB after the other.
fn write_through(disk: &mut Disk, bytes: u64, rate: u64) -> Duration {
    const DEPTH: usize = 8;
    let data = vec![0x5a; 1 << 20];
    let begin = Instant::now();
    let mut under_way = 0;
    let mut at = 0;
    while at < bytes || under_way > 0 {
        while at < bytes && under_way < DEPTH {
            let sector = at / 512;
            let request = Request::Write {
                sector,
                data: &data,
            };
            disk.submit(0, request).unwrap();
            under_way += 1;
            at += MIB;
            disk.kick(0).unwrap();
        }
        let (_, completion) = disk
            .wait_any(Duration::from_secs(120))
            .unwrap()
            .expect("it ends");
        assert!(completion.is_ok(), "{completion:?}");
        under_way -= 1;
        let least = Duration::from_millis(at * 1000 / rate);
        std::thread::sleep(least.saturating_sub(begin.elapsed()));
    }
    begin.elapsed()
}

/// The account of a `quota` node of `standfastd`.
fn account(what: &str, keys: &str, bytes: u64) -> Report {
    let setup = Setup::new(&format!(
        "[limits]\nextensions-per-hour = 10000\n[[machines]]\nsockets = [\"@PLACE@/qmp.sock\"]\nstrategy = \"quota\"\n{keys}"
    ));
    let place = &setup.place;
    let dir = tempfile_in_target();
    let image = dir.path().join("disk.img");
    truncate(&image, bytes);
    let mut daemon = daemon(place, &image, 32 * MIB).start().unwrap();
    let mut watcher = setup.watch(1);
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    eventually("it is armed", || armed(&mut qmp) > 0);
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let took = write_through(&mut disk, bytes, soak(64 * MIB, 1 << 30));
    drop(disk);
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    let report = Report::new(what, &setup.records(), bytes, took);
    report.print();
    report
}

/// The disk `vda` with a quota on a file.
fn daemon(place: &Place, image: &Path, limit: u64) -> testkit::daemon::Builder {
    let node = json!({"driver": "quota", "node-name": "disk0", "limit": limit, "file": {
        "driver": "file", "filename": image, "cache": {"direct": true}}});
    let export = json!({"type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "werror": "stop", "addr": {"type": "unix", "path": place.name("vda.sock")}});
    let chardev = format!(
        "socket,id=qmp,path={},server=on,wait=off",
        place.name("qmp.sock")
    );
    Daemon::builder(env!("CARGO_BIN_EXE_standfast"))
        .arg("demo-daemon")
        .timeout(PATIENCE)
        .args(["--blockdev", &node.to_string()])
        .args(["--export", &export.to_string()])
        .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
        .socket(place.file("vda.sock"))
        .socket(place.file("qmp.sock"))
}

/// The write threshold of `disk0`.
fn armed(qmp: &mut Qmp) -> u64 {
    let nodes = qmp.execute("query-named-block-nodes", Value::Null).unwrap();
    let nodes = nodes.as_array().unwrap().iter();
    let mut named = nodes.filter(|node| node["node-name"] == "disk0");
    named.next().unwrap()["write_threshold"].as_u64().unwrap()
}

/// No pause after the first two extensions, whatever it writes.
#[test]
fn a_client_of_standfastd_is_never_paused() {
    // What is tested in short is slow enough for a busy machine: the soak is not.
    let short = "step = \"16M\"\nhead-room-min = \"24M\"\nhead-room-max = \"32M\"\n";
    let keys = soak(short, "step = \"32M\"\nhead-room-max = \"2G\"\n");
    let bytes = soak(192 * MIB, 8192 * MIB);
    let report = account("quota, adaptive head-room", keys, bytes);
    assert!(report.early.len() >= 2, "{report:?}");
    assert_eq!(report.late_pauses, 0, "{report:?}");
    let fixed = "step = \"32M\"\nhead-room-min = \"1M\"\nhead-room-max = \"1M\"\n";
    account("quota, fixed head-room of 1 MiB", fixed, bytes);
}

/// Bytes that are free on a file system.
fn free(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// A sparse file on a file system: offsets say nothing, so free space is looked at while the guest writes.
#[test]
fn a_file_system_is_extended_before_it_is_full() {
    let tmpfs = Tmpfs::new(64 * MIB).unwrap();
    let setup = Setup::new(
        "[[machines]]\nsockets = [\"@PLACE@/*.qmp\"]\nstrategy = \"command\"\ncommand = [\"@PLACE@/grow\"]\nstep = \"16M\"\nhead-room-min = \"24M\"\nhead-room-max = \"24M\"\n",
    );
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!("exec mount -o remount,size=$STANDFAST_NEW_SIZE {dir}"),
    );
    let image = tmpfs.path().join("image");
    std::fs::write(&image, "").unwrap();
    let script = Script::start(setup.place.file("vm.qmp"), disk(&image, 1 << 30));
    script.state.lock().unwrap().stats = json!([{"device": "vda", "qdev": "vda", "node-name": "disk0",
        "stats": {"wr_highest_offset": 0, "wr_bytes": 0}}]);
    let mut watcher = setup.watch(1);
    let thresholds = || {
        let state = script.state.lock().unwrap();
        let heard = state.heard.iter();
        heard
            .filter(|(name, _)| name == "block-set-write-threshold")
            .count()
    };
    eventually("it is armed", || thresholds() == 1);
    // The guest writes: 2 MiB, each 100 ms. The server tells once, so what it tells of is there before: if it
    // were not, the watcher might find that nothing has grown, and wait to be told again.
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&image)
        .unwrap();
    let mut write = || file.write_all(&[1; 2 << 20]).unwrap();
    write();
    script.send(format!("{}\n", common::threshold("disk0", 1, 4096)).as_bytes());
    for _ in 0..49 {
        std::thread::sleep(Duration::from_millis(100));
        // On a machine that is busy otherwise the watcher may be late, and so is the guest.
        eventually("there is room", || free(tmpfs.path()) >= 8 * MIB);
        write();
    }
    let grown = || {
        let records = setup.records();
        let early = records.iter().filter(|record| record["early"] == true);
        early.filter(|record| record["result"] == "grown").count()
    };
    assert!(grown() >= 2, "{:?}", setup.records());
    // When nothing moves any more nothing is measured, and the server tells of the next write.
    eventually("it is armed again", || thresholds() >= 2);
    assert_eq!(
        (script.conts().len(), setup.count("incident-began")),
        (0, 0)
    );
    assert!(watcher.terminate(PATIENCE).unwrap().success());
}

/// A watcher that is killed leaves a threshold behind; the next one takes up where that was.
#[test]
fn another_watcher_takes_over() {
    let setup = Setup::new(
        "[[machines]]\nsockets = [\"@PLACE@/qmp.sock\"]\nstrategy = \"quota\"\nstep = \"8M\"\n",
    );
    let place = &setup.place;
    let dir = tempfile_in_target();
    let image = dir.path().join("disk.img");
    truncate(&image, 64 * MIB);
    let mut daemon = daemon(place, &image, 16 * MIB).start().unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut first = setup.watch(1);
    eventually("it is armed", || armed(&mut qmp) > 0);
    first.kill().unwrap();
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    // Nobody hears it.
    write_through(&mut disk, 15 * MIB, 1 << 30);
    assert_eq!(armed(&mut qmp), 0);
    let mut second = setup.watch(1);
    eventually("it is extended", || {
        setup.records().iter().any(|record| record["early"] == true)
    });
    eventually("it is armed again", || armed(&mut qmp) > 0);
    assert_eq!(setup.count("incident-began"), 0);
    assert!(second.terminate(PATIENCE).unwrap().success());
    drop(disk);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}
