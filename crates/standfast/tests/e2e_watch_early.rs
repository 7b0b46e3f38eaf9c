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
use common::{Script, Setup, disk, soak};
use serde_json::{Value, json};
use testkit::place::{PATIENCE, eventually};
use testkit::{Guest, LoopDevice, Tmpfs, VirtioBlk};

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
    // The guest writes: 2 MiB, each 100 ms.
    script.send(format!("{}\n", common::threshold("disk0", 1, 4096)).as_bytes());
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&image)
        .unwrap();
    for _ in 0..50 {
        file.write_all(&[1; 2 << 20]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
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
