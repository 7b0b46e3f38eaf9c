//! `-o`: options in qemu-img's words. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use qapi::{Size, os_text};
use qcow2::create::{CreateOptions, Preallocation, Version};
use qcow2::format::CompressionType;

use super::super::opened::Format;

/// What `-o` can say, and of which format.
const KNOWN: [(&str, bool, &str); 14] = [
    ("backing_file", false, "File name of a base image"),
    ("backing_fmt", false, "Image format of the base image"),
    ("cluster_size", false, "Bytes of a cluster: 512 to 2M (64k)"),
    (
        "compat",
        false,
        "Compatibility level: v2 (0.10) or v3 (1.1)",
    ),
    (
        "compression_type",
        false,
        "How clusters are compressed: zlib or zstd",
    ),
    ("data_file", false, "File name of an external data file"),
    (
        "data_file_raw",
        false,
        "The data file is a raw image of its own: on or off",
    ),
    ("extended_l2", false, "Subclusters: on or off"),
    (
        "lazy_refcounts",
        false,
        "Refcounts may be written late: on or off",
    ),
    ("preallocation", true, "off, metadata (qcow2), falloc, full"),
    ("refcount_bits", false, "Bits of a refcount (16)"),
    ("size", true, "Length of the disk"),
    (
        "nocow",
        true,
        "Without copy-on-write, where the file system has that: on or off",
    ),
    (
        "extent_size_hint",
        true,
        "In pieces of how many bytes the file system allocates the file (1M; 0: as it likes)",
    ),
];

/// What is asked for, in words that were understood.
#[derive(Debug)]
pub struct Wanted {
    pub format: Format,
    pub size: Option<u64>,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<PathBuf>,
    pub nocow: bool,
    pub extent_size_hint: u64,
    /// Size and backing file are not there yet.
    pub image: CreateOptions,
    compat: Option<String>,
    preallocation: Option<&'static str>,
}

/// In pieces of how many bytes a file is allocated unless something else is said, as by QEMU.
const EXTENT_SIZE_HINT_BYTES: u64 = 1 << 20;

impl Wanted {
    pub const fn new(format: Format) -> Self {
        Self {
            format,
            size: None,
            backing: None,
            backing_format: None,
            data_file: None,
            nocow: false,
            extent_size_hint: EXTENT_SIZE_HINT_BYTES,
            image: CreateOptions::new(0),
            compat: None,
            preallocation: None,
        }
    }

    /// Takes the argument of one `-o`.
    pub fn take(&mut self, text: &str) -> Result<(), String> {
        for word in split(text) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, value),
                // A flag.
                None => (word.as_str(), "on"),
            };
            self.set(name, value)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if name == "encryption" || name.starts_with("encrypt.") {
            return Err(
                "encryption is not supported: let dm-crypt encrypt the storage, or use qemu-img"
                    .to_owned(),
            );
        }
        let is_there = |(known, of_raw, _): &(&str, bool, &str)| {
            *known == name && (*of_raw || self.format == Format::Qcow2)
        };
        if !KNOWN.iter().any(is_there) {
            let format = self.format.name();
            return Err(format!(
                "Invalid parameter '{name}' ('-f {format} -o help' shows those there are)"
            ));
        }
        match name {
            "backing_file" => self.backing = Some(value.to_owned()),
            "backing_fmt" => self.backing_format = Some(value.to_owned()),
            "cluster_size" => self.image.cluster_bytes = bytes(name, value)?,
            "compat" => {
                self.image.version = match value {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(refused("compat", value)),
                };
                self.compat = Some(value.to_owned());
            }
            "compression_type" => {
                self.image.compression = match value {
                    "zlib" => CompressionType::Deflate,
                    "zstd" => CompressionType::Zstd,
                    _ => return Err(refused(name, value)),
                }
            }
            "data_file" => {
                let path = os_text::to_os(value);
                self.image.data_file = Some(path.as_bytes().to_vec());
                self.data_file = Some(PathBuf::from(path));
            }
            "data_file_raw" => self.image.data_file_raw = flag(name, value)?,
            "extended_l2" => self.image.extended_l2 = flag(name, value)?,
            "lazy_refcounts" => self.image.lazy_refcounts = flag(name, value)?,
            "preallocation" => {
                let (mode, name) = match value {
                    "off" => (Preallocation::Off, "off"),
                    "metadata" => (Preallocation::Metadata, "metadata"),
                    "falloc" => (Preallocation::Falloc, "falloc"),
                    "full" => (Preallocation::Full, "full"),
                    _ => return Err(refused(name, value)),
                };
                self.image.preallocation = mode;
                self.preallocation = Some(name);
            }
            "refcount_bits" => {
                let bits = value.parse();
                self.image.refcount_bits =
                    bits.map_err(|_| format!("Parameter '{name}' expects a number"))?;
            }
            "size" => self.set_size(bytes(name, value)?)?,
            "nocow" => self.nocow = flag(name, value)?,
            _ => self.extent_size_hint = bytes(name, value)?,
        }
        Ok(())
    }

    /// The length of the disk, which can be said once.
    pub fn set_size(&mut self, size: u64) -> Result<(), String> {
        match self.size.replace(size) {
            None => Ok(()),
            Some(_) => Err("The image size must be specified only once".to_owned()),
        }
    }

    /// What is about to be done, as qemu-img says it.
    pub fn announcement(&self, name: &str) -> String {
        let on = |set: bool| if set { "on" } else { "off" };
        let escaped = |text: &str| text.replace(',', ",,");
        let mut all = format!("Formatting '{name}', fmt={}", self.format.name());
        let mut say = |name: &str, value: &str| {
            all.push_str(&format!(" {name}={value}"));
        };
        let image = &self.image;
        let is_qcow2 = self.format == Format::Qcow2;
        if is_qcow2 {
            say("cluster_size", &image.cluster_bytes.to_string());
            say("extended_l2", on(image.extended_l2));
            if let Some(mode) = self.preallocation {
                say("preallocation", mode);
            }
            say("compression_type", image.compression.name());
        }
        say("size", &self.size.unwrap_or(0).to_string());
        if is_qcow2 {
            if let Some(compat) = &self.compat {
                say("compat", compat);
            }
            if let Some(backing) = &self.backing {
                say("backing_file", &escaped(backing));
            }
            if let Some(format) = &self.backing_format {
                say("backing_fmt", format);
            }
            if let Some(data_file) = &self.data_file {
                say("data_file", &escaped(&data_file.to_string_lossy()));
            }
            if image.data_file_raw {
                say("data_file_raw", "on");
            }
            say("lazy_refcounts", on(image.lazy_refcounts));
            say("refcount_bits", &image.refcount_bits.to_string());
        }
        if self.nocow {
            say("nocow", "on");
        }
        if let Some(mode) = self.preallocation.filter(|_| !is_qcow2) {
            say("preallocation", mode);
        }
        all
    }
}

/// What `-o help` shows.
pub fn help(format: Format) -> String {
    let mut all = format!("Supported {} options:\n", format.name());
    for (name, of_raw, about) in KNOWN {
        if of_raw || format == Format::Qcow2 {
            all.push_str(&format!("  {name:<16} - {about}\n"));
        }
    }
    all
}

/// At commas, of which two are one of the text.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == ',' && rest.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(next);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn refused(name: &str, value: &str) -> String {
    format!("Parameter '{name}' does not accept value '{value}'")
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

fn bytes(name: &str, value: &str) -> Result<u64, String> {
    let size = Size::parse(value).map(|size| size.0);
    size.ok_or_else(|| {
        format!("Parameter '{name}' expects a non-negative number below 2^64, with a suffix k, M, G, T, P or E or without one")
    })
}

/// The length of the disk, as it is said on the command line.
pub fn size(text: &str) -> Result<u64, String> {
    let Some(Size(size)) = Size::parse(text) else {
        return Err(
            "Invalid image size specified. You may use k, M, G, T, P or E suffixes for kilobytes, megabytes, \
             gigabytes, terabytes, petabytes and exabytes."
                .to_owned(),
        );
    };
    match i64::try_from(size) {
        Ok(_) => Ok(size),
        Err(_) => Err(format!(
            "Invalid image size specified. Must be between 0 and {}.",
            i64::MAX
        )),
    }
}

/// The bytes of a name.
pub fn bytes_of(name: &str) -> Vec<u8> {
    let name: OsString = os_text::to_os(name);
    name.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(format: Format, text: &str) -> Result<Wanted, String> {
        let mut wanted = Wanted::new(format);
        wanted.take(text).map(|()| wanted)
    }

    #[test]
    fn words_of_options() {
        let all = wanted(
            Format::Qcow2,
            "cluster_size=2M,compat=v2,lazy_refcounts,extended_l2=off,size=1.5G,backing_file=a,,b,backing_fmt=raw",
        )
        .unwrap();
        assert_eq!(all.image.cluster_bytes, 2 << 20);
        assert_eq!(all.image.version, Version::V2);
        assert!(all.image.lazy_refcounts);
        assert_eq!(all.size, Some(3 << 29));
        assert_eq!(all.backing.as_deref(), Some("a,b"));
        for (format, text, error) in [
            (Format::Qcow2, "x=1", "Invalid parameter 'x'"),
            (
                Format::Raw,
                "cluster_size=4k",
                "Invalid parameter 'cluster_size'",
            ),
            (
                Format::Qcow2,
                "compat=2",
                "Parameter 'compat' does not accept value '2'",
            ),
            (
                Format::Qcow2,
                "lazy_refcounts=maybe",
                "Parameter 'lazy_refcounts' expects 'on' or 'off'",
            ),
            (
                Format::Qcow2,
                "cluster_size=-1",
                "Parameter 'cluster_size' expects a non-negative",
            ),
            (
                Format::Raw,
                "size=1,size=2",
                "The image size must be specified only once",
            ),
            (
                Format::Qcow2,
                "encryption=on",
                "encryption is not supported",
            ),
            (
                Format::Qcow2,
                "encrypt.format=luks",
                "encryption is not supported",
            ),
        ] {
            let refused = wanted(format, text).unwrap_err();
            assert!(refused.starts_with(error), "{text}: {refused}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("1.5G"), Ok(3 << 29));
        assert_eq!(size("1000"), Ok(1000));
        for (text, error) in [
            ("1X", "Invalid image size specified. You may use"),
            ("", "Invalid image size specified. You may use"),
            ("9E", "Invalid image size specified. Must be between"),
        ] {
            assert!(size(text).unwrap_err().starts_with(error), "{text}");
        }
    }
}
