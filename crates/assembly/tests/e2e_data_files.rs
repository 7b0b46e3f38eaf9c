//! External data files: opened as they are defined or as their images say, kept when a node is defined anew under load, refused.
//!
//! Needs qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};
    use testkit::qcow2_image::run;

    use super::common::{BLOCKS, House};

    const DISK: u64 = BLOCKS as u64 * 4096;

    /// `disk.qcow2`, which names its data file `disk.data` beside it.
    fn image(options: &str) -> House {
        let house = House::new();
        let create = format!(
            "cd '{}' && qemu-img create -qfqcow2 -o '{options}data_file=disk.data' disk.qcow2 {DISK}",
            house.dir.path().display()
        );
        run("sh", &["-c", &create]).unwrap();
        house
    }

    fn file(house: &House, name: &str) -> Value {
        json!({ "driver": "file", "filename": house.path(name) })
    }

    fn disk() -> Value {
        json!({ "driver": "qcow2", "node-name": "disk", "file": "tables" })
    }

    fn with(mut options: Value, member: &str, value: Value) -> Value {
        options[member] = value;
        options
    }

    fn data_node(house: &House) -> String {
        let data = house.registry.node("disk").unwrap().child("data-file");
        data.unwrap().name().to_string()
    }

    /// By the path that counts from the image, whatever directory the daemon is in.
    #[test]
    fn the_data_file_that_an_image_names_comes_and_goes_with_it() {
        for options in ["", "data_file_raw=on,"] {
            let house = image(options);
            house.file("tables", "disk.qcow2").unwrap();
            house.node(&disk()).unwrap();
            assert_eq!(house.registry.nodes().len(), 3);
            let data = house.registry.node(&data_node(&house)).unwrap();
            assert_eq!(data.driver().name(), "file");
            drop(data);
            house.export("vda", "disk", true).unwrap();
            let load = house.load("vda");
            // It is opened anew with what it inherits, and the data stay where they are.
            let before = data_node(&house);
            for discard in ["unmap", "ignore", "unmap"] {
                let anew = with(disk(), "discard", json!(discard));
                house.reopen(&anew, None).unwrap();
                assert_eq!(data_node(&house), before);
            }
            assert!(load.end() > 0);
            house.delete_export("vda", true).unwrap();
            house.delete_node("disk").unwrap();
            assert_eq!(house.registry.nodes().len(), 1);
            let path = house.path("disk.qcow2");
            let check = format!(
                "cd '{}' && qemu-img check -q disk.qcow2",
                path.parent().unwrap().display()
            );
            run("sh", &["-c", &check]).unwrap();
            house.close();
        }
    }

    #[test]
    fn a_data_file_is_kept_and_not_changed() {
        let house = image("");
        house.file("tables", "disk.qcow2").unwrap();
        house.file("data", "disk.data").unwrap();
        fs::copy(house.path("disk.data"), house.path("other.data")).unwrap();
        house.file("other", "other.data").unwrap();
        house
            .node(&with(disk(), "data-file", json!("data")))
            .unwrap();
        house.export("vda", "disk", true).unwrap();
        let load = house.load("vda");
        house
            .reopen(&with(disk(), "data-file", json!("data")), None)
            .unwrap();
        // As with QEMU: what is not said stays.
        house
            .reopen(&with(disk(), "discard", json!("unmap")), None)
            .unwrap();
        assert_eq!(data_node(&house), "data");
        for (other, said) in [
            (json!("other"), "Cannot change the option 'data-file'"),
            (
                file(&house, "disk.data"),
                "Cannot change the option 'data-file.driver'",
            ),
        ] {
            let refused = house.reopen(&with(disk(), "data-file", other), None);
            assert_eq!(refused, Err(said.to_owned()));
        }
        assert!(load.end() > 0);
        assert_eq!(
            house.delete_node("data"),
            Err("Block device data is in use".to_owned())
        );
        // Others may look at it.
        house.export("vdb", "data", false).unwrap();
        house.delete_export("vdb", true).unwrap();
        house.delete_export("vda", true).unwrap();
        house.close();
    }

    #[test]
    fn what_a_data_file_cannot_be() {
        let house = image("");
        house.file("tables", "disk.qcow2").unwrap();
        let add = |data: Value| house.node(&with(disk(), "data-file", data)).unwrap_err();
        assert_eq!(
            add(json!("none")),
            "Cannot find device='none' nor node-name='none'"
        );
        assert_eq!(
            add(json!("tables")),
            "the image cannot be its own data file"
        );
        assert!(add(file(&house, "missing")).contains("missing"));
        fs::rename(house.path("disk.data"), house.path("gone.data")).unwrap();
        let gone = house.node(&disk()).unwrap_err();
        assert!(
            gone.contains(house.path("disk.data").to_str().unwrap()),
            "{gone}"
        );
        assert_eq!(house.registry.nodes().len(), 1);
        house.close();
    }
}
