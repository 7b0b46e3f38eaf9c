//! The external data file that an image names: from its header to where that leads. Pure.
//!
//! QEMU takes a path from the directory that it runs in, whatever the image: a tool that is called beside the image and a
//! daemon find different files then. Here both are looked for, and which one it is has to be said where they
//! differ ([`Source::Path`]).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::backing_name::{self, full, protocol};
use crate::options::BlockdevOptions;
use crate::{QmpError, os_text};

/// Where a name leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// To a file.
    Path {
        /// From the directory of the image, if that makes a difference.
        beside: Option<String>,
        /// As it is.
        here: String,
    },
    /// All is said.
    Options(Box<BlockdevOptions>),
}

/// Where `name` leads, which the image in a file called `image` names.
///
/// # Errors
/// In QEMU's words: it leads to nothing that we know.
pub fn source(image: &str, name: &[u8]) -> Result<Source, QmpError> {
    let text = os_text::from_os(OsStr::from_bytes(name));
    if text.starts_with("json:") {
        return match backing_name::source(image, name, None)? {
            backing_name::Source::Options(options) => Ok(Source::Options(options)),
            backing_name::Source::Path { path, .. } => Ok(Source::Path {
                beside: None,
                here: path,
            }),
        };
    }
    match protocol(&text) {
        None => Ok(Source::Path {
            beside: full(image, &text).filter(|beside| *beside != text),
            here: text,
        }),
        Some(protocol @ ("file" | "host_device")) => Ok(Source::Path {
            beside: None,
            here: text[protocol.len() + 1..].to_owned(),
        }),
        Some(other) => Err(QmpError::generic(format!("Unknown protocol '{other}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_one_place_or_two() {
        let path = |beside: Option<&str>, here: &str| Source::Path {
            beside: beside.map(str::to_owned),
            here: here.to_owned(),
        };
        for (image, name, leads) in [
            ("/a/disk.qcow2", "/b/data", path(None, "/b/data")),
            ("/a/disk.qcow2", "data", path(Some("/a/data"), "data")),
            ("disk.qcow2", "data", path(None, "data")),
            ("null-co://", "data", path(None, "data")),
            ("/a/disk.qcow2", "file:data", path(None, "data")),
            ("/a/disk.qcow2", "./x:y", path(Some("/a/./x:y"), "./x:y")),
        ] {
            assert_eq!(source(image, name.as_bytes()).unwrap(), leads, "{name}");
        }
        let json = br#"json:{"driver":"file","filename":"x"}"#;
        let Source::Options(options) = source("/a/disk", json).unwrap() else {
            panic!("all is said");
        };
        assert_eq!(options.kind().name(), "file");
        for wrong in ["nbd://x", "json:{", r#"json:{"filename":"x"}"#] {
            source("/a/disk", wrong.as_bytes()).unwrap_err();
        }
    }
}
