//! By what name an image in a file finds what is stored in a node again, whoever opens it: QEMU's tools, and the next daemon. Filters
//! are left out: they belong to the command line (a throttle group, a limit), and are not there for others, or not in others at all.

use block::{BACKING, DATA_FILE, Node};
use serde_json::{Map, Value};
use std::sync::Arc;

use crate::pseudo_filename::{self, PREFIX};

/// The name of what `node` stores, and the driver that reads it.
pub fn of(node: &Arc<Node>) -> (String, &'static str) {
    let node = unfiltered(node);
    let name = plain(&node).unwrap_or_else(|| pseudo_filename::text_of(described(&node)));
    (name, node.driver().name())
}

fn unfiltered(node: &Arc<Node>) -> Arc<Node> {
    let mut node = Arc::clone(node);
    while let Some(below) = node.filtered() {
        node = below;
    }
    node
}

/// The pseudo file name of a node, if it has one.
fn pseudo(node: &Node) -> Option<Map<String, Value>> {
    let filename = node.driver().info().filename;
    let json = filename.strip_prefix(PREFIX)?;
    serde_json::from_str(json).ok()
}

fn file(node: &Node) -> Option<Arc<Node>> {
    let is_format = matches!(node.driver().name(), "raw" | "qcow2");
    node.child("file").filter(|_| is_format)
}

/// What of its own options is no child.
fn own_options(node: &Node) -> impl Iterator<Item = (String, Value)> {
    let options = pseudo(node).into_iter().flatten();
    options.filter(|(name, value)| !(value.is_object() || value.is_null() || name == "driver"))
}

/// What is behind an image, if that is not what the image says.
fn other_backing(node: &Node) -> Option<Value> {
    pseudo(node)?.get(BACKING)?;
    let Some(backing) = node.backing() else {
        return Some(Value::Null);
    };
    let says = node.driver().info().format.as_ref()?.backing_name.clone();
    let is_said = says.as_deref() == Some(of(&backing).0.as_str());
    (!is_said).then(|| described(&unfiltered(&backing)).into())
}

/// The file name that says all of it.
fn plain(node: &Node) -> Option<String> {
    let Some(file) = file(node) else {
        let filename = node.driver().info().filename;
        return (!filename.starts_with(PREFIX)).then_some(filename);
    };
    if own_options(node).next().is_some() || other_backing(node).is_some() {
        return None;
    }
    let file = unfiltered(&file);
    (file.driver().name() != "raw").then(|| plain(&file))?
}

/// Its definition, without filters.
fn described(node: &Node) -> Map<String, Value> {
    let name = node.driver().name();
    let mut all = Map::from_iter([("driver".to_owned(), name.into())]);
    let filename = node.driver().info().filename;
    match (file(node), pseudo(node)) {
        (Some(file), _) => {
            all.extend(own_options(node));
            all.insert("file".to_owned(), described(&unfiltered(&file)).into());
            if let Some(data) = node.child(DATA_FILE) {
                let data = described(&unfiltered(&data));
                all.insert(DATA_FILE.to_owned(), data.into());
            }
            all.extend(other_backing(node).map(|backing| (BACKING.to_owned(), backing)));
        }
        (None, Some(pseudo)) => all.extend(pseudo),
        // The name of a protocol says no more than its driver.
        (None, None) if filename == format!("{name}://") => {}
        (None, None) => {
            all.insert("filename".to_owned(), filename.into());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blkdebug, BlkdebugOptions, NullCo, NullOptions, Raw, RawOptions};
    use block::NodeInfo;

    fn null(size: Option<u64>) -> Arc<Node> {
        let options = NullOptions {
            size,
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

    fn filter(image: &Arc<Node>) -> Arc<Node> {
        let options = BlkdebugOptions {
            node_name: "filter0".into(),
            image: Arc::clone(image),
            inject_error: Vec::new(),
            set_state: Vec::new(),
            align: None,
        };
        let filter = Blkdebug::new(options).expect("opens");
        Node::new("filter0", Box::new(filter))
    }

    #[test]
    fn filters_are_in_no_name() {
        let (plain, sized) = (null(None), null(Some(4096)));
        for (node, name) in [
            (filter(&plain), ("null-co://", "null-co")),
            (filter(&raw(&filter(&plain), 0)), ("null-co://", "raw")),
            (
                filter(&raw(&filter(&plain), 512)),
                (
                    r#"json:{"offset": 512, "driver": "raw", "file": {"driver": "null-co"}}"#,
                    "raw",
                ),
            ),
            (
                raw(&filter(&sized), 0),
                (
                    r#"json:{"driver": "raw", "file": {"driver": "null-co", "size": 4096}}"#,
                    "raw",
                ),
            ),
        ] {
            assert_eq!(of(&node), (name.0.to_owned(), name.1));
        }
    }
}
