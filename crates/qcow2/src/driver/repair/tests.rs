//! Images that QEMU has left dirty. Needs qemu-img and qemu-io (Debian: qemu-utils).

use std::path::Path;
use std::process::Command;

use block::Node;
use drivers::file::Medium;
use drivers::{FileDriver, FileOptions};
use sweep::Memory;
use tempfile::TempDir;
use testkit::qcow2_image;

use super::*;
use crate::check::{Report, check};
use crate::driver::{Qcow2, Qcow2Options};
use crate::image::Image;

const KINDS: [&str; 4] = [
    "cluster_size=64k",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,refcount_bits=64",
];

fn on(node: Arc<Node>) -> Arc<Base> {
    Arc::new(Base::new(Qcow2Options::new("disk0", node)))
}

fn mended(memory: &Memory) -> Result<()> {
    repair_dirty(&on(memory.node("file0")))
}

fn looked_at(bytes: &[u8]) -> (bool, Report) {
    let image = Image::open(&bytes).unwrap();
    (
        image.header.features.is_dirty(),
        check(&image, &Limits::default()),
    )
}

/// A dirty image at `path`, some of whose refcounts were never written.
fn make_dirty(path: &Path, kind: &str) {
    let name = path.to_str().unwrap();
    let options = format!("{kind},lazy_refcounts=on");
    qcow2_image::run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", &options, name, "4M"],
    )
    .unwrap();
    let writes = "write -q -P 1 0 128k;write -q -P 2 1M 300k;write -q -z 2M 64k";
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-fqcow2"]);
    for write in writes.split(';') {
        qemu.args(["-c", write]);
    }
    // It ends by SIGABRT, and perhaps with a core: not here.
    qemu.args([
        "-c",
        "flush",
        "-c",
        "write -q -P 3 1500k 200k",
        "-c",
        "abort",
        name,
    ]);
    qemu.current_dir(path.parent().unwrap());
    assert!(!qemu.output().unwrap().status.success());
    let (dirty, report) = looked_at(&std::fs::read(path).unwrap());
    assert!(dirty && report.corruptions > 0, "{kind}");
}

fn dirty(kind: &str) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    make_dirty(&path, kind);
    (dir, path)
}

#[test]
fn what_qemu_has_left_dirty_is_repaired_and_says_what_it_said() {
    for kind in KINDS {
        let (_dir, path) = dirty(kind);
        let content = qcow2_image::content(&path).unwrap();
        let options = FileOptions {
            node_name: "file0".into(),
            path: Some(path.clone()),
            filename: path.display().to_string(),
            ..FileOptions::default()
        };
        let file = pollster::block_on(FileDriver::open(Medium::File, options)).unwrap();
        repair_dirty(&on(Node::new("file0", Box::new(file)))).unwrap();
        let (dirty, report) = looked_at(&std::fs::read(&path).unwrap());
        assert!(!dirty && report.is_clean(), "{kind}: {:?}", report.findings);
        // Fails if anything is wrong.
        let name = path.to_str().unwrap();
        qcow2_image::run("qemu-img", &["check", "-q", "-fqcow2", name]).unwrap();
        assert!(qcow2_image::content(&path).unwrap() == content, "{kind}");
    }
}

/// Whatever fails, the image stays dirty until all is durable, and the next one to open it begins anew.
#[test]
fn a_failure_anywhere_leaves_it_dirty() {
    let (_dir, path) = dirty(KINDS[1]);
    let image = std::fs::read(&path).unwrap();
    let wrong = looked_at(&image).1.corruptions;
    let mut failed = 0;
    let mut operations = 0;
    loop {
        let memory = Memory::new(&image).failing_after(operations);
        let done = mended(&memory);
        let (bytes, durable) = (memory.content(), memory.durable());
        for left in [&bytes, &durable] {
            let (dirty, report) = looked_at(left);
            assert!(dirty || report.is_clean(), "{operations}");
            assert!(report.corruptions <= wrong, "{operations}");
        }
        let Err(error) = done else {
            assert!(!looked_at(&durable).0, "{operations}");
            break;
        };
        failed += 1;
        assert_eq!(error.errno(), libc::ENOSPC, "{operations}: {error}");
        assert!(error.to_string().contains("not closed cleanly"), "{error}");
        let again = Memory::new(&bytes);
        mended(&again).unwrap();
        let (dirty, report) = looked_at(&again.durable());
        assert!(
            !dirty && report.is_clean(),
            "{operations}: {:?}",
            report.findings
        );
        // Reads at first, all alike.
        operations += if operations < 20 { 1 } else { 3 };
    }
    assert!(failed > 10, "{failed}");
}

/// The dirty bit went as soon as nothing was wrong, before what the one that has ended had written was durable.
#[test]
fn what_another_one_wrote_is_durable_before_the_image_is_clean() {
    let (_dir, path) = dirty(KINDS[0]);
    let wrong = std::fs::read(&path).unwrap();
    let mut right = wrong.clone();
    repair(&mut right, Fix::All, &Limits::default()).unwrap();
    right[79] |= 1;
    let reads = {
        let memory = Memory::new(&right);
        mended(&memory).unwrap();
        usize::MAX - memory.left()
    };
    for operations in 0..=reads {
        let memory = Memory::new(&right).failing_after(operations);
        memory.set_durable(&wrong);
        // Some fail.
        let _ = mended(&memory);
        // The header has reached the disk, and of the rest what had to.
        let mut left = memory.durable();
        left[..512].copy_from_slice(&memory.content()[..512]);
        let (dirty, report) = looked_at(&left);
        assert!(dirty || report.is_clean(), "{operations}");
    }
}

/// What no refcount mends is left as it is, and told.
#[test]
fn what_cannot_be_mended_is_told() {
    let (_dir, path) = dirty(KINDS[0]);
    let mut image = std::fs::read(&path).unwrap();
    let be64 = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(be64(40)).unwrap();
    let l2 = usize::try_from(be64(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
    image[l2..l2 + 8].copy_from_slice(&0x8000_0000_0005_0200_u64.to_be_bytes());
    let memory = Memory::new(&image);
    let error = mended(&memory).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    assert!(error.to_string().contains("errors are left"), "{error}");
    assert!(looked_at(&memory.content()).0);
}

/// New refcounts need room; where the storage cannot grow the errno says what is missing.
#[test]
fn storage_that_cannot_grow_is_full() {
    let (_dir, path) = dirty(KINDS[0]);
    let mut image = std::fs::read(&path).unwrap();
    // There are no refcounts any more, and the last cluster is in use.
    let table = usize::try_from(u64::from_be_bytes(image[48..56].try_into().unwrap())).unwrap();
    image[table..table + 8].fill(0);
    for grows in [false, true] {
        let memory = Memory::new(&image);
        let memory = if grows { memory } else { memory.fixed() };
        let done = mended(&memory).map_err(|error| error.errno());
        assert_eq!(done, if grows { Ok(()) } else { Err(libc::ENOSPC) });
        assert_eq!(looked_at(&memory.content()).0, !grows);
    }
}

/// One that is only read stays as it is, however it comes into use.
#[test]
fn who_only_reads_repairs_nothing() {
    use block::{Access, Permissions};
    let (_dir, path) = dirty(KINDS[0]);
    let image = std::fs::read(&path).unwrap();
    let memory = Memory::new(&image);
    let mut options = Qcow2Options::new("disk0", memory.node("file0"));
    options.info.read_only = true;
    let driver = pollster::block_on(Qcow2::open(options)).unwrap();
    let node = Node::new("disk0", Box::new(driver));
    let reads = Access {
        held: Permissions::CONSISTENT_READ,
        shared: Permissions::ALL,
    };
    for above in [Access::NONE, reads] {
        node.activate(above).unwrap();
        assert_eq!(memory.content(), image);
    }
    assert!(node.driver().info().format.unwrap().dirty);
}
