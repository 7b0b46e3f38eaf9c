//! `copy-on-read` over chains: what reads bring into the uppermost image, and what they leave where it is.
//!
//! Needs qemu-img and qemu-io.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};
    use testkit::qcow2_image::run;

    use super::common::{BLOCKS, House};

    const DISK: u64 = BLOCKS as u64 * 4096;
    const CLUSTER: u64 = 64 << 10;

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    fn overlay(house: &House, name: &str, backing: &str, format: &str) {
        let (path, length) = (house.path(name), DISK.to_string());
        let path = text(&path);
        let arguments = [
            "create", "-quf", "qcow2", "-F", format, "-b", backing, path, &length,
        ];
        run("qemu-img", &arguments).unwrap();
    }

    fn file(house: &House, name: &str) -> Value {
        json!({ "driver": "file", "filename": house.path(name) })
    }

    /// Nodes `top`, `mid` and `base` (raw), with something of their own in each.
    fn chain() -> House {
        let house = House::new();
        fs::write(house.path("base.img"), vec![1; 1 << 20]).unwrap();
        overlay(&house, "mid.img", "base.img", "raw");
        overlay(&house, "top.img", "mid.img", "qcow2");
        for (image, pattern, at) in [("mid.img", 2, "512k"), ("top.img", 3, "1M")] {
            let write = format!("write -q -P {pattern} {at} 64k");
            let path = house.path(image);
            run("qemu-io", &["-fqcow2", "-c", &write, text(&path)]).unwrap();
        }
        let base = json!({ "driver": "raw", "node-name": "base", "read-only": true, "file": file(&house, "base.img") });
        let mid = json!({ "driver": "qcow2", "node-name": "mid", "read-only": true, "file": file(&house, "mid.img"),
            "backing": "base" });
        let top = json!({ "driver": "qcow2", "node-name": "top", "file": file(&house, "top.img"), "backing": "mid" });
        for node in [base, mid, top] {
            house.node(&node).unwrap();
        }
        house
    }

    fn copy(bottom: Option<&str>) -> Value {
        let mut options = json!({ "driver": "copy-on-read", "node-name": "copy", "file": "top" });
        if let Some(bottom) = bottom {
            options["bottom"] = bottom.into();
        }
        options
    }

    /// Whether clusters of the uppermost image are its own, after all is written.
    fn own(house: &House, offsets: &[u64]) -> Vec<bool> {
        house.delete_export("disk", true).unwrap();
        house.delete_node("copy").unwrap();
        house.delete_node("top").unwrap();
        let path = house.path("top.img");
        let map = run("qemu-img", &["map", "-U", "--output=json", text(&path)]).unwrap();
        let map: Value = serde_json::from_str(&map).unwrap();
        let is_own = |offset: &u64| {
            let holds = |entry: &&Value| {
                let start = entry["start"].as_u64().unwrap();
                (start..start + entry["length"].as_u64().unwrap()).contains(offset)
            };
            let entry = map.as_array().unwrap().iter().find(holds).unwrap();
            entry["depth"] == 0 && entry["present"] == true
        };
        offsets.iter().map(is_own).collect()
    }

    const BASE: u64 = 100 << 10;
    const MID: u64 = 530 << 10;
    const TOP: u64 = 1030 << 10;
    const BEHIND: u64 = 2 << 20;

    #[test]
    fn what_is_read_comes_up() {
        let house = chain();
        house.node(&copy(None)).unwrap();
        // Nor has anybody to be allowed to write for that.
        house.export("disk", "copy", false).unwrap();
        let all = [BASE, MID, TOP, BEHIND];
        assert_eq!(house.look("disk", &all), [1, 2, 3, 0]);
        // That there are zeroes comes up, too.
        let expected = [true, true, true, true, false];
        assert_eq!(
            own(&house, &[BASE, MID, TOP, BEHIND, 8 * CLUSTER + BASE]),
            expected
        );
    }

    #[test]
    fn no_further_than_from_the_bottom() {
        let house = chain();
        house.node(&copy(Some("mid"))).unwrap();
        house.export("disk", "copy", true).unwrap();
        assert_eq!(house.look("disk", &[BASE, MID, TOP]), [1, 2, 3]);
        assert_eq!(own(&house, &[BASE, MID, TOP]), [false, true, true]);
    }

    #[test]
    fn the_bottom_stays_where_it_is() {
        let house = chain();
        house.node(&copy(Some("base"))).unwrap();
        house.export("disk", "copy", true).unwrap();
        let mid = |backing: Value| json!({ "driver": "qcow2", "node-name": "mid", "read-only": true, "file": file(&house, "mid.img"), "backing": backing });
        let other = json!({ "driver": "null-co", "node-name": "other", "read-only": true });
        house.node(&other).unwrap();
        let error = house.reopen(&mid("other".into()), None).unwrap_err();
        assert_eq!(
            error,
            "Cannot change frozen 'backing' link from 'mid' to 'base'"
        );
        assert_eq!(house.look("disk", &[BASE, MID]), [1, 2], "all is as before");
        house.reopen(&mid("base".into()), None).unwrap();
        assert_eq!(house.look("disk", &[BASE, MID]), [1, 2]);
        let mut other = copy(Some("base"));
        other["detect-zeroes"] = "on".into();
        let error = house.reopen(&other, None).unwrap_err();
        let expected =
            "Block format 'copy-on-read' used by node 'copy' does not support reopening files";
        assert_eq!(error, expected);
    }

    #[test]
    fn who_writes_besides_is_refused() {
        let house = chain();
        house.node(&copy(None)).unwrap();
        house.export("disk", "copy", true).unwrap();
        let error = house.export("second", "top", true).unwrap_err();
        assert!(error.contains("unshared by node 'copy'"), "{error}");
        house.export("reader", "top", false).unwrap();
    }

    #[test]
    fn what_cannot_be_written_cannot_be_copied_to() {
        let house = chain();
        let options = json!({ "driver": "copy-on-read", "node-name": "copy", "file": "mid" });
        assert_eq!(house.node(&options).unwrap_err(), "Block node is read-only");
        for bottom in ["nobody", "top.img"] {
            let error = house.node(&copy(Some(bottom))).unwrap_err();
            assert_eq!(error, format!("Bottom node '{bottom}' not found"));
        }
    }

    /// The disk is full: reads have their data all the same, nothing is held, and copying goes on when there is room.
    #[test]
    fn no_room_for_a_copy_is_no_error_of_a_read() {
        let house = chain();
        house.delete_node("top").unwrap();
        let room = fs::metadata(house.path("top.img")).unwrap().len();
        let quota = json!({ "driver": "quota", "node-name": "room", "limit": room, "file": file(&house, "top.img") });
        house.node(&quota).unwrap();
        let top =
            json!({ "driver": "qcow2", "node-name": "top", "file": "room", "backing": "mid" });
        house.node(&top).unwrap();
        house.node(&copy(None)).unwrap();
        house.export("disk", "copy", true).unwrap();
        assert_eq!(house.look("disk", &[BASE, MID, TOP]), [1, 2, 3]);
        assert_eq!(house.held("disk"), 0);
        let quota = house.registry.node("room").unwrap();
        quota
            .allocation_limit()
            .unwrap()
            .set_quota(1 << 30)
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(house.look("disk", &[MID]), [2]);
        assert_eq!(own(&house, &[BASE, MID]), [false, true]);
    }
}
