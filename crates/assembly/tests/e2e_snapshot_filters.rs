//! Overlays that come in below filters and above them.
//!
//! Needs qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;

    use frontend::{Disk, Request};
    use qapi::options::ObjectOptions;
    use serde_json::{Value, json};
    use testkit::cut::chain_of;
    use testkit::place::PATIENCE;
    use testkit::qcow2_image::run;

    use super::common::House;
    use super::common::snapshot::{image, inline, root, snapshot, snapshot_sync, text, two};

    /// Bytes.
    const CLUSTER: usize = 64 << 10;

    /// What uses the disk uses the overlay, filters above it, too; and what is defined goes along.
    #[test]
    fn filters_stay_above_and_chains_are_reopened() {
        let house = two();
        image(&house, "top", None);
        house.delete_export("vdb", true).unwrap();
        let filter = json!({ "driver": "quota", "node-name": "filter", "file": "base1", "limit": 1_u64 << 40 });
        house.node(&filter).unwrap();
        house.export("vdb", "filter", true).unwrap();
        let load = house.load("vdb");
        house
            .transact(json!([snapshot("base1", "over1")]), Some(PATIENCE))
            .unwrap();
        assert_eq!(root(&house, "vdb"), "filter");
        let filter = house.registry.node("filter").unwrap();
        assert_eq!(&**filter.filtered().unwrap().name(), "over1");
        // Above a filter that cannot be opened anew.
        house.node(&inline(&house, "top")).unwrap();
        house
            .transact(json!([snapshot("filter", "top")]), Some(PATIENCE))
            .unwrap();
        assert_eq!(root(&house, "vdb"), "top");
        assert!(house.registry.node("base1").unwrap().read_only());
        let chain: Vec<_> = house.registry.node("top").unwrap().chain().collect();
        let chain: Vec<_> = chain.iter().map(|node| &**node.name()).collect();
        assert_eq!(chain, ["top", "filter", "over1", "base1"]);
        // The definitions say what is there.
        let top = |backing: Value| {
            json!({ "driver": "qcow2", "node-name": "top", "backing": backing,
            "file": { "driver": "file", "node-name": "top-file", "filename": house.path("top") } })
        };
        let missing = json!({ "driver": "qcow2", "node-name": "top",
            "file": { "driver": "file", "node-name": "top-file", "filename": house.path("top") } });
        let refused = house.reopen(&missing, Some(PATIENCE));
        assert_eq!(refused, Err("backing is missing for 'top'".to_owned()));
        house.reopen(&top(json!("over1")), Some(PATIENCE)).unwrap();
        drop(filter);
        house.delete_node("filter").unwrap();
        assert!(load.end() > 100);
        house.delete_export("vdb", true).unwrap();
        for node in ["top", "over1", "base1"] {
            house.delete_node(node).unwrap();
        }
        house.close();
    }
    fn copy(file: &str, bottom: Option<&str>) -> Value {
        let mut options = json!({ "driver": "copy-on-read", "node-name": "copy", "file": file });
        if let Some(bottom) = bottom {
            options["bottom"] = bottom.into();
        }
        options
    }

    /// A cluster of `number`.
    fn submit(disk: &mut Disk, cluster: u64, number: u8) {
        let data = vec![number; CLUSTER];
        let sector = cluster * CLUSTER as u64 / 512;
        disk.submit(
            0,
            Request::Write {
                sector,
                data: &data,
            },
        )
        .unwrap();
        disk.kick(0).unwrap();
    }

    fn done(disk: &mut Disk, count: u64) {
        for _ in 0..count {
            let done = disk.wait(0, PATIENCE).unwrap().expect("it ends");
            assert!(done.is_ok());
        }
    }

    fn read(disk: &mut Disk, cluster: u64) -> u8 {
        let read = Request::Read {
            sector: cluster * CLUSTER as u64 / 512,
            len: 512,
        };
        let done = disk.execute(0, read, PATIENCE).unwrap();
        assert!(done.is_ok());
        done.data[0]
    }

    /// What the first clusters of an image hold without anything behind it.
    fn own<const N: usize>(house: &House, name: &str) -> [u8; N] {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        let image = chain_of([house.path(name)]);
        run("qemu-img", &["convert", "-UOraw", &image, text(&raw)]).unwrap();
        let raw = fs::read(raw).unwrap();
        std::array::from_fn(|cluster| raw[cluster * CLUSTER])
    }

    /// What is read comes up into the overlay from then on, and the image that is below now is not written.
    #[test]
    fn an_overlay_comes_in_below_copy_on_read() {
        let house = two();
        house.delete_export("vda", true).unwrap();
        house.node(&copy("base0", None)).unwrap();
        house.export("vda", "copy", true).unwrap();
        let load = house.load("vda");
        house
            .transact(json!([snapshot("base0", "over0")]), Some(PATIENCE))
            .unwrap();
        assert!(house.registry.node("base0").unwrap().read_only());
        // It reads all that it has written, before the overlay came in or after.
        assert!(load.end() > 20);
        assert_eq!(root(&house, "vda"), "copy");
        let filter = house.registry.node("copy").unwrap();
        assert_eq!(&**filter.filtered().unwrap().name(), "over0");
        drop(filter);
        house.delete_export("vda", true).unwrap();
        let alone = chain_of([house.path("over0")]);
        let whole = chain_of(["base0", "over0"].map(|name| house.path(name)));
        run("qemu-img", &["compare", "-Uq", &alone, &whole]).unwrap();
        house.close();
    }

    /// The bottom stays the one that was named, whatever comes in above it.
    #[test]
    fn nothing_comes_up_from_below_the_bottom() {
        for (bottom, expected) in [(None, [1, 2]), (Some("over0"), [0, 2])] {
            let house = two();
            let mut disk = house.connect("vda");
            submit(&mut disk, 0, 1);
            done(&mut disk, 1);
            house
                .transact(json!([snapshot("base0", "over0")]), None)
                .unwrap();
            submit(&mut disk, 1, 2);
            done(&mut disk, 1);
            drop(disk);
            house.delete_export("vda", true).unwrap();
            house.delete_export("vdb", true).unwrap();
            house.node(&copy("over0", bottom)).unwrap();
            house.export("vda", "copy", true).unwrap();
            house
                .transact(json!([snapshot("over0", "over1")]), Some(PATIENCE))
                .unwrap();
            let mut disk = house.connect("vda");
            assert_eq!([0, 1].map(|cluster| read(&mut disk, cluster)), [1, 2]);
            drop(disk);
            house.delete_export("vda", true).unwrap();
            house.delete_node("copy").unwrap();
            assert_eq!(own(&house, "over1"), expected, "{bottom:?}");
            house.close();
        }
    }

    #[test]
    fn an_overlay_comes_in_above_copy_on_read() {
        let house = two();
        house.delete_export("vda", true).unwrap();
        house.node(&copy("base0", None)).unwrap();
        house.export("vda", "copy", true).unwrap();
        let load = house.load("vda");
        house
            .transact(json!([snapshot("copy", "over0")]), Some(PATIENCE))
            .unwrap();
        assert_eq!(root(&house, "vda"), "over0");
        house
            .transact(
                json!([snapshot_sync(&house, "over0", "made")]),
                Some(PATIENCE),
            )
            .unwrap();
        assert!(load.end() > 100);
        house.close();
    }

    /// An overlay came in above a filter that copies what is read, and that went on copying: the base was written while it was backed up, and had
    /// what only the daemon's memory and its log knew, although it was said to be complete on disk.
    #[test]
    fn nothing_is_copied_below_an_overlay() {
        let house = House::new();
        image(&house, "deep", None);
        image(&house, "base", Some("deep"));
        let all = format!("write -q -P 7 0 {}", 8 * CLUSTER);
        run(
            "qemu-io",
            &["-fqcow2", "-c", &all, text(&house.path("deep"))],
        )
        .unwrap();
        let base = json!({ "driver": "qcow2", "node-name": "base",
            "file": { "driver": "file", "filename": house.path("base") } });
        house.node(&base).unwrap();
        house.node(&copy("base", None)).unwrap();
        let limit = json!({ "driver": "quota", "node-name": "filter", "file": "copy", "limit": 1_u64 << 40 });
        house.node(&limit).unwrap();
        house.export("vda", "filter", true).unwrap();
        let mut disk = house.connect("vda");
        assert_eq!(read(&mut disk, 0), 7);
        house
            .transact(json!([snapshot_sync(&house, "filter", "over")]), None)
            .unwrap();
        let bytes = fs::read(house.path("base")).unwrap();
        assert_eq!([1, 2].map(|cluster| read(&mut disk, cluster)), [7, 7]);
        submit(&mut disk, 3, 8);
        done(&mut disk, 1);
        drop(disk);
        house.delete_export("vda", true).unwrap();
        assert!(
            fs::read(house.path("base")).unwrap() == bytes,
            "it is written"
        );
        house.close();
    }

    /// What waits for its budget is in no image yet: it is done above, whether the overlay comes in below the filter or
    /// above it.
    #[test]
    fn what_a_throttle_has_parked_is_done_above() {
        let house = two();
        house.delete_export("vda", true).unwrap();
        let group =
            json!({ "qom-type": "throttle-group", "id": "g", "limits": { "bps-write": 1 } });
        let group = ObjectOptions::parse(&group.to_string()).unwrap();
        house.wait(house.assembly.add_object(group)).unwrap();
        let filter = json!({ "driver": "throttle", "node-name": "filter", "throttle-group": "g",
            "file": "base0" });
        house.node(&filter).unwrap();
        house.export("vda", "filter", true).unwrap();
        let limit = |bytes: u64| {
            let objects: &dyn monitor::Objects = &house.assembly;
            let limits = json!({ "bps-write": bytes });
            objects.set(&[], "/objects/g", "limits", limits).unwrap();
        };
        let mut disk = house.connect("vda");
        for (first, base, over) in [(0, "base0", "over0"), (8, "filter", "over1")] {
            for cluster in first..first + 8 {
                submit(&mut disk, cluster, 1);
            }
            // The first one goes; 18 hours each for the others.
            done(&mut disk, 1);
            house
                .transact(json!([snapshot(base, over)]), Some(PATIENCE))
                .unwrap();
            limit(0);
            done(&mut disk, 7);
            limit(1);
        }
        assert_eq!(root(&house, "vda"), "over1");
        drop(disk);
        house.delete_export("vda", true).unwrap();
        assert_eq!(own(&house, "base0"), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(own(&house, "over0"), [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(own(&house, "over1"), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        house.close();
    }
}
