//! Overlays that come in above disks: what can be, and what cannot, which changes nothing.
//!
//! Needs qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::Instant;

    use frontend::Request;
    use serde_json::{Value, json};
    use testkit::place::{PATIENCE, eventually};
    use testkit::qcow2_image::run;

    use super::common::House;
    use super::common::snapshot::{
        DISK, image, image_with_data, inline, names, other, root, snapshot, snapshot_sync, text,
        two,
    };

    /// A failure of one part undoes all: nobody has another node, other permissions or other locks than before.
    #[test]
    fn what_cannot_be_changes_nothing() {
        let house = two();
        image(&house, "third", None);
        house.node(&inline(&house, "third")).unwrap();
        let group = json!({ "qom-type": "throttle-group", "id": "g" });
        let group = qapi::options::ObjectOptions::parse(&group.to_string()).unwrap();
        house
            .wait(house.assembly.add_object(group))
            .map_err(|error| error.desc)
            .unwrap();
        let filter = json!({ "driver": "throttle", "node-name": "filter", "throttle-group": "g",
            "file": "third" });
        house.node(&filter).unwrap();
        // What is in its data file is the disk: there is nothing that could be behind.
        image_with_data(&house, "raw", None, true);
        house.node(&inline(&house, "raw")).unwrap();
        let load = house.load("vda");
        let state = || {
            let nodes = house.registry.nodes().into_iter();
            let state = |node: Arc<block::Node>| {
                (node.name().clone(), Arc::as_ptr(&node).addr(), node.users())
            };
            nodes.map(state).collect::<Vec<_>>()
        };
        let before = state();
        let busy = "The overlay is already in use";
        let cases = [
            (
                json!([snapshot("none", "over0")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (
                json!([snapshot("base0", "none")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (json!([snapshot("base0", "base1")]), busy),
            (json!([snapshot("base0", "base0")]), busy),
            (
                json!([snapshot("base0", "over0-file")]),
                "The overlay does not support backing images",
            ),
            (
                json!([snapshot("base0", "filter")]),
                "Filters cannot be used as overlays",
            ),
            (
                json!([snapshot("base1", "over1"), snapshot("base0", "raw")]),
                "Backing file and data-file-raw cannot be used at the same time",
            ),
            (
                json!([snapshot("over0", "over0")]),
                "Making 'over0' a backing child of 'over0' would create a cycle",
            ),
            (
                json!([snapshot("filter", "third")]),
                "Making 'filter' a backing child of 'third' would create a cycle",
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base1", "over0")]),
                busy,
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base0", "over1")]),
                "Node 'base0' is busy: node is used as backing hd of 'over0'",
            ),
            (
                json!([snapshot("base0", "over0"), snapshot("base1", "none")]),
                "Cannot find device='none' nor node-name='none'",
            ),
            (
                json!([snapshot("base0", "over0"), { "type": "abort", "data": {} }]),
                "Transaction aborted using Abort action",
            ),
            (
                json!([{ "type": "blockdev-snapshot-sync", "data": { "node-name": "base0", "snapshot-file": "x" } }]),
                "New overlay node-name missing",
            ),
            (
                json!([snapshot_sync(&house, "base0", "over1")]),
                "New overlay node-name already in use",
            ),
            (
                json!([
                    snapshot_sync(&house, "base0", "made"),
                    snapshot_sync(&house, "base1", "made")
                ]),
                "New overlay node-name already in use",
            ),
        ];
        for (actions, words) in cases {
            let refused = house.transact(actions.clone(), Some(PATIENCE));
            assert_eq!(refused, Err(words.to_owned()), "{actions}");
            // What was opened for it is closed beside.
            eventually("nothing has changed", || state() == before);
        }
        assert!(
            house.path("made").exists(),
            "a file that was made stays, as with QEMU"
        );
        // A part that fails late: another process has the image of the second overlay.
        let path = house.path("over1");
        let moved = house.path("moved");
        fs::rename(house.path("base1"), &moved).unwrap();
        fs::copy(&path, house.path("base1")).unwrap();
        let refused = house.transact(
            json!([snapshot("base0", "over0"), snapshot("base1", "over1")]),
            Some(PATIENCE),
        );
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("its file name leads to another image by now"),
            "{refused}"
        );
        fs::rename(&moved, house.path("base1")).unwrap();
        eventually("nothing has changed", || state() == before);
        assert!(!other(&house, "base0", "-f") && other(&house, "third", "-f"));
        house
            .transact(
                json!([snapshot("base0", "over0"), snapshot("vdb", "over1")]),
                Some(PATIENCE),
            )
            .unwrap();
        assert_eq!(
            (root(&house, "vda"), root(&house, "vdb")),
            ("over0".to_owned(), "over1".to_owned())
        );
        // The base may be read by others, and is written by nobody.
        assert!(other(&house, "base0", "-rf") && !other(&house, "base0", "-f"));
        assert!(!other(&house, "over0", "-rf"));
        assert!(load.end() > 100);
        house.close();
    }

    /// An overlay above a filter said that the filter is behind it (`backing file format: quota`, `copy-on-read`, a throttle group that
    /// others do not have): neither the next daemon nor QEMU's tools could open it, and the guest's disk was gone after a restart.
    #[test]
    fn filters_are_not_what_is_behind() {
        let house = House::new();
        for (name, format) in [("quota", "file"), ("copy-on-read", "qcow2")] {
            let (file, disk) = (format!("{name}-file"), format!("{name}-disk"));
            image(&house, &file, None);
            house.file(&file, &file).unwrap();
            let below = match name {
                "quota" => json!(file),
                _ => json!({ "driver": "qcow2", "file":
                    { "driver": "blkdebug", "node-name": "faulty", "image": file } }),
            };
            let mut filter = json!({ "driver": name, "node-name": disk, "file": below });
            if name == "quota" {
                filter["limit"] = json!(DISK);
            }
            house.node(&filter).unwrap();
            let overlays = [format!("{name}-1"), format!("{name}-2")];
            let [one, two] = &overlays;
            let made = json!([
                snapshot_sync(&house, &disk, one),
                snapshot_sync(&house, one, two)
            ]);
            house.transact(made, Some(PATIENCE)).unwrap();
            for (overlay, base, format) in [(one, &file, format), (two, one, "qcow2")] {
                let path = house.path(overlay);
                let info = run("qemu-img", &["info", "-U", "--output=json", text(&path)]).unwrap();
                let info: Value = serde_json::from_str(&info).unwrap();
                assert_eq!(info["backing-filename"], text(&house.path(base)), "{info}");
                assert_eq!(info["backing-filename-format"], format, "{info}");
            }
        }
        house.close();
    }

    /// An overlay that came with its file goes with its last user, and what is below stays.
    #[test]
    fn overlays_that_are_made() {
        let house = two();
        let load = house.load("vda");
        let before = names(&house).len();
        house
            .transact(
                json!([
                    snapshot_sync(&house, "base0", "one"),
                    snapshot_sync(&house, "one", "two")
                ]),
                Some(PATIENCE),
            )
            .unwrap();
        let device = json!([{ "type": "blockdev-snapshot-sync", "data": { "device": "vda",
            "snapshot-file": house.path("three") } }]);
        house.transact(device, Some(PATIENCE)).unwrap();
        assert!(root(&house, "vda").starts_with("#block"));
        assert_eq!(names(&house).len(), before + 6);
        assert!(house.delete_node("two").unwrap_err().contains("is busy"));
        assert!(load.end() > 100);
        let info = run(
            "qemu-img",
            &["info", "-U", "--output=json", text(&house.path("three"))],
        )
        .unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], text(&house.path("two")));
        assert_eq!(info["backing-filename-format"], "qcow2");
        assert_eq!(info["virtual-size"], DISK);
        house.delete_export("vda", true).unwrap();
        eventually("they are gone", || names(&house).len() == before);
        house.delete_node("base0").unwrap();
        run("qemu-img", &["check", "-q", text(&house.path("three"))]).unwrap();
        house.close();
    }

    /// A node asked the one behind it for its file name twice, and so on: with thirty images behind one that say nothing of
    /// that, it took minutes.
    #[test]
    fn a_long_chain_of_images_that_name_nothing() {
        let house = two();
        let begin = Instant::now();
        let mut base = "base0".to_owned();
        for number in 0..60 {
            let over = format!("o{number}");
            image(&house, &over, None);
            house.node(&inline(&house, &over)).unwrap();
            house
                .transact(json!([snapshot(&base, &over)]), None)
                .unwrap();
            base = over;
        }
        assert!(begin.elapsed() < 2 * PATIENCE);
        let top = house.registry.node(&base).unwrap();
        assert_eq!(top.chain().count(), 61);
        let name = top.driver().info().filename;
        assert!(
            name.starts_with("json:") && name.contains(text(&house.path("base0"))),
            "{name}"
        );
        drop(top);
        let mut disk = house.connect("vda");
        assert!(disk.execute(0, Request::Flush, PATIENCE).unwrap().is_ok());
        drop(disk);
        house.close();
    }
}
