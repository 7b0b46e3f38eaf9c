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
use testkit::guest::{Files, GUEST_PATIENCE, make_ext4_image};
use testkit::place::PATIENCE;
use testkit::{Daemon, Guest, Qmp, Tmpfs, VhostUserBlk, VirtioBlk, soak};

const MIB: u64 = 1 << 20;

/// The guest writes to many times the first size, round after round; every file is right, its kernel has
/// seen nothing, and the journal tells of each stop.
#[test]
fn a_guest_of_plain_qemu_never_learns_of_it() {
    let tmpfs = Tmpfs::new(256 * MIB).unwrap();
    let image = tmpfs.path().join("disk.img");
    make_ext4_image(&image, 192 * MIB).unwrap();
    let setup = Setup::new(
        r#"
[limits]
extensions-per-hour = 10000
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
    guest.wait_boot(GUEST_PATIENCE).unwrap();
    guest.mount("vda", "/mnt", GUEST_PATIENCE).unwrap();

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
            guest.run_ok(&script, GUEST_PATIENCE).unwrap();
            let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
            tmpfs.resize(allocated + MIB).unwrap();
            sets.remove(0);
        }
        guest.write_files(&files, GUEST_PATIENCE).unwrap();
        sets.push(files);
    }
    guest.drop_caches(GUEST_PATIENCE).unwrap();
    for files in &sets {
        guest.verify_files(files, GUEST_PATIENCE).unwrap();
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
    assert!(guest.power_off(GUEST_PATIENCE).unwrap().success());
    assert!(watcher.terminate(PATIENCE).unwrap().success());

    let history = setup.history();
    assert!(history.len() >= soak(8, 100), "{} incidents", history.len());
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

/// One VM, two sockets, both watched: a disk of the daemon's, which is linked with QEMU, and one of QEMU's own, on one
/// file system that is extended under them.
#[test]
fn a_guest_with_a_linked_daemon_and_a_disk_of_its_own() {
    let tmpfs = Tmpfs::new(512 * MIB).unwrap();
    let (ours, own) = (tmpfs.path().join("ours.img"), tmpfs.path().join("own.img"));
    for image in [&ours, &own] {
        make_ext4_image(image, 96 * MIB).unwrap();
    }
    let machine = |sockets: &str, more: &str| {
        format!(
            "[[machines]]\nsockets = [\"@PLACE@/{sockets}\"]\n{more}strategy = \"command\"\ncommand = [\"@PLACE@/grow\"]\nearly = false\nstep = \"2M\"\ncap = \"512M\"\n"
        )
    };
    let sections = machine("*.daemon", "vmm = \"@PLACE@/*.qemu\"\n") + &machine("*.qemu", "");
    let setup = Setup::new(&format!("[limits]\nextensions-per-hour = 1000\n{sections}"));
    let dir = tmpfs.path().display();
    setup.script(
        "grow",
        &format!("exec mount -o remount,size=$STANDFAST_NEW_SIZE {dir}"),
    );
    let place = &setup.place;
    let node = json!({"driver": "file", "node-name": "disk0", "filename": ours, "cache": {"direct": true}});
    let export = json!({"type": "vhost-user-blk", "id": "vda", "node-name": "disk0", "writable": true,
        "werror": "stop", "addr": {"type": "unix", "path": place.name("vda.sock")}});
    let chardev = format!(
        "socket,id=qmp,path={},server=on,wait=off",
        place.name("vm.daemon")
    );
    let link = json!({"qom-type": "vmm-qemu", "id": "vm0", "path": place.name("link.qmp")});
    let mut daemon = Daemon::builder(env!("CARGO_BIN_EXE_standfast"))
        .arg("demo-daemon")
        .timeout(PATIENCE)
        .args(["--object", &link.to_string()])
        .args([
            "--blockdev",
            &node.to_string(),
            "--export",
            &export.to_string(),
        ])
        .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
        .socket(place.file("vda.sock"))
        .socket(place.file("vm.daemon"))
        .start()
        .unwrap();
    let monitor = |name: &str| format!("unix:{},server=on,wait=off", place.name(name));
    let mut guest = Guest::builder()
        .disk(VhostUserBlk::new(place.file("vda.sock")))
        .disk(VirtioBlk::new(&own).buffered().werror("enospc"))
        .qemu_arg("-qmp")
        .qemu_arg(monitor("link.qmp"))
        .qemu_arg("-qmp")
        .qemu_arg(monitor("vm.qemu"))
        .start()
        .unwrap();
    let mut watcher = setup.watch(2);
    guest.wait_boot(GUEST_PATIENCE).unwrap();
    guest.mount("vda", "/mnt/a", GUEST_PATIENCE).unwrap();
    guest.mount("vdb", "/mnt/b", GUEST_PATIENCE).unwrap();
    let allocated = |path| std::fs::metadata(path).unwrap().blocks() * 512;
    tmpfs
        .resize(allocated(&ours) + allocated(&own) + MIB)
        .unwrap();
    let sets = ["/mnt/a", "/mnt/b"].map(|dir| Files {
        dir: format!("{dir}/files"),
        seed: 3,
        count: 12,
        kib: 1024,
    });
    for files in &sets {
        guest.write_files(files, GUEST_PATIENCE).unwrap();
    }
    guest.drop_caches(GUEST_PATIENCE).unwrap();
    for files in &sets {
        guest.verify_files(files, GUEST_PATIENCE).unwrap();
    }
    guest.check_no_io_errors().unwrap();
    let mut qmp = Qmp::connect(place.file("vm.daemon")).unwrap();
    for status in [
        qmp.execute("query-status", Value::Null).unwrap(),
        guest.qmp().execute("query-status", Value::Null).unwrap(),
    ] {
        assert_eq!(status["status"], "running", "{status}");
    }
    assert!(guest.power_off(GUEST_PATIENCE).unwrap().success());
    assert!(watcher.terminate(PATIENCE).unwrap().success());
    assert!(daemon.terminate(PATIENCE).unwrap().success());

    let history = setup.history();
    let of = |name: &str| {
        let told = history
            .iter()
            .filter(|told| told["machine"].to_string().contains(name));
        told.count()
    };
    println!(
        "{} incidents of the daemon's disk, {} of QEMU's",
        of(".daemon"),
        of(".qemu")
    );
    assert!(of(".daemon") >= 2 && of(".qemu") >= 2, "{history:?}");
    for told in &history {
        let ending = &told["ending"];
        // The link may resume a VM that a disk of its own had stopped: that is somebody else's `cont`.
        assert!(
            ending == "continued" || ending == "continued-by-other",
            "{told}"
        );
        assert_eq!(told["gave-up"], false, "{told}");
    }
}
