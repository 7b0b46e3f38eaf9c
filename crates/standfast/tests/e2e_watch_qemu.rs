//! `standfast watch` with a real QEMU and its own virtio-blk disk: no daemon of ours anywhere.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::Setup;
use serde_json::{Value, json};
use testkit::guest::{Files, make_ext4_image};
use testkit::place::PATIENCE;
use testkit::{Guest, Tmpfs, VirtioBlk};

const MIB: u64 = 1 << 20;

/// An emulated guest on a busy machine is slow.
const GUEST: Duration = Duration::from_secs(200);

fn soak(few: u32, many: u32) -> u32 {
    if std::env::var_os("STANDFAST_SOAK").is_some() {
        many
    } else {
        few
    }
}

/// The guest writes to many times the first size, round after round; every file is right, its kernel has
/// seen nothing, and the journal tells of each stop.
#[test]
fn a_guest_of_plain_qemu_never_learns_of_it() {
    let tmpfs = Tmpfs::new(256 * MIB).unwrap();
    let image = tmpfs.path().join("disk.img");
    make_ext4_image(&image, 192 * MIB).unwrap();
    let setup = Setup::new(
        r#"
[[machines]]
sockets = ["@PLACE@/*.qmp"]
strategy = "command"
command = ["@PLACE@/grow"]
early = false
step = "2M"
cap = "256M"
"#,
    );
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!("exec mount -o remount,size=$STANDFAST_NEW_SIZE {dir}"),
    );
    let monitor = format!("unix:{},server=on,wait=off", setup.place.name("vm.qmp"));
    let mut guest = Guest::builder()
        .disk(VirtioBlk::new(&image).buffered().werror("enospc"))
        .qemu_arg("-qmp")
        .qemu_arg(monitor)
        .start()
        .unwrap();
    let mut watcher = setup.watch(1);
    guest.wait_boot(GUEST).unwrap();
    guest.mount("vda", "/mnt", GUEST).unwrap();

    // All that is there, and hardly more.
    let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
    tmpfs.resize(allocated + MIB).unwrap();
    let mut sets = Vec::new();
    for round in 0..soak(3, 50) {
        // The soak writes over what is there: of that many rounds the disk holds three.
        let files = Files {
            dir: format!("/mnt/{}", round % 3),
            seed: round,
            count: 8,
            kib: 1024,
        };
        if round >= 3 {
            let script = format!("rm -r {} && sync && fstrim /mnt", files.dir);
            guest.run_ok(&script, GUEST).unwrap();
            let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
            tmpfs.resize(allocated + MIB).unwrap();
            sets.remove(0);
        }
        guest.write_files(&files, GUEST).unwrap();
        sets.push(files);
    }
    guest.drop_caches(GUEST).unwrap();
    for files in &sets {
        guest.verify_files(files, GUEST).unwrap();
    }
    guest.check_no_io_errors().unwrap();
    let status = guest.qmp().execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "running");

    // A pause of an administrator is left alone.
    guest.qmp().execute("stop", Value::Null).unwrap();
    setup.wait_status("it is paused", |status| {
        status["machines"][0]["state"] == "paused"
    });
    std::thread::sleep(Duration::from_millis(500));
    let status = guest.qmp().execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "paused");
    guest.qmp().execute("cont", Value::Null).unwrap();
    assert!(guest.power_off(GUEST).unwrap().success());
    assert!(watcher.terminate(PATIENCE).unwrap().success());

    let history = setup.history();
    assert!(history.len() >= 8, "{} incidents", history.len());
    for told in &history {
        assert_eq!(
            (&told["cause"], &told["ending"]),
            (&json!("nospace"), &json!("continued")),
            "{told}"
        );
        assert_eq!(told["disk"], "disk0", "{told}");
    }
    let paused = history
        .iter()
        .map(|told| told["seconds-paused"].as_f64().unwrap());
    let longest = paused.clone().fold(0.0, f64::max);
    println!(
        "{} incidents, {:.3} s paused in all, the longest {longest:.3} s",
        history.len(),
        paused.sum::<f64>()
    );
}
