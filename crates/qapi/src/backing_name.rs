//! The backing file that an image names: from its header to the options of a node. Pure.
//!
//! The name is somebody else's, and has 1,023 bytes at most. It is a path, which counts from the directory of the
//! image, or `file:` and a path, which does not, or `json:` and options. The format is the header's word; where it
//! has none, QEMU guesses, and a raw disk whose guest has written the beginning of another format into it is read as
//! that. Here it has to be said.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::de::{Mode, from_object};
use crate::options::{
    BlockdevBase, BlockdevDriver, BlockdevDriverOptions, BlockdevOptions, BlockdevRef, FileOptions,
    RawOptions,
};
use crate::{Object, QmpError, Value, json, os_text};

/// What stands before the first `:` of a name, if that is what QEMU calls a protocol: no directory has it.
pub fn protocol(name: &str) -> Option<&str> {
    let (protocol, _) = name.split_once(':')?;
    (!protocol.contains('/')).then_some(protocol)
}

/// Where `name` leads, of an image whose file is called `image`: it counts from the directory of that. None: that
/// file is in no directory.
pub fn full(image: &str, name: &str) -> Option<String> {
    if name.starts_with('/') || protocol(name).is_some() {
        return Some(name.to_owned());
    }
    if protocol(image).is_some() {
        return None;
    }
    let directory = image.rfind('/').and_then(|end| image.get(..=end));
    Some([directory.unwrap_or_default(), name].concat())
}

/// What a backing file is to be opened as.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A path, in this format.
    Path {
        /// The file.
        path: String,
        /// Its format, or what opens it.
        driver: BlockdevDriver,
    },
    /// All is said.
    Options(Box<BlockdevOptions>),
}

/// What `name`, of the image in a file called `image`, leads to; `format`: what that says of its format.
///
/// # Errors
/// In QEMU's words: it leads to nothing that we know. Its format is not known.
pub fn source(image: &str, name: &[u8], format: Option<&str>) -> Result<Source, QmpError> {
    let name = os_text::from_os(OsStr::from_bytes(name));
    if let Some(text) = name.strip_prefix("json:") {
        return options(image, &name, text, format);
    }
    let driver = driver(format.ok_or_else(|| no_format(image, &name))?)?;
    let path = match protocol(&name) {
        None => full(image, &name).ok_or_else(|| {
            QmpError::generic(format!(
                "Cannot use relative backing file names for '{image}'"
            ))
        })?,
        Some(protocol @ ("file" | "host_device")) => name[protocol.len() + 1..].to_owned(),
        Some(other) => return Err(QmpError::generic(format!("Unknown protocol '{other}'"))),
    };
    Ok(Source::Path { path, driver })
}

/// The node of a file. `is_device`: it is a block device.
///
/// # Errors
/// A driver that is none of an image.
pub fn of_path(
    path: String,
    driver: BlockdevDriver,
    is_device: bool,
) -> Result<BlockdevOptions, QmpError> {
    let file = FileOptions {
        filename: path,
        locking: None,
        pr_manager: None,
        aio: None,
        aio_max_batch: None,
        drop_cache: None,
        x_check_cache_dropped: None,
    };
    let plain = |variant| BlockdevOptions {
        base: BlockdevBase::default(),
        variant,
    };
    let storage = match is_device {
        true => BlockdevDriverOptions::HostDevice(file.clone()),
        false => BlockdevDriverOptions::File(file.clone()),
    };
    let storage = BlockdevRef::Definition(Box::new(plain(storage)));
    Ok(plain(match driver {
        BlockdevDriver::File => BlockdevDriverOptions::File(file),
        BlockdevDriver::HostDevice => BlockdevDriverOptions::HostDevice(file),
        BlockdevDriver::Raw => BlockdevDriverOptions::Raw(RawOptions {
            file: storage,
            offset: None,
            size: None,
        }),
        BlockdevDriver::Qcow2 => {
            let described = Object::from_iter([
                ("driver".to_owned(), Value::from(driver.name())),
                ("file".to_owned(), Value::from("")),
            ]);
            let mut options: BlockdevOptions = from_object(&described, Mode::Json)?;
            if let BlockdevDriverOptions::Qcow2(qcow2) = &mut options.variant {
                qcow2.file = storage;
            }
            return Ok(options);
        }
        other => {
            let text = format!("Driver '{}' is none of a backing file", other.name());
            return Err(QmpError::generic(text));
        }
    }))
}

/// Of `json:`.
fn options(image: &str, name: &str, text: &str, format: Option<&str>) -> Result<Source, QmpError> {
    let failed =
        |what: String| QmpError::generic(format!("Could not parse the JSON options: {what}"));
    let parsed = json::parse(text).map_err(|error| failed(error.to_string()))?;
    let Value::Object(members) = parsed else {
        return Err(failed("Invalid JSON object given".to_owned()));
    };
    let mut members = expanded(members)?;
    if let Some(format) = format {
        // As with QEMU it counts more than what the name says.
        members.insert("driver".to_owned(), driver(format)?.name().into());
    }
    if !members.contains_key("driver") {
        return Err(no_format(image, name));
    }
    if let Some(Value::Object(file)) = members.get_mut("file")
        && file.contains_key("filename")
    {
        file.entry("driver").or_insert_with(|| "file".into());
    }
    let options: BlockdevOptions = from_object(&members, Mode::Json)?;
    options.check_names()?;
    Ok(Source::Options(Box::new(options)))
}

fn driver(name: &str) -> Result<BlockdevDriver, QmpError> {
    let known = serde_json::from_value(Value::from(name));
    known.map_err(|_| QmpError::generic(format!("Unknown driver '{name}'")))
}

fn no_format(image: &str, name: &str) -> QmpError {
    QmpError::generic(format!(
        "Image '{image}' does not say which format its backing file '{name}' has: say it with \
         backing={{driver=...}}, or write it into the image with qemu-img rebase -u -F FORMAT -b '{name}' '{image}'"
    ))
}

/// `{"file.filename": x}` is `{"file": {"filename": x}}`.
fn expanded(members: Object) -> Result<Object, QmpError> {
    let mut all = Object::new();
    for (key, value) in members {
        let value = match value {
            Value::Object(members) => Value::Object(expanded(members)?),
            value => value,
        };
        let mut place = &mut all;
        let mut path = key.as_str();
        while let Some((first, rest)) = path.split_once('.') {
            let below = place.entry(first).or_insert_with(|| Object::new().into());
            let Value::Object(below) = below else {
                return Err(twice(&key));
            };
            place = below;
            path = rest;
        }
        if place.insert(path.to_owned(), value).is_some() {
            return Err(twice(&key));
        }
    }
    Ok(all)
}

fn twice(key: &str) -> QmpError {
    QmpError::generic(format!(
        "Could not parse the JSON options: '{key}' is given twice"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(image: &str, name: &str, format: Option<&str>) -> Result<Value, String> {
        let led = source(image, name.as_bytes(), format);
        let options = match led.map_err(|error| error.desc)? {
            Source::Path { path, driver } => {
                let is_device = path.starts_with("/dev/");
                of_path(path, driver, is_device).map_err(|error| error.desc)?
            }
            Source::Options(options) => *options,
        };
        Ok(serde_json::to_value(&options).unwrap())
    }

    #[test]
    fn names_become_options() {
        let file = |name: &str| json!({ "driver": "file", "filename": name });
        let device = json!({ "driver": "host_device", "filename": "/dev/vg/base" });
        let raw = |file: Value| json!({ "driver": "raw", "file": file });
        for (name, format, options) in [
            ("base.raw", "raw", raw(file("/a/base.raw"))),
            ("/b/base", "raw", raw(file("/b/base"))),
            ("file:base.raw", "raw", raw(file("base.raw"))),
            ("/dev/vg/base", "raw", raw(device.clone())),
            ("/dev/vg/base", "host_device", device),
            ("base", "file", file("/a/base")),
            (
                "../mid",
                "qcow2",
                json!({ "driver": "qcow2", "file": file("/a/../mid") }),
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"file","filename":"x"}}"#,
                "raw",
                raw(file("x")),
            ),
            (r#"json:{"file.filename":"x"}"#, "raw", raw(file("x"))),
            (
                r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"json:{}"}"#,
                "raw",
                raw(file("json:{}")),
            ),
            (r#"json:{"file":"other"}"#, "raw", raw("other".into())),
        ] {
            let made = named("/a/top", name, Some(format));
            assert_eq!(made, Ok(options), "{name}");
        }
        let unsaid = r#"json:{"driver":"raw","file":"other"}"#;
        assert_eq!(named("/a/top", unsaid, None), Ok(raw("other".into())));
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        for (image, name, format, words) in [
            (
                "/a/top",
                "nbd://host/x",
                Some("raw"),
                "Unknown protocol 'nbd'",
            ),
            ("/a/top", "base", Some("vmdk"), "Unknown driver 'vmdk'"),
            (
                "/a/top",
                "base",
                Some("throttle"),
                "Driver 'throttle' is none of a backing file",
            ),
            (
                "/a/top",
                "base",
                None,
                "qemu-img rebase -u -F FORMAT -b 'base' '/a/top'",
            ),
            (
                "/a/top",
                r#"json:{"file":"x"}"#,
                None,
                "does not say which format",
            ),
            (
                "json:{}",
                "base",
                Some("raw"),
                "Cannot use relative backing file names for 'json:{}'",
            ),
            (
                "/a/top",
                "json:{bad",
                Some("raw"),
                "Could not parse the JSON options: ",
            ),
            (
                "/a/top",
                "json:[]",
                Some("raw"),
                "Could not parse the JSON options: ",
            ),
            (
                "/a/top",
                r#"json:{"file":"x","file.filename":"y"}"#,
                Some("raw"),
                "is given twice",
            ),
            (
                "/a/top",
                r#"json:{"driver":"file","filename":"x"}"#,
                Some("raw"),
                "Parameter 'file' is missing",
            ),
            (
                "/a/top",
                r#"json:{"file":"x","node-name":"1"}"#,
                Some("raw"),
                "Invalid node-name: '1'",
            ),
        ] {
            let refused = named(image, name, format).unwrap_err();
            assert!(refused.contains(words), "{name}: {refused}");
        }
        for open in ["{\"file\":", "["] {
            let bomb = format!("json:{}", open.repeat(1018 / open.len()));
            assert!(named("/a/top", &bomb, Some("raw")).is_err());
        }
        let deep = format!("json:{{\"{}\":1}}", "a.".repeat(500));
        assert!(named("/a/top", &deep, Some("raw")).is_err());
    }

    #[test]
    fn names_count_from_the_directory_of_the_image() {
        for (image, name, leads) in [
            ("top.qcow2", "base.raw", Some("base.raw")),
            ("/a/top.qcow2", "base.raw", Some("/a/base.raw")),
            ("sub/top.qcow2", "../base.raw", Some("sub/../base.raw")),
            ("/a/top.qcow2", "/b/base.raw", Some("/b/base.raw")),
            ("/a/top.qcow2", "file:base.raw", Some("file:base.raw")),
            ("/a/top.qcow2", "./x:y", Some("/a/./x:y")),
            ("/a/top.qcow2", "json:{}", Some("json:{}")),
            ("json:{}", "base.raw", None),
            ("null-co://", "base.raw", None),
            ("null-co://", "/base.raw", Some("/base.raw")),
        ] {
            assert_eq!(full(image, name).as_deref(), leads, "{image} {name}");
        }
    }
}
