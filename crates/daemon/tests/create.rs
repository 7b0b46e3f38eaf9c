//! Images of qcow2 are made in the background: on nodes, by jobs that end, fail, are given up or killed.
//! Needs qemu-img (Debian: qemu-utils).
#![allow(
    clippy::expect_used,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, Place, eventually, standfastd};
use serde_json::{Value, json};
use testkit::daemon::Builder;
use testkit::qcow2_image::run;
use testkit::{Daemon, FuseFile, FuseOp, Qmp, Rng, Tmpfs};

fn start(place: &Place) -> (Daemon, Qmp) {
    let builder: Builder = place.with_disk(standfastd());
    let daemon = builder.start().unwrap();
    (daemon, Qmp::connect(place.file("qmp.sock")).unwrap())
}

fn add_file(qmp: &mut Qmp, node: &str, path: &Path) {
    let options = json!({ "driver": "file", "node-name": node, "filename": path });
    qmp.execute("blockdev-add", options).unwrap();
}

fn create(qmp: &mut Qmp, id: &str, options: Value) {
    let mut options = options;
    options["driver"] = "qcow2".into();
    let arguments = json!({ "job-id": id, "options": options });
    qmp.execute("blockdev-create", arguments).unwrap();
}

/// How the job has ended.
fn ended(qmp: &mut Qmp, id: &str) -> Option<String> {
    loop {
        let event = qmp.wait_event("JOB_STATUS_CHANGE", PATIENCE).unwrap();
        if event.data["id"] == id && event.data["status"] == "concluded" {
            break;
        }
    }
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    let job = jobs.as_array().unwrap().iter().find(|job| job["id"] == id);
    let error = job.unwrap()["error"].as_str().map(str::to_owned);
    qmp.execute("job-dismiss", json!({ "id": id })).unwrap();
    error
}

fn check(path: &Path) {
    run(
        "qemu-img",
        &["check", "-q", "-fqcow2", path.to_str().unwrap()],
    )
    .unwrap();
}

fn is_image(path: &Path) -> bool {
    let mut magic = [0; 4];
    let file = fs::File::open(path).unwrap();
    file.read_at(&mut magic, 0).unwrap() == 4 && magic == *b"QFI\xfb"
}

/// As libvirt does it; a node for the job alone, too. Both images are disks then.
#[test]
fn images_are_made_and_used() {
    let place = Place::new();
    let (mut daemon, mut qmp) = start(&place);
    let path = place.file("a.qcow2");
    fs::write(&path, "").unwrap();
    add_file(&mut qmp, "a", &path);
    create(&mut qmp, "j", json!({ "file": "a", "size": 64 << 20 }));
    assert_eq!(ended(&mut qmp, "j"), None);
    check(&path);
    let other = place.file("b.qcow2");
    fs::write(&other, "").unwrap();
    let file = json!({ "driver": "file", "filename": other });
    let nodes = |qmp: &mut Qmp| {
        let all = qmp.execute("query-named-block-nodes", Value::Null).unwrap();
        all.as_array().unwrap().len()
    };
    let before = nodes(&mut qmp);
    let options = json!({ "file": file, "size": 64 << 20, "preallocation": "metadata" });
    create(&mut qmp, "k", options);
    assert_eq!(ended(&mut qmp, "k"), None);
    check(&other);
    eventually("the node is gone", || nodes(&mut qmp) == before);
    let disk = json!({ "driver": "qcow2", "node-name": "disk", "file": "a" });
    qmp.execute("blockdev-add", disk).unwrap();
    let addr = json!({ "type": "unix", "path": place.file("e.sock") });
    let export = json!({ "type": "vhost-user-blk", "id": "e", "node-name": "disk", "writable": true,
        "addr": addr });
    qmp.execute("block-export-add", export).unwrap();
    // Whoever has it is not overwritten.
    create(&mut qmp, "j", json!({ "file": "a", "size": 1 << 20 }));
    let error = ended(&mut qmp, "j").unwrap();
    assert!(error.contains("'a'"), "{error}");
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    let info = run("qemu-img", &["info", path.to_str().unwrap()]).unwrap();
    assert!(info.contains("64 MiB"), "{info}");
}

/// Want of space is told by the node's name; what the job has taken is given back, and there is no image.
#[test]
fn no_space_leaves_nothing() {
    let place = Place::new();
    let tmpfs = Tmpfs::new(8 << 20).expect("root");
    let path = tmpfs.path().join("full.qcow2");
    fs::write(&path, "").unwrap();
    let (mut daemon, mut qmp) = start(&place);
    add_file(&mut qmp, "small", &path);
    for preallocation in ["falloc", "full"] {
        let options = json!({ "file": "small", "size": 64 << 20, "preallocation": preallocation });
        create(&mut qmp, "j", options);
        let error = ended(&mut qmp, "j").unwrap();
        let named = error.starts_with("node 'small'") && error.contains("No space left on device");
        assert!(named, "{error}");
        assert_eq!(path.metadata().unwrap().len(), 0);
    }
    create(&mut qmp, "j", json!({ "file": "small", "size": 64 << 20 }));
    assert_eq!(ended(&mut qmp, "j"), None);
    check(&path);
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// Storage that hangs keeps a job, and nobody else: neither who has asked, nor the end of the daemon.
#[test]
fn a_job_that_hangs() {
    let place = Place::new();
    let fuse = FuseFile::new(16 << 20).expect("FUSE");
    let (mut daemon, mut qmp) = start(&place);
    add_file(&mut qmp, "slow", &fuse.path());
    fuse.hang(FuseOp::Write, true);
    create(
        &mut qmp,
        "j",
        json!({ "file": "slow", "size": 1 << 20, "cluster-size": 4096 }),
    );
    eventually("it writes", || fuse.count(FuseOp::Write) > 0);
    // Whoever has begun it leaves.
    drop(qmp);
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    assert_eq!(jobs[0]["status"], "running");
    let desc = qmp.execute("blockdev-del", json!({ "node-name": "slow" }));
    desc.expect_err("the job uses it");
    fuse.hang(FuseOp::Write, false);
    eventually("it ends", || {
        let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
        jobs[0]["status"] == "concluded"
    });
    let jobs = qmp.execute("query-jobs", Value::Null).unwrap();
    assert_eq!(jobs[0].get("error"), None);
    assert!(is_image(&fuse.path()));
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// It would take a minute; it is given up with the daemon, and leaves no image.
#[test]
fn the_end_does_not_wait_for_a_job() {
    let place = Place::new();
    let path = place.file("a.qcow2");
    fs::write(&path, "").unwrap();
    let (mut daemon, mut qmp) = start(&place);
    let limits = json!({ "bps-write": 1 << 20, "bps-write-max": 1 << 20 });
    let group = json!({ "qom-type": "throttle-group", "id": "g", "limits": limits });
    qmp.execute("object-add", group).unwrap();
    let file = json!({ "driver": "file", "filename": path });
    let throttle =
        json!({ "driver": "throttle", "node-name": "t", "throttle-group": "g", "file": file });
    qmp.execute("blockdev-add", throttle).unwrap();
    let options = json!({ "file": "t", "size": 64 << 20, "preallocation": "full" });
    create(&mut qmp, "j", options);
    eventually("it writes", || path.metadata().unwrap().len() > 64 << 20);
    let begun = Instant::now();
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(!is_image(&path));
}

#[test]
fn a_job_that_is_cancelled() {
    let place = Place::new();
    let fuse = FuseFile::new(16 << 20).expect("FUSE");
    let (mut daemon, mut qmp) = start(&place);
    add_file(&mut qmp, "slow", &fuse.path());
    fuse.hang(FuseOp::Write, true);
    let options = json!({ "file": "slow", "size": 8 << 20, "preallocation": "full" });
    create(&mut qmp, "j", options);
    eventually("it writes", || fuse.count(FuseOp::Write) > 0);
    qmp.execute("job-cancel", json!({ "id": "j" })).unwrap();
    fuse.hang(FuseOp::Write, false);
    assert_eq!(ended(&mut qmp, "j").unwrap(), "Operation canceled");
    assert!(!is_image(&fuse.path()));
    assert_eq!(fuse.path().metadata().unwrap().len(), 16 << 20);
    drop(qmp);
    assert!(daemon.terminate(PATIENCE).unwrap().success());
}

/// What the kernel does for a daemon that was killed may end after it, and so long its locks are there.
fn wait_for_locks(image: &str) {
    eventually("the locks are gone", || {
        run("qemu-img", &["info", image]).is_ok()
    });
}

/// Killed at any instant there is the former image or the new one, whole, or nothing that is one.
#[test]
fn killed_at_any_instant() {
    let rounds = match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => 200,
        None => 12,
    };
    let mut rng = Rng::new(0x6b696c6c);
    let mut found = [0; 3];
    for round in 0..rounds {
        let place = Place::new();
        let path = place.file("a.qcow2");
        let name = path.to_str().unwrap();
        let is_overwritten = round % 2 == 1;
        match is_overwritten {
            true => {
                run("qemu-img", &["create", "-qfqcow2", name, "3M"]).unwrap();
            }
            false => fs::write(&path, "").unwrap(),
        }
        let (mut daemon, mut qmp) = start(&place);
        add_file(&mut qmp, "a", &path);
        let modes = ["off", "metadata", "falloc", "full"];
        let mode = modes[usize::try_from(rng.below(4)).unwrap()];
        let options = json!({ "file": "a", "size": 24 << 20, "preallocation": mode,
            "cluster-size": 4096 });
        create(&mut qmp, "j", options);
        std::thread::sleep(Duration::from_micros(rng.below(30_000)));
        daemon.kill().unwrap();
        wait_for_locks(name);
        let kind = match is_image(&path) {
            false => 0,
            true => {
                check(&path);
                let info = run("qemu-img", &["info", name]).unwrap();
                let is_old = info.contains("3 MiB") && is_overwritten;
                assert!(is_old || info.contains("24 MiB"), "{info}");
                if is_old { 1 } else { 2 }
            }
        };
        found[kind] += 1;
        // Whatever was left is no obstacle for whoever makes it anew.
        let (mut daemon, mut qmp) = start(&place);
        add_file(&mut qmp, "a", &path);
        create(&mut qmp, "j", json!({ "file": "a", "size": 5 << 20 }));
        assert_eq!(ended(&mut qmp, "j"), None, "round {round}");
        daemon.kill().unwrap();
        wait_for_locks(name);
        check(&path);
        let info = run("qemu-img", &["info", name]).unwrap();
        assert!(info.contains("5 MiB"), "round {round}: {info}");
    }
    eprintln!("no image, the former one, the new one: {found:?}");
}
