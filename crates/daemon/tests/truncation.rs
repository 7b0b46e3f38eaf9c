//! A client that truncates its memory while a request of it is held, on a real file: the kernel's
//! EFAULT is the client's own fault and never held, and our own accesses do not end the daemon.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use common::{DISK_BYTES, PATIENCE, Place, eventually, standfastd};
use frontend::{Disk, Options, Request};
use serde_json::{Value, json};
use testkit::Qmp;

#[test]
fn what_is_held_for_a_client_without_memory_is_not_held_again() {
    let place = Place::new();
    let other = format!(
        "vhost-user-blk,id=vdb,node-name=n,num-queues=4,iothread.0=io0,iothread.1=io1,\
         addr.type=unix,addr.path={}",
        place.name("vdb.sock")
    );
    let daemon = place
        .with_disk(standfastd())
        .args(["--object", "iothread,id=io0"])
        .args(["--object", "iothread,id=io1"])
        .args(["--blockdev", "null-co,node-name=n,read-zeroes=on"])
        .args(["--export", &other])
        .socket(place.file("vdb.sock"))
        .start()
        .unwrap();
    let four = Options {
        queues: 4,
        ..Options::default()
    };
    let mut second = Disk::connect(place.file("vdb.sock"), four).unwrap();
    let mut qmp = Qmp::connect(place.file("qmp.sock")).unwrap();
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    let data = vec![1; 64 << 10];
    let write = |sector| Request::Write {
        sector,
        data: &data,
    };
    for sector in (0..DISK_BYTES / 512).step_by(data.len() / 512) {
        disk.submit(0, write(sector)).unwrap();
    }
    disk.kick(0).unwrap();
    let held = |qmp: &mut Qmp| {
        let held = qmp.execute("x-query-held", Value::Null).unwrap();
        held.as_array().unwrap().len()
    };
    // The first write that does not fit freezes the rest in the ring.
    eventually("a write is held", || held(&mut qmp) == 1);

    for region in disk.memory().regions() {
        rustix::fs::ftruncate(region.mapping().fd(), 0).unwrap();
    }
    let limit = json!({"node-name": "disk0", "limit": DISK_BYTES});
    qmp.execute("x-quota-set", limit).unwrap();
    qmp.execute("cont", Value::Null).unwrap();
    let broken = qmp.wait_event("X_BLOCK_EXPORT_QUEUE_BROKEN", PATIENCE);
    let reason = "the client has truncated memory that it shares with this device";
    assert_eq!(
        broken.unwrap().data,
        json!({"id": "vda", "queue": 0, "reason": reason})
    );
    drop(disk);

    let status = qmp.execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "running");
    // If the truncation was noticed before `cont`, the write waits for the client to come back.
    let mut disk = Disk::connect(place.file("vda.sock"), Options::default()).unwrap();
    eventually("nothing is held", || held(&mut qmp) == 0);
    let written = disk.execute(0, write(0), PATIENCE).unwrap();
    assert!(written.is_ok(), "{written:?}");
    eventually("the trouble is over", || {
        let exports = qmp.execute("query-block-exports", Value::Null).unwrap();
        exports[0].get("x-trouble").is_none()
    });
    for queue in 0..4 {
        let request = Request::Read {
            sector: 0,
            len: 4096,
        };
        let read = second.execute(queue, request, PATIENCE).unwrap();
        assert_eq!((read.is_ok(), read.data), (true, vec![0; 4096]));
    }
    drop(daemon);
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
