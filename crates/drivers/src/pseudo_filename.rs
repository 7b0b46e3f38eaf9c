//! What stands for the file name of a node that no file name describes: QEMU's `json:{...}`.

use block::{BACKING, Child, DATA_FILE};
use serde_json::{Map, Value};

/// What it begins with.
pub const PREFIX: &str = "json:";

/// The order in which QEMU writes members: that of its hash table, which nobody should count on, and some do.
const ORDER: [&str; 10] = [
    DATA_FILE,
    BACKING,
    "throttle-group",
    "read-zeroes",
    "offset",
    "driver",
    "size",
    "file",
    "image",
    "filename",
];

/// The pseudo file name of a node of `driver` with these `options` and this child.
pub fn of(driver: &str, options: &[(&str, Value)], child: Option<&Child>) -> String {
    let mut all = Map::new();
    all.insert("driver".to_owned(), driver.into());
    for (name, value) in options {
        all.insert((*name).to_owned(), value.clone());
    }
    if let Some(child) = child {
        all.insert(child.role().to_owned(), described(child));
    }
    text_of(all)
}

/// As QEMU writes the definition of a node in the place of a file name.
pub fn text_of(definition: Map<String, Value>) -> String {
    let mut text = PREFIX.to_owned();
    write(&Value::Object(definition), &mut text);
    text
}

/// The pseudo file name of an image in `file`. `data_file`: where its data are, if that is elsewhere. `backing`: its backing
/// node, whose file name was asked for, or that there is none, where the image says something else.
pub fn of_image(
    driver: &str,
    file: &Child,
    data_file: Option<&Child>,
    backing: Option<Option<(&Child, &str)>>,
) -> String {
    let data_file = data_file.map(|data| (DATA_FILE, described(data)));
    let described = |(child, filename): (&Child, &str)| described_as(child, filename);
    let backing = backing.map(|backing| (BACKING, backing.map_or(Value::Null, described)));
    let others: Vec<_> = data_file.into_iter().chain(backing).collect();
    of(driver, &others, Some(file))
}

/// Whether the file name of a child is that of a node above it which shows all of it. As in QEMU only what stores
/// itself has one that leads to the same.
pub fn names_its_parent(child: &Child) -> bool {
    let node = child.node();
    node.driver().name() != "raw" && !node.driver().info().filename.starts_with(PREFIX)
}

fn described(child: &Child) -> Value {
    described_as(child, &child.info().filename)
}

fn described_as(child: &Child, filename: &str) -> Value {
    let node = child.node();
    let driver = node.driver();
    let known = filename.strip_prefix(PREFIX);
    if let Some(known) = known.and_then(|json| serde_json::from_str(json).ok()) {
        return known;
    }
    let mut all = Map::new();
    all.insert("driver".to_owned(), driver.name().into());
    match (driver.name(), driver.children().first()) {
        ("raw" | "qcow2", Some(below)) => {
            all.insert(below.role().to_owned(), described(below));
            let mut children = driver.children().into_iter();
            if let Some(data) = children.find(|child| child.role() == DATA_FILE) {
                all.insert(DATA_FILE.to_owned(), described(data));
            }
        }
        // The name of a protocol says no more than its driver.
        (name, _) if filename == format!("{name}://") => {}
        _ => {
            all.insert("filename".to_owned(), filename.into());
        }
    }
    Value::Object(all)
}

/// As QEMU writes JSON.
fn write(value: &Value, text: &mut String) {
    let Value::Object(members) = value else {
        text.push_str(&value.to_string());
        return;
    };
    let place = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(name, _)| place(name).unwrap_or(ORDER.len()));
    text.push('{');
    for (number, (name, value)) in members.into_iter().enumerate() {
        if number > 0 {
            text.push_str(", ");
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push_str(": ");
        write(value, text);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    use crate::{NullCo, NullOptions, Raw, RawOptions};
    use block::{Node, NodeInfo};
    use std::sync::Arc;

    fn null(read_zeroes: Option<bool>) -> Arc<Node> {
        let options = NullOptions {
            read_zeroes,
            size: read_zeroes.map(|_| 4096),
            ..NullOptions::default()
        };
        Node::new("null0", Box::new(NullCo::new(options)))
    }

    fn raw(file: &Arc<Node>, offset: u64) -> Arc<Node> {
        let raw = Raw::new(RawOptions {
            node_name: "raw0".into(),
            file: Arc::clone(file),
            offset,
            size: None,
            discard: false,
            info: NodeInfo::default(),
        });
        Node::new("raw0", Box::new(raw.expect("opens")))
    }

    /// Word for word as QEMU 7.2 and 10 say.
    #[test]
    fn nodes_are_named_or_described_as_by_qemu() {
        let (plain, zeroes) = (null(None), null(Some(true)));
        let described = r#"{"read-zeroes": true, "driver": "null-co", "size": 4096}"#;
        for (node, name) in [
            (plain.clone(), "null-co://".to_owned()),
            (zeroes.clone(), format!("json:{described}")),
            (raw(&plain, 0), "null-co://".to_owned()),
            (
                raw(&zeroes, 0),
                format!(r#"json:{{"driver": "raw", "file": {described}}}"#),
            ),
            (
                raw(&plain, 512),
                r#"json:{"offset": 512, "driver": "raw", "file": {"driver": "null-co"}}"#.to_owned(),
            ),
            (
                raw(&raw(&plain, 0), 0),
                r#"json:{"driver": "raw", "file": {"driver": "raw", "file": {"driver": "null-co"}}}"#
                    .to_owned(),
            ),
        ] {
            assert_eq!(node.driver().info().filename, name);
        }
    }
}
