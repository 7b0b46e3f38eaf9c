//! What stands for the file name of a node that no file name describes: QEMU's `json:{...}`.

use block::Child;
use serde_json::{Map, Value};

const PREFIX: &str = "json:";

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
    format!("{PREFIX}{}", Value::Object(all))
}

/// Whether `filename` is one.
pub fn is_pseudo(filename: &str) -> bool {
    filename.starts_with(PREFIX)
}

fn described(child: &Child) -> Value {
    let node = child.node();
    let filename = node.driver().info().filename;
    let known = filename.strip_prefix(PREFIX);
    if let Some(known) = known.and_then(|json| serde_json::from_str(json).ok()) {
        return known;
    }
    let driver = node.driver().name();
    let mut all = Map::new();
    all.insert("driver".to_owned(), driver.into());
    // The name of a protocol says no more than its driver.
    if filename != format!("{driver}://") {
        all.insert("filename".to_owned(), filename.into());
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NullCo, NullOptions};
    use block::Node;
    use serde_json::json;

    #[test]
    fn a_child_is_described_as_it_is_named() {
        for (read_zeroes, expected) in [
            (None, json!({ "driver": "null-co" })),
            (
                Some(true),
                json!({ "driver": "null-co", "read-zeroes": true }),
            ),
        ] {
            let options = NullOptions {
                read_zeroes,
                ..NullOptions::default()
            };
            let null = Node::new("null0", Box::new(NullCo::new(options)));
            let child = Child::of(&"raw0".into(), "file", null);
            let name = of("raw", &[("offset", 512.into())], Some(&child));
            let described: Value = serde_json::from_str(&name["json:".len()..]).expect("JSON");
            assert_eq!(
                described,
                json!({ "driver": "raw", "offset": 512, "file": expected })
            );
        }
        assert!(is_pseudo("json:{}") && !is_pseudo("/json:x"));
    }
}
