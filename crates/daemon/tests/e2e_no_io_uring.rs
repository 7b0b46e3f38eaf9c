//! Where io_uring is forbidden, as container engines do by default: the daemon starts, says so, and serves.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole file is a test"
)]

mod common;

use std::fs::File;

use common::{PATIENCE, Place, standfastd};
use frontend::{Disk, Options, Request};
use serde_json::Value;
use testkit::Qmp;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

const BYTES: usize = 4 << 20;

/// Starts it with two iothreads, writes through both, and reads the file.
fn serves(errno: i32, why: &str) {
    let place = Place::new();
    // On a file system that is asked by system calls: files in memory are not.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(BYTES as u64).unwrap();
    let blockdev = format!("file,node-name=n,filename={}", image.display());
    let socket = place.file("vda.sock");
    let export = format!(
        "vhost-user-blk,id=vda,node-name=n,writable=on,num-queues=2,iothread.0=a,iothread.1=b,\
         addr.type=unix,addr.path={}",
        socket.display()
    );
    let chardev = format!("socket,id=c,path={},server=on,wait=off", place.name("q"));
    let mut daemon = standfastd()
        .args(["--object", "iothread,id=a", "--object", "iothread,id=b"])
        .args(["--blockdev", &blockdev, "--export", &export])
        .args(["--chardev", &chardev, "--monitor", "c"])
        .socket(&socket)
        .socket(place.file("q"))
        .without_io_uring(errno)
        .start()
        .unwrap();
    let options = Options {
        queues: 2,
        ..Options::default()
    };
    let mut disk = Disk::connect(&socket, options).unwrap();
    let mut expected = vec![0; BYTES];
    for round in 0..64_u8 {
        let data = vec![round + 1; 4096];
        let at = usize::from(round) * 8192;
        expected[at..at + 4096].copy_from_slice(&data);
        let write = Request::Write {
            sector: at as u64 / 512,
            data: &data,
        };
        let queue = u16::from(round % 2);
        let done = disk.execute(queue, write, PATIENCE).unwrap();
        assert!(done.is_ok(), "{done:?}");
    }
    let done = disk.execute(0, Request::Flush, PATIENCE).unwrap();
    assert!(done.is_ok(), "{done:?}");
    assert!(std::fs::read(&image).unwrap() == expected);
    let mut qmp = Qmp::connect(place.file("q")).unwrap();
    let blocks = qmp.execute("query-block", Value::Null).unwrap();
    assert_eq!(blocks[0]["io-status"], "ok");
    assert!(daemon.terminate(PATIENCE).unwrap().success());
    let stderr = daemon.stderr();
    let told: Vec<_> = (stderr.lines())
        .filter(|line| line.contains("io_uring is not available"))
        .collect();
    assert!(
        matches!(told[..], [line] if line.contains(why) && line.contains("WARN") && line.contains("iothread 'a'")),
        "{stderr}"
    );
}

#[test]
fn refused_as_by_a_container() {
    serves(EPERM, "Operation not permitted");
}

#[test]
fn hidden_as_by_an_old_kernel() {
    serves(ENOSYS, "Function not implemented");
}
