//! Images are locked as long as somebody uses them, and as much as that takes. Needs qemu-io (Debian:
//! qemu-utils).

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use block::{Access, Permissions};
    use qapi::options::{ExportOptions, ObjectOptions};
    use serde_json::json;
    use standfast_assembly::TimeLimits;

    use super::common::House;

    const MIB: u64 = 1 << 20;
    const IN_USE: &str = "Failed to get \"write\" lock";

    fn qemu_io(image: &Path, command: &str) -> Result<(), String> {
        let mut qemu_io = Command::new("qemu-io");
        if command.starts_with("read") {
            qemu_io.arg("-r");
        }
        qemu_io.args(["-f", "raw", "-c", command]).arg(image);
        let output = qemu_io.output();
        let output = output.expect("qemu-io is needed for this test");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Somebody else writes to it.
    fn writes(image: &Path) -> bool {
        match qemu_io(image, "write 0 4k") {
            Ok(()) => true,
            Err(error) => {
                assert!(error.contains(IN_USE), "{error}");
                false
            }
        }
    }

    fn options(house: &House, id: &str, node: &str, iothread: Option<&str>) -> ExportOptions {
        let mut options = json!({ "type": "vhost-user-blk", "id": id, "node-name": node,
            "writable": true, "addr": { "type": "unix", "path": house.path(id) } });
        if let Some(iothread) = iothread {
            options["iothread"] = iothread.into();
        }
        ExportOptions::parse(&options.to_string()).unwrap()
    }

    fn quota(house: &House, name: &str, below: &str) {
        let options =
            json!({ "driver": "quota", "node-name": name, "file": below, "limit": 1 << 30 });
        house.node(&options).unwrap();
    }

    /// Why an export would be refused, which waits for no lock.
    fn refusal(house: &House, node: &str, writes: bool) -> String {
        let read = Permissions::CONSISTENT_READ;
        let held = match writes {
            true => read.and(Permissions::WRITE),
            false => read,
        };
        let shared = Permissions::ALL;
        let begun = house
            .registry
            .begin_use("other", node, Access { held, shared });
        house.wait(begun).unwrap_err().to_string()
    }

    /// Two daemons with the same image: who exports it has it, the other one is in nobody's way.
    #[test]
    fn a_node_that_nobody_uses_is_in_nobodys_way() {
        let (ours, theirs) = (House::new(), House::new());
        let image = ours.image("disk0.img");
        let path = image.to_str().unwrap();
        for house in [&ours, &theirs] {
            house.file("file0", path).unwrap();
            quota(house, "quota0", "file0");
        }
        assert!(writes(&image));
        for (house, other) in [(&ours, &theirs), (&theirs, &ours)] {
            house.export("vda", "quota0", true).unwrap();
            assert!(!writes(&image));
            qemu_io(&image, "read 0 4k").unwrap();
            let named = format!(" on '{}'", image.display());
            assert_eq!(
                refusal(other, "file0", true),
                IN_USE.to_owned() + named.as_str()
            );
            let refused = refusal(other, "quota0", false);
            assert_eq!(
                refused,
                "Failed to get shared \"write\" lock".to_owned() + named.as_str()
            );
            house.delete_export("vda", true).unwrap();
            assert!(writes(&image), "nobody uses it any more");
        }
        ours.close();
        theirs.close();
    }

    /// A node that could be written and is not is a reader, until somebody writes.
    #[test]
    fn an_export_that_does_not_write_is_a_reader() {
        let (ours, theirs) = (House::new(), House::new());
        let image = ours.image("disk0.img");
        for house in [&ours, &theirs] {
            house.file("file0", image.to_str().unwrap()).unwrap();
            house.export("vda", "file0", false).unwrap();
        }
        assert!(!writes(&image));
        let named = format!(" on '{}'", image.display());
        assert_eq!(
            refusal(&ours, "file0", true),
            IN_USE.to_owned() + named.as_str()
        );
        theirs.delete_export("vda", true).unwrap();
        ours.export("vdb", "file0", true).unwrap();
        let refused = refusal(&theirs, "file0", false);
        assert_eq!(
            refused,
            "Failed to get shared \"write\" lock".to_owned() + named.as_str()
        );
        ours.delete_export("vdb", true).unwrap();
        theirs.export("vda", "file0", false).unwrap();
        ours.close();
        theirs.close();
    }

    /// Until a node is used its image may change: it is as long as it is then, and so is what is above.
    #[test]
    fn what_is_on_the_storage_counts_when_the_use_begins() {
        let house = House::new();
        let image = house.image("disk0.img");
        house.file("file0", "disk0.img").unwrap();
        quota(&house, "quota0", "file0");
        let node = house.registry.node("quota0").unwrap();
        let allocated = || node.allocation_limit().unwrap().quota().1;
        assert_eq!(allocated(), 0);
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(9 * MIB).unwrap();
        file.write_all_at(&[1; 8192], 8 * MIB).unwrap();
        house.export("vda", "quota0", true).unwrap();
        assert_eq!(allocated(), 8192);
        let disk = house.connect("vda");
        assert_eq!(disk.config().capacity_bytes(), 9 * MIB);
        // It is known now.
        file.write_all_at(&[1; 8192], 4 * MIB).unwrap();
        house.export("vdb", "quota0", false).unwrap();
        assert_eq!(allocated(), 8192);
        drop(disk);
        for id in ["vda", "vdb"] {
            house.delete_export(id, true).unwrap();
        }
        house.export("vda", "quota0", false).unwrap();
        assert_eq!(allocated(), 16_384);
        drop(node);
        house.close();
    }

    /// A resize changes an image that another one may have.
    #[test]
    fn a_node_that_nobody_uses_is_resized_under_a_lock() {
        let (ours, theirs) = (House::new(), House::new());
        let image = ours.image("disk0.img");
        let length = || std::fs::metadata(&image).unwrap().len();
        for house in [&ours, &theirs] {
            house.file("file0", image.to_str().unwrap()).unwrap();
        }
        theirs.export("vda", "file0", false).unwrap();
        let before = length();
        let refused = ours.wait(ours.registry.resize("file0", MIB)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("{IN_USE} on '{}'", image.display())
        );
        assert_eq!(length(), before);
        theirs.delete_export("vda", true).unwrap();
        ours.wait(ours.registry.resize("file0", MIB)).unwrap();
        assert_eq!(length(), MIB);
        assert!(writes(&image));
        ours.close();
        theirs.close();
    }

    /// A node that had come in as a part of another one, and was exported by itself, stayed for ever when both
    /// were gone: nobody could delete it, and its name was taken.
    #[test]
    fn a_part_goes_with_its_last_user() {
        let house = House::new();
        let image = house.image("disk0.img");
        let part = json!({ "driver": "file", "node-name": "part", "filename": image });
        let whole = json!({ "driver": "blkdebug", "node-name": "whole", "image": part });
        for _ in 0..2 {
            house.node(&whole).unwrap();
            house.export("vda", "part", true).unwrap();
            house.export("vdb", "whole", true).unwrap();
            house.delete_export("vdb", true).unwrap();
            house.delete_node("whole").unwrap();
            assert!(house.registry.node("part").is_ok(), "it is used");
            assert!(!writes(&image));
            house.delete_export("vda", true).unwrap();
            assert!(house.registry.nodes().is_empty());
            assert!(writes(&image));
        }
        // By itself it stays, and so does a part while the whole is there.
        house.node(&part).unwrap();
        house.export("vda", "part", true).unwrap();
        house.delete_export("vda", true).unwrap();
        house.delete_node("part").unwrap();
        house.node(&whole).unwrap();
        house.export("vda", "part", true).unwrap();
        house.delete_export("vda", true).unwrap();
        assert_eq!(house.registry.nodes().len(), 2);
        house.close();
    }

    /// While one export waits for the lock of a daemon that may be dying, others come and go.
    #[test]
    fn an_export_that_waits_for_a_lock_waits_alone() {
        let (ours, theirs) = (House::new(), House::new());
        let image = ours.image("disk0.img");
        theirs.file("file0", image.to_str().unwrap()).unwrap();
        theirs.export("vda", "file0", true).unwrap();
        ours.file("file0", "disk0.img").unwrap();
        ours.image("disk1.img");
        ours.file("file1", "disk1.img").unwrap();
        let object = |id: &str| ObjectOptions::parse(&format!("iothread,id={id}")).unwrap();
        ours.wait(ours.assembly.add_object(object("io0"))).unwrap();
        ours.wait(async {
            let waiting = options(&ours, "vda", "file0", Some("io0"));
            let mut waiting = Box::pin(ours.assembly.add_export(waiting, TimeLimits::START));
            let meanwhile = async {
                let same = options(&ours, "vda", "file1", None);
                let error = ours
                    .assembly
                    .add_export(same, TimeLimits::START)
                    .await
                    .unwrap_err();
                assert_eq!(error.desc, "Block export id 'vda' is already in use");
                let other = options(&ours, "vdb", "file1", None);
                ours.assembly
                    .add_export(other, TimeLimits::START)
                    .await
                    .unwrap();
                let error = ours.assembly.delete_object("io0").await.unwrap_err();
                assert_eq!(error.desc, "object 'io0' is in use, can not be deleted");
                ours.assembly.add_object(object("io1")).await.unwrap();
                ours.assembly.delete_object("io1").await.unwrap();
                ours.assembly.delete_export("vdb", true).await.unwrap();
            };
            tokio::select! {
                // It is the first one.
                biased;
                made = &mut waiting => panic!("it was to wait: {made:?}"),
                () = meanwhile => {}
            }
            assert!(!ours.path("vda").exists(), "clients are not kept waiting");
            theirs.assembly.delete_export("vda", true).await.unwrap();
            waiting.await.unwrap();
            let error = ours.assembly.delete_object("io0").await.unwrap_err();
            assert_eq!(error.desc, "object 'io0' is in use, can not be deleted");
            ours.assembly.delete_export("vda", true).await.unwrap();
            ours.assembly.delete_object("io0").await.unwrap();
        });
        ours.close();
        theirs.close();
    }
}
