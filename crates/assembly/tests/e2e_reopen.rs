//! Nodes that are opened anew while they are in use, or not: nothing is lost, and what fails changes nothing.
//!
//! Needs root, FUSE and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, symlink};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use frontend::Request;
    use qapi::options::BlockdevOptions;
    use serde_json::{Value, json};
    use testkit::place::{PATIENCE, eventually};
    use testkit::{FuseFile, FuseOp, Tmpfs};

    use super::common::{BLOCKS, House, descriptors, qemu_io};

    const LIMIT: Duration = Duration::from_millis(300);

    fn file(path: &Path) -> Value {
        json!({ "driver": "file", "node-name": "file0", "filename": path })
    }

    fn disk() -> House {
        let house = House::new();
        house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        house
    }

    #[test]
    fn under_load_with_other_options() {
        let house = disk();
        let filter = json!({ "driver": "blkdebug", "node-name": "top", "image": "file0" });
        house.node(&filter).unwrap();
        house.export("vda", "top", true).unwrap();
        house.export("vdb", "file0", false).unwrap();
        let path = fs::canonicalize(house.path("disk0.img")).unwrap();
        let load = house.load("vda");
        let node = || house.registry.node("file0").unwrap();
        for round in 0..20 {
            let mut options = file(&house.path("disk0.img"));
            let direct = round % 2 == 0;
            options["cache"] = json!({ "direct": direct });
            options["discard"] = json!(if round % 3 == 0 { "unmap" } else { "ignore" });
            let (former, users) = (Arc::downgrade(&node()), node().users());
            let highest = node().wr_highest_offset();
            house.reopen(&options, Some(PATIENCE)).unwrap();
            assert_eq!(node().driver().info().cache_direct, direct);
            assert_eq!(node().users(), users, "with the same permissions");
            assert!(node().wr_highest_offset() >= highest);
            assert!(former.upgrade().is_none(), "it is closed");
            assert_eq!(descriptors(&path), 1);
            let locked = qemu_io(&path).unwrap_err();
            assert!(locked.contains("Failed to get \"write\" lock"), "{locked}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(load.end() > 100);
        house.delete_export("vda", true).unwrap();
        house.delete_export("vdb", true).unwrap();
        qemu_io(&path).unwrap();
        house.close();
    }

    /// A volume comes back as another one, under the same name: `cont` tried the one that was gone, again and
    /// again, and only another daemon looked.
    #[test]
    fn what_is_held_is_done_where_the_name_leads_now() {
        let house = House::new();
        let full = Tmpfs::new(4096).unwrap();
        let (old, new) = (full.path().join("disk0.img"), house.image("new.img"));
        fs::write(full.path().join("ballast"), vec![1; 4096]).unwrap();
        let made = fs::File::create(&old).unwrap();
        made.set_len(BLOCKS as u64 * 4096).unwrap();
        drop(made);
        let name = house.path("disk0.img");
        symlink(&old, &name).unwrap();
        house.node(&file(&name)).unwrap();
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        let data = vec![0x5a; 4096];
        let write = Request::Write {
            sector: 8,
            data: &data,
        };
        let token = disk.submit(0, write).unwrap();
        disk.kick(0).unwrap();
        eventually("it is held", || house.held("vda") == 1);

        fs::remove_file(&name).unwrap();
        symlink(&new, &name).unwrap();
        house.reopen(&file(&name), Some(PATIENCE)).unwrap();
        assert_eq!(descriptors(&old), 0);
        assert_eq!(house.held("vda"), 1, "it waits for cont");
        house.go_on().unwrap();
        let done = disk.wait(0, PATIENCE).unwrap().unwrap();
        assert_eq!((done.token, done.status), (token, 0));
        let mut there = vec![0; 4096];
        let image = fs::File::open(&new).unwrap();
        image.read_exact_at(&mut there, 4096).unwrap();
        assert_eq!(there, data);
        drop(disk);
        house.close();
    }

    #[test]
    fn what_cannot_be_changes_nothing() {
        let house = disk();
        house
            .node(&json!({ "driver": "null-co", "node-name": "null0" }))
            .unwrap();
        let options = json!({ "driver": "quota", "node-name": "quota0", "file": "file0",
            "limit": 1 << 30 });
        house.node(&options).unwrap();
        house.export("vda", "quota0", true).unwrap();
        let name = house.path("disk0.img");
        let before = house.registry.node("file0").unwrap();
        let cases = [
            (
                json!({ "driver": "null-co", "node-name": "none" }),
                "Failed to find node with node-name='none'",
            ),
            (
                json!({ "driver": "null-co", "node-name": "file0" }),
                "Option 'filename' cannot be reset to its default value",
            ),
            (
                json!({ "driver": "host_device", "node-name": "file0", "filename": name }),
                "Cannot change the option 'driver'",
            ),
            (
                json!({ "driver": "file", "node-name": "file0", "filename": "/other" }),
                "Cannot change the option 'filename'",
            ),
            (
                json!({ "driver": "null-co", "node-name": "null0", "size": 4096 }),
                "Cannot change the option 'size'",
            ),
            (
                json!({ "driver": "quota", "node-name": "quota0", "file": "null0", "limit": 1 << 30 }),
                "Cannot change the option 'file'",
            ),
            (
                json!({ "driver": "quota", "node-name": "quota0", "file": "none", "limit": 1 << 30 }),
                "Cannot find device='' nor node-name='none'",
            ),
            (
                json!({ "driver": "quota", "node-name": "quota0", "file": "quota0", "limit": 1 << 30 }),
                "Making 'quota0' a file child of 'quota0' would create a cycle",
            ),
            (
                json!({ "driver": "quota", "node-name": "quota0", "file": "file0", "limit": 1 << 30,
                    "cache": { "direct": true } }),
                "Block format 'quota' used by node 'quota0' does not support reopening files",
            ),
            (
                json!({ "driver": "file", "node-name": "file0", "filename": name,
                    "read-only": true }),
                "Read-only block node 'file0' cannot support read-write users",
            ),
        ];
        for (options, words) in cases {
            assert_eq!(
                house.reopen(&options, None).unwrap_err(),
                words,
                "{options}"
            );
        }

        // The second one won, without a word.
        let twice = [true, false].map(|read_only| json!({ "driver": "file", "node-name": "file0", "filename": name, "read-only": read_only }));
        assert_eq!(
            house.reopen_all(&twice).unwrap_err(),
            "Node 'file0' is given twice: say once what it is to be"
        );

        // What the name leads to is not there, somebody else has it, or it is shorter.
        let kept = house.path("kept.img");
        fs::rename(&name, &kept).unwrap();
        let error = house.reopen(&file(&name), None).unwrap_err();
        assert!(error.ends_with("No such file or directory"), "{error}");
        let other = House::new();
        let theirs = other.image("disk1.img");
        other.file("file1", "disk1.img").unwrap();
        other.export("vdb", "file1", true).unwrap();
        symlink(&theirs, &name).unwrap();
        let error = house.reopen(&file(&name), None).unwrap_err();
        assert_eq!(
            error,
            format!("Failed to get \"write\" lock on '{}'", name.display())
        );
        fs::remove_file(&name).unwrap();
        let short = fs::File::create(&name).unwrap();
        short.set_len(4096).unwrap();
        let error = house.reopen(&file(&name), None).unwrap_err();
        assert!(
            error.contains("'resize'") && error.contains("'quota0'"),
            "{error}"
        );
        qemu_io(&name).expect("nobody has it");

        let now = house.registry.node("file0").unwrap();
        assert!(Arc::ptr_eq(&before, &now));
        qemu_io(&kept).expect_err("it is still in use");
        drop((before, now));
        let client = house.load("vda");
        std::thread::sleep(Duration::from_millis(20));
        assert!(client.end() > 0);
        house.delete_export("vda", true).unwrap();
        qemu_io(&kept).expect("nobody uses it");
        house.close();
        other.close();
    }

    /// One that is not shorter for what is held, and longer than it was: its client is told.
    #[test]
    fn another_length_is_told() {
        let house = disk();
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        let image = fs::File::options()
            .write(true)
            .open(house.path("disk0.img"))
            .unwrap();
        let sectors = BLOCKS as u64 * 8;
        assert_eq!(disk.config().capacity, sectors);
        image.set_len(BLOCKS as u64 * 8192).unwrap();
        house.reopen(&file(&house.path("disk0.img")), None).unwrap();
        eventually("it is told", || disk.take_config_changes().unwrap() > 0);
        assert_eq!(disk.refresh_config().unwrap().capacity, 2 * sectors);
        drop(disk);
        house.close();
    }

    /// Other options make nothing good that was lost.
    #[test]
    fn what_was_lost_is_still_lost() {
        let house = House::new();
        let fuse = FuseFile::new(BLOCKS * 4096).unwrap();
        let options = file(&fuse.path());
        house.node(&options).unwrap();
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        fuse.fail(FuseOp::Fsync, libc::EIO);
        let token = disk.submit(0, Request::Flush).unwrap();
        disk.kick(0).unwrap();
        eventually("it is held", || house.held("vda") == 1);
        fuse.fail(FuseOp::Fsync, 0);
        let lost = || house.registry.node("file0").unwrap().latched();
        let before = lost().expect("it is latched");
        for direct in [true, false, true] {
            let mut options = options.clone();
            options["cache"] = json!({ "direct": direct });
            house.reopen(&options, None).unwrap();
            assert_eq!(lost().unwrap().number, before.number);
            house.go_on().expect_err("it is lost");
            assert_eq!(house.held("vda"), 1);
        }
        house.wait(house.registry.accept_loss("file0")).unwrap();
        let done = disk.wait(0, PATIENCE).unwrap().unwrap();
        assert_eq!(done.token, token);
        assert_ne!(done.status, 0, "the guest is told");
        assert!(lost().is_none());
        drop(disk);
        house.close();
    }

    /// Storage that hangs, when it is opened or with a request in flight.
    #[test]
    fn nothing_has_changed_when_the_limit_is_over() {
        let house = House::new();
        let fuse = FuseFile::new(BLOCKS * 4096).unwrap();
        let options = file(&fuse.path());
        house.node(&options).unwrap();
        house.export("vda", "file0", true).unwrap();
        let before = house.registry.node("file0").unwrap();
        let mut disk = house.connect("vda");
        for op in [FuseOp::Open, FuseOp::Write] {
            let data = vec![1; 4096];
            let write = Request::Write {
                sector: 8,
                data: &data,
            };
            fuse.hang(op, true);
            let count = fuse.count(op);
            let token = disk.submit(0, write).unwrap();
            disk.kick(0).unwrap();
            if op == FuseOp::Write {
                eventually("it hangs", || fuse.count(op) > count);
            }
            let error = house.reopen(&options, Some(LIMIT)).unwrap_err();
            assert!(
                error.ends_with("does not answer, and the limit of 0.3 s is over"),
                "{error}"
            );
            fuse.hang(op, false);
            let done = disk.wait(0, PATIENCE).unwrap().unwrap();
            assert_eq!((done.token, done.status), (token, 0));
            assert!(Arc::ptr_eq(&before, &house.registry.node("file0").unwrap()));
        }
        drop(before);
        house.reopen(&options, Some(PATIENCE)).unwrap();
        drop(disk);
        house.close();
    }

    /// Given up at any moment, it is done or not, and nothing is left of a half.
    #[test]
    fn whoever_asked_goes_away_at_any_moment() {
        let house = disk();
        house.export("vda", "file0", true).unwrap();
        let path = fs::canonicalize(house.path("disk0.img")).unwrap();
        let load = house.load("vda");
        for round in 0..100 {
            let mut options = file(&house.path("disk0.img"));
            options["cache"] = json!({ "direct": round % 2 == 0 });
            let options = BlockdevOptions::parse(&options.to_string()).unwrap();
            let reopened = house.assembly.reopen_nodes(vec![options], None);
            let after = Duration::from_micros(50 * round);
            let _ = house.wait(async { tokio::time::timeout(after, reopened).await });
        }
        house.reopen(&file(&house.path("disk0.img")), None).unwrap();
        eventually("all others are closed", || descriptors(&path) == 1);
        qemu_io(&path).expect_err("it is in use");
        assert!(load.end() > 100);
        house.delete_export("vda", true).unwrap();
        qemu_io(&path).expect("nobody has a lock");
        house.delete_node("file0").unwrap();
        assert_eq!(descriptors(&path), 0);
        house.close();
    }

    /// What the page cache could not write was consumed by a flush of O_DIRECT, which may be tried again:
    /// that succeeded.
    #[test]
    fn what_is_in_the_page_cache_is_not_lost_by_going_past_it() {
        let house = House::new();
        let fuse = FuseFile::new(BLOCKS * 4096).unwrap();
        house.node(&file(&fuse.path())).unwrap();
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        let data = vec![0x5a; 4096];
        let write = Request::Write {
            sector: 8,
            data: &data,
        };
        disk.submit(0, write).unwrap();
        disk.kick(0).unwrap();
        disk.wait(0, PATIENCE).unwrap().unwrap();
        fuse.fail(FuseOp::Fsync, libc::EIO);
        let mut options = file(&fuse.path());
        options["cache"] = json!({ "direct": true });
        house.reopen(&options, None).unwrap();
        fuse.fail(FuseOp::Fsync, 0);
        disk.submit(0, Request::Flush).unwrap();
        disk.kick(0).unwrap();
        eventually("it is held", || house.held("vda") == 1);
        house.go_on().expect_err("it is lost");
        drop(disk);
        house.close();
    }

    /// Without locks nobody has been asked.
    #[test]
    fn locks_do_not_come_with_a_reopen() {
        let house = disk();
        let mut options = file(&house.path("disk0.img"));
        options["locking"] = json!("off");
        let error = house.reopen(&options, None).unwrap_err();
        assert_eq!(error, "Cannot change the option 'locking'");
        house.close();
    }

    /// Each of the nodes is there once, and no other, whatever is in the way.
    #[test]
    fn several_or_none() {
        let house = disk();
        house.image("disk1.img");
        house.file("file1", "disk1.img").unwrap();
        let filter = json!({ "driver": "blkdebug", "node-name": "top", "image": "file1" });
        house.node(&filter).unwrap();
        house.export("vda", "file0", true).unwrap();
        house.export("vdb", "top", true).unwrap();
        let direct = |name: &str, image: &str, direct: bool| {
            json!({ "driver": "file", "node-name": name, "filename": house.path(image),
                "cache": { "direct": direct } })
        };
        let is_direct = || {
            ["file0", "file1"].map(|name| {
                let node = house.registry.node(name).unwrap();
                node.driver().info().cache_direct
            })
        };
        let load = house.load("vdb");
        let both = [
            direct("file0", "disk0.img", true),
            direct("file1", "disk1.img", true),
        ];
        house.reopen_all(&both).unwrap();
        assert_eq!(is_direct(), [true; 2]);
        let mut wrong = direct("file1", "disk1.img", false);
        wrong["read-only"] = json!(true);
        let second = [direct("file0", "disk0.img", false), wrong];
        assert_eq!(
            house.reopen_all(&second).unwrap_err(),
            "Read-only block node 'file1' cannot support read-write users"
        );
        let none = [
            direct("file0", "disk0.img", false),
            direct("none", "x", false),
        ];
        assert_eq!(
            house.reopen_all(&none).unwrap_err(),
            "Failed to find node with node-name='none'"
        );
        assert_eq!(is_direct(), [true; 2]);
        assert_eq!(house.registry.nodes().len(), 3);
        house.reopen_all(&[]).unwrap();
        assert!(load.end() > 0);
        house.close();
    }

    /// What was defined in a node is opened anew with it.
    #[test]
    fn what_is_defined_in_a_node_goes_along() {
        let house = House::new();
        house.image("disk0.img");
        let part = |direct: bool| {
            json!({ "driver": "file", "filename": house.path("disk0.img"),
                "cache": { "direct": direct } })
        };
        let whole =
            |direct| json!({ "driver": "blkdebug", "node-name": "top", "image": part(direct) });
        house.node(&whole(false)).unwrap();
        house.export("vda", "top", true).unwrap();
        let load = house.load("vda");
        let below = || {
            let top = house.registry.node("top").unwrap();
            top.driver().children()[0].node()
        };
        let name = below().name().to_string();
        house.reopen(&whole(true), None).unwrap();
        assert!(below().driver().info().cache_direct);
        assert_eq!(*below().name().as_ref(), *name);
        let mut other = whole(true);
        other["image"]["node-name"] = json!("other");
        assert_eq!(
            house.reopen(&other, None).unwrap_err(),
            "Cannot change the option 'node-name'"
        );
        let by_name = json!({ "driver": "blkdebug", "node-name": "above", "image": "top" });
        house.node(&by_name).unwrap();
        let in_place = json!({ "driver": "blkdebug", "node-name": "above", "image": whole(false) });
        assert_eq!(
            house.reopen(&in_place, None).unwrap_err(),
            "Cannot change the option 'image.driver'"
        );
        assert!(load.end() > 0);
        house.close();
    }
}
