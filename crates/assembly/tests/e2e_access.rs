//! How nodes that are added at run time may be used: `read-only`, `auto-read-only`, `force-share`, and
//! `detect-zeroes` with what it leaves allocated. Needs root (tmpfs).

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use frontend::{Completion, Disk, Request};
    use serde_json::{Value, json};
    use testkit::Tmpfs;
    use testkit::place::PATIENCE;

    use super::common::House;

    const KIB: usize = 1024;
    const IMAGE: usize = 256 * KIB;

    /// A node on `path`, with `more` options.
    fn file(path: &Path, more: &Value) -> Value {
        let mut options = json!({ "driver": "file", "node-name": "file0", "filename": path });
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        options
    }

    /// An image full of sevens, on a file system that is as it is told to be.
    fn sevens() -> (House, Tmpfs, PathBuf) {
        let tmpfs = Tmpfs::new(8 << 20).unwrap();
        let image = tmpfs.path().join("disk0.img");
        fs::write(&image, vec![7; IMAGE]).unwrap();
        (House::new(), tmpfs, image)
    }

    fn write(disk: &mut Disk, sector: u64, data: &[u8]) -> Completion {
        let request = Request::Write { sector, data };
        disk.execute(0, request, PATIENCE).unwrap()
    }

    fn read(disk: &mut Disk, sector: u64) -> Vec<u8> {
        let request = Request::Read { sector, len: 512 };
        let done = disk.execute(0, request, PATIENCE).unwrap();
        assert!(done.is_ok());
        done.data
    }

    const READ_ONLY: &str = "Cannot export read-only node as writable";

    /// Neither a client that does not care nor an export gets it written, until it is opened otherwise.
    #[test]
    fn what_is_read_only_is_not_written() {
        let (house, _tmpfs, image) = sevens();
        let raw = json!({ "driver": "raw", "node-name": "disk0", "read-only": true,
            "file": { "driver": "file", "node-name": "file0", "filename": image } });
        house.node(&raw).unwrap();
        let file0 = house.registry.node("file0").unwrap();
        assert!(file0.read_only(), "it inherits that");
        drop(file0);
        assert_eq!(house.export("vda", "disk0", true).unwrap_err(), READ_ONLY);
        house.export("vda", "disk0", false).unwrap();
        let mut disk = house.connect("vda");
        assert_ne!(disk.features() & frontend::protocol::feature::RO, 0);
        assert!(!write(&mut disk, 0, &[1; 512]).is_ok());
        let zeroes = frontend::Segment {
            sector: 0,
            sectors: 8,
            flags: 0,
        };
        let zeroes = [zeroes];
        for request in [Request::Discard(&zeroes), Request::WriteZeroes(&zeroes)] {
            assert!(!disk.execute(0, request, PATIENCE).unwrap().is_ok());
        }
        assert_eq!(read(&mut disk, 0), [7; 512]);
        assert_eq!(house.held("vda"), 0, "a client's mistake is not held");
        drop(disk);
        house.delete_export("vda", true).unwrap();
        assert_eq!(fs::read(&image).unwrap(), vec![7; IMAGE]);

        let mut writable = raw;
        writable["read-only"] = json!(false);
        house.reopen(&writable, Some(PATIENCE)).unwrap();
        house.export("vda", "disk0", true).unwrap();
        let mut disk = house.connect("vda");
        assert!(write(&mut disk, 0, &[1; 512]).is_ok());
        drop(disk);
        house.close();
        let content = fs::read(&image).unwrap();
        assert_eq!((content[511], content[512]), (1, 7));
    }

    /// Storage that is read-only for now: `auto-read-only` takes it as it is, and finds out at the next opening.
    #[test]
    fn what_may_be_read_only_is_as_the_storage_is() {
        let (house, tmpfs, image) = sevens();
        let remount = |how: &str| {
            let options = format!("remount,{how}");
            let mut mount = Command::new("mount");
            let status = mount.args(["-o", &options]).arg(tmpfs.path()).status();
            assert!(status.unwrap().success());
        };
        remount("ro");
        let refused = house.node(&file(&image, &json!({}))).unwrap_err();
        assert!(refused.ends_with("Read-only file system"), "{refused}");
        let auto = file(&image, &json!({ "auto-read-only": true }));
        house.node(&auto).unwrap();
        assert!(house.registry.node("file0").unwrap().read_only());
        assert_eq!(house.export("vda", "file0", true).unwrap_err(), READ_ONLY);
        house.export("vda", "file0", false).unwrap();
        let mut disk = house.connect("vda");
        assert_eq!(read(&mut disk, 8), [7; 512]);
        assert!(!write(&mut disk, 8, &[1; 512]).is_ok());
        drop(disk);
        house.delete_export("vda", true).unwrap();

        remount("rw");
        house.reopen(&auto, Some(PATIENCE)).unwrap();
        assert!(!house.registry.node("file0").unwrap().read_only());
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        assert!(write(&mut disk, 8, &[1; 512]).is_ok());
        assert_eq!(read(&mut disk, 8), [1; 512]);
        drop(disk);
        house.close();
    }

    /// A reader that does not mind who writes sees what they have written.
    #[test]
    fn what_is_shared_is_read_while_others_write() {
        let (ours, _tmpfs, image) = sevens();
        let theirs = House::new();
        theirs.node(&file(&image, &json!({}))).unwrap();
        theirs.export("vda", "file0", true).unwrap();
        let mut writer = theirs.connect("vda");
        assert!(write(&mut writer, 0, &[1; 512]).is_ok());

        let mut shared = file(&image, &json!({ "force-share": true }));
        assert_eq!(
            ours.node(&shared).unwrap_err(),
            "force-share=on can only be used with read-only images"
        );
        shared["read-only"] = json!(true);
        ours.node(&shared).unwrap();
        assert_eq!(ours.export("vdb", "file0", true).unwrap_err(), READ_ONLY);
        ours.export("vdb", "file0", false).unwrap();
        let mut reader = ours.connect("vdb");
        for byte in [1, 2] {
            assert_eq!(read(&mut reader, 0), [byte; 512]);
            assert!(write(&mut writer, 0, &[byte + 1; 512]).is_ok());
        }
        // The writer goes and another one comes: nobody is kept out.
        drop(writer);
        theirs.delete_export("vda", true).unwrap();
        theirs.export("vda", "file0", true).unwrap();
        drop(reader);
        ours.close();
        theirs.close();
    }

    /// Measured by what the file system has for the image, which is all of it in the beginning.
    #[test]
    fn zeroes_take_no_space_on_a_node_that_is_told_so() {
        let (house, _tmpfs, image) = sevens();
        let allocated = || usize::try_from(fs::metadata(&image).unwrap().blocks()).unwrap() * 512;
        assert_eq!(allocated(), IMAGE);
        let modes = ["unmap", "on", "off"].map(|mode| {
            let options = json!({ "discard": "unmap", "detect-zeroes": mode });
            (mode, file(&image, &options))
        });
        house.node(&modes[0].1).unwrap();
        house.export("vda", "file0", true).unwrap();
        let mut disk = house.connect("vda");
        let part = 64 * KIB;
        for (at, (mode, options)) in modes.into_iter().enumerate() {
            house.reopen(&options, Some(PATIENCE)).unwrap();
            let before = allocated();
            let sector = (at * part / 512) as u64;
            assert!(write(&mut disk, sector, &vec![0; part]).is_ok());
            let freed = if mode == "unmap" { part } else { 0 };
            assert_eq!(before - allocated(), freed, "{mode}");
            // What is not all zeroes is written.
            let mut data = vec![0; part];
            data[part - 1] = 1;
            assert!(write(&mut disk, sector, &data).is_ok());
            assert_eq!(allocated(), before, "{mode}");
            let content = fs::read(&image).unwrap();
            assert!(content[at * part..(at + 1) * part] == data, "{mode}");
        }
        drop(disk);
        house.close();
    }
}
