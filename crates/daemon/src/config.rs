//! `--config`: what the other options say, in a file.
//!
//! TOML, or JSON if it begins with `{`. Lists of what QMP's commands take, executed in this order:
//!
//! | list | an element |
//! |---|---|
//! | `objects` | `object-add` |
//! | `blockdevs` | `blockdev-add` |
//! | `exports` | `block-export-add` |
//! | `chardevs` | `chardev-add` |
//! | `monitors` | `--monitor` |

use std::fs::File;
use std::io::Read;
use std::path::Path;

use block::strerror;
use qapi::de::{self, Mode};
use qapi::options::{
    BlockdevOptions, ChardevOptions, ExportOptions, MonitorOptions, ObjectOptions,
};
use qapi::{Object, QmpError, Value, id, json};

/// The largest file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// One thing to be made.
#[derive(Debug)]
pub struct Item {
    /// Where it stands in the file.
    pub place: String,
    /// What it is.
    pub options: Options,
}

/// What can be made.
#[derive(Debug)]
pub enum Options {
    /// An object.
    Object(ObjectOptions),
    /// A node.
    Blockdev(BlockdevOptions),
    /// An export.
    Export(ExportOptions),
    /// A character device.
    Chardev(ChardevOptions),
    /// A monitor.
    Monitor(MonitorOptions),
}

/// What makes one thing out of an element.
type Parse = fn(&Value) -> Result<Options, QmpError>;

const LISTS: [(&str, Parse); 5] = [
    ("objects", |value| {
        let options: ObjectOptions = de::from_value(value, Mode::Json)?;
        options.check()?;
        Ok(Options::Object(options))
    }),
    ("blockdevs", |value| {
        let options: BlockdevOptions = de::from_value(value, Mode::Json)?;
        options.check_root()?;
        Ok(Options::Blockdev(options))
    }),
    ("exports", |value| {
        let options: ExportOptions = de::from_value(value, Mode::Json)?;
        options.check()?;
        Ok(Options::Export(options))
    }),
    ("chardevs", |value| {
        let options: ChardevOptions = de::from_value(value, Mode::Json)?;
        id::check_id(&options.id)?;
        options.backend.check()?;
        Ok(Options::Chardev(options))
    }),
    ("monitors", |value| {
        Ok(Options::Monitor(de::from_value(value, Mode::Json)?))
    }),
];

/// Reads a file. It asks the file system, and may wait for it.
///
/// # Errors
/// If it cannot be read, is no text, or is too large.
pub fn read(path: &Path) -> Result<String, String> {
    let failed = |error| {
        let path = path.display();
        format!("Could not open '{path}': {}", strerror(&error))
    };
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(failed)?.take(BYTES_MAX + 1);
    file.read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())
}

/// All that a file lists, in the order in which it is to be made. Everything is looked at before anything is
/// made.
///
/// # Errors
/// Names the place, and what is wrong there.
pub fn parse(text: &str) -> Result<Vec<Item>, String> {
    let mut lists = lists_of(text)?;
    let mut items = Vec::new();
    for (name, parse) in LISTS {
        let elements = match lists.shift_remove(name) {
            None => continue,
            Some(Value::Array(elements)) => elements,
            Some(_) => return Err(format!("{name}: expected a list")),
        };
        for (n, element) in elements.iter().enumerate() {
            let place = format!("{name}[{n}]");
            let options = parse(element).map_err(|error| format!("{place}: {}", error.whole()))?;
            items.push(Item { place, options });
        }
    }
    match lists.keys().next() {
        None => Ok(items),
        Some(name) => {
            let known = LISTS.map(|(name, _)| name).join(", ");
            Err(format!("'{name}' is not known here, only {known}"))
        }
    }
}

fn lists_of(text: &str) -> Result<Object, String> {
    // Editors of other systems begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with('{') {
        // Its messages have a picture of the place.
        return toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned());
    }
    match json::parse(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("expected an object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
[[exports]]
type = "vhost-user-blk"
id = "vda"
node-name = "d"
writable = true
addr = { type = "unix", path = "/run/vda.sock" }

[[blockdevs]]
driver = "null-co"
node-name = "d"
size = 1048576

[[objects]]
qom-type = "iothread"
id = "io"

[[chardevs]]
id = "q"
backend = { type = "socket", data = { addr = { type = "unix", data = { path = "/run/q" } } } }

[[monitors]]
chardev = "q"
"#;

    fn places(text: &str) -> Vec<String> {
        let items = parse(text).unwrap();
        items.into_iter().map(|item| item.place).collect()
    }

    #[test]
    fn the_order_is_that_of_the_lists() {
        let all = [
            "objects[0]",
            "blockdevs[0]",
            "exports[0]",
            "chardevs[0]",
            "monitors[0]",
        ];
        assert_eq!(places(TOML), all);
        let json = r#" {"monitors": [{"chardev": "a"}, {"chardev": "b"}],
            "objects": [{"qom-type": "iothread", "id": "i"}]}"#;
        assert_eq!(places(json), ["objects[0]", "monitors[0]", "monitors[1]"]);
        // The mark that editors of other systems put before all.
        assert_eq!(places(&format!("\u{feff}{TOML}")), all);
        assert_eq!(places("\u{feff}{\"objects\": []}"), Vec::<String>::new());
        assert_eq!(places(""), Vec::<String>::new());
        assert_eq!(places("{}"), Vec::<String>::new());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, desc) in [
            (
                "x = 1",
                "'x' is not known here, only objects, blockdevs, exports, chardevs, monitors",
            ),
            ("objects = 1", "objects: expected a list"),
            (
                "[[monitors]]\n",
                "monitors[0]: Parameter 'chardev' is missing",
            ),
            (
                "[[monitors]]\nchardev = 'a'\nfoo = 1",
                "monitors[0]: Parameter 'foo' is unexpected",
            ),
            (
                "[[blockdevs]]\ndriver = 'null-co'",
                "blockdevs[0]: 'node-name' must be specified for the root node",
            ),
            (
                "[[blockdevs]]\ndriver = 'null-co'\nnode-name = 'n'\nread-only = 'on'",
                "blockdevs[0]: Invalid parameter type for 'read-only', expected: boolean",
            ),
            (
                "[[objects]]\nqom-type = 'iothread'\nid = '9'",
                "objects[0]: Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            ),
            ("{", "JSON parse error, premature EOI"),
        ] {
            assert_eq!(parse(text).unwrap_err(), desc, "{text}");
        }
        assert!(parse("[[objects").unwrap_err().contains("line 1"));
        assert_eq!(
            read(Path::new("/nonexistent")).unwrap_err(),
            "Could not open '/nonexistent': No such file or directory"
        );
    }
}
