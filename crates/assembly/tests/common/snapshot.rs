//! Images and nodes for snapshots.

use std::path::Path;

use serde_json::{Value, json};
use testkit::cut::BLOCK;
use testkit::qcow2_image::run;

use super::House;

/// Blocks of a disk.
pub const BLOCKS: u64 = super::BLOCKS as u64;
/// Bytes of it.
pub const DISK: u64 = BLOCKS * BLOCK as u64;

/// As it is typed.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A qcow2 image; with a backing file it says so.
pub fn image(house: &House, name: &str, backing: Option<&str>) {
    image_with(house, name, backing, "");
}

/// The same, with its clusters in the file `{name}.data`; that may be what the guest sees, byte by byte.
pub fn image_with_data(house: &House, name: &str, backing: Option<&str>, is_raw: bool) {
    let data = house.path(&format!("{name}.data"));
    let raw = if is_raw { "on" } else { "off" };
    let options = format!("data_file={},data_file_raw={raw}", data.display());
    image_with(house, name, backing, &options);
}

fn image_with(house: &House, name: &str, backing: Option<&str>, options: &str) {
    let (path, length) = (house.path(name), DISK.to_string());
    let mut arguments = vec!["create", "-qufqcow2"];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    if let Some(backing) = backing {
        arguments.extend(["-F", "qcow2", "-b", backing]);
    }
    arguments.extend([text(&path), &length]);
    run("qemu-img", &arguments).unwrap();
}

/// The node `name` of the image of that name, which is in the node `file`.
pub fn qcow2(name: &str, file: &str, backing: &Value) -> Value {
    json!({ "driver": "qcow2", "node-name": name, "file": file, "backing": backing })
}

/// The same, with its file in place.
pub fn inline(house: &House, name: &str) -> Value {
    json!({ "driver": "qcow2", "node-name": name, "backing": null,
        "file": { "driver": "file", "node-name": format!("{name}-file"), "filename": house.path(name) } })
}

/// An action of a transaction.
pub fn snapshot(node: &str, overlay: &str) -> Value {
    json!({ "type": "blockdev-snapshot", "data": { "node": node, "overlay": overlay } })
}

/// The same, into a file of that name.
pub fn snapshot_sync(house: &House, node: &str, name: &str) -> Value {
    json!({ "type": "blockdev-snapshot-sync", "data": { "node-name": node,
        "snapshot-file": house.path(name), "snapshot-node-name": name } })
}

/// A node of that name through which errors can be injected, on a file of it.
pub fn faulty(house: &House, name: &str) -> String {
    house.file(&format!("{name}-file"), name).unwrap();
    let faulty = format!("{name}-faulty");
    let options = json!({ "driver": "blkdebug", "node-name": faulty,
        "image": format!("{name}-file") });
    house.node(&options).unwrap();
    faulty
}

/// Of all nodes.
pub fn names(house: &House) -> Vec<String> {
    let nodes = house.registry.nodes();
    nodes.iter().map(|node| node.name().to_string()).collect()
}

/// The node of an export.
pub fn root(house: &House, export: &str) -> String {
    let export = house.registry.export(export).unwrap();
    export.backend().node().name().to_string()
}

/// Opens the image as another process that writes, or reads.
pub fn other(house: &House, name: &str, flags: &str) -> bool {
    let command = if flags.contains('r') {
        "read -q 0 512"
    } else {
        "write -q 0 512"
    };
    let path = house.path(name);
    run("qemu-io", &[flags, "qcow2", "-c", command, text(&path)]).is_ok()
}

/// Two disks, with an overlay for each.
pub fn two() -> House {
    let house = House::new();
    for (number, export) in ["vda", "vdb"].into_iter().enumerate() {
        let (base, over) = (format!("base{number}"), format!("over{number}"));
        image(&house, &base, None);
        image(&house, &over, None);
        house.node(&inline(&house, &base)).unwrap();
        house.node(&inline(&house, &over)).unwrap();
        house.export(export, &base, true).unwrap();
    }
    house
}
