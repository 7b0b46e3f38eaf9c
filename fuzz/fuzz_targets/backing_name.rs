//! The backing file that an image names, which anybody may have made: a path, `file:`, or `json:` with options that are nested,
//! in words and by dots.
//!
//! The input is the name of the image, its word for the format, and the name, in lines; or the beginning of an image. What it leads to
//! can be said again as options, which mean the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qapi::backing_name::{self, Source};
use qapi::options::BlockdevOptions;
use qapi::{QmpError, os_text};
use qcow2::format::{Header, extension};
use standfast_fuzz::check_error;

/// Longest name in a header, in bytes.
const NAME_MAX: usize = 1023;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        if let Some(name) = header.backing_name.as_deref() {
            assert!(name.len() <= NAME_MAX);
            let format = header.extension(extension::BACKING_FORMAT);
            named("/images/top.qcow2", format, name);
        }
        return;
    }
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let (Some(image), Some(format), Some(name)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let Ok(image) = std::str::from_utf8(image) else {
        return;
    };
    named(image, (!format.is_empty()).then_some(format), name);
});

fn named(image: &str, format: Option<&[u8]>, name: &[u8]) {
    let format = format.map(String::from_utf8_lossy);
    match backing_name::source(image, name, format.as_deref()) {
        Err(error) => check_error(&error),
        Ok(Source::Path { path, driver }) => {
            // It leads to the same from wherever it is looked at, unless it counts from there.
            if let Some(full) = backing_name::full(image, &path).filter(|_| path.starts_with('/')) {
                assert_eq!(full, path);
            }
            let _file = os_text::to_os(&path);
            for is_device in [false, true] {
                said_again(backing_name::of_path(path.clone(), driver, is_device));
            }
        }
        Ok(Source::Options(options)) => {
            if let Some(format) = format.as_deref() {
                assert_eq!(
                    options.kind().name(),
                    format,
                    "the header's word counts more"
                );
            }
            said_again(Ok(*options));
        }
    }
}

/// Options can be written, and are read as the same.
fn said_again(options: Result<BlockdevOptions, QmpError>) {
    let mut options = match options {
        Ok(options) => options,
        Err(error) => return check_error(&error),
    };
    // A root has a name, which it is given when it is opened.
    options
        .base
        .node_name
        .get_or_insert_with(|| "backing".to_owned());
    let json = serde_json::to_string(&options).expect("options have string keys");
    let again = BlockdevOptions::parse(&json);
    assert_eq!(again.as_ref(), Ok(&options), "{json}");
}
