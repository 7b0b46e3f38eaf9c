//! An image and all that is behind it, each as the one above names it.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qapi::backing_name::{self, Source};
use qapi::options::{BlockdevDriver, BlockdevDriverOptions, BlockdevOptions, Referred};
use qapi::os_text;
use qcow2::format::extension;

use super::opened::{CHAIN_MAX, Format, ImageError, ImageFileOptions, Opened};

/// The image, and those behind it.
///
/// # Errors
/// If one cannot be opened, or is behind itself.
pub fn open(options: &ImageFileOptions, top: Opened) -> Result<Vec<Opened>, ImageError> {
    walk(options, top, BTreeSet::new())
}

/// The same of an image that is to be behind a new one, in the place of what is in `new`.
///
/// # Errors
/// As [`open`]; the new one would be behind itself, or too many behind it.
pub fn open_behind(
    options: &ImageFileOptions,
    top: Opened,
    new: &Path,
) -> Result<Vec<Opened>, ImageError> {
    let there = std::fs::metadata(new).ok();
    let there = there.map(|found| (found.dev(), found.ino()));
    let chain = walk(options, top, there.into_iter().collect())?;
    match chain.len() > CHAIN_MAX {
        true => Err(ImageError::TooLong(new.display().to_string())),
        false => Ok(chain),
    }
}

/// `seen`: images that must not be in it, by device and inode.
fn walk(
    options: &ImageFileOptions,
    top: Opened,
    mut seen: BTreeSet<(u64, u64)>,
) -> Result<Vec<Opened>, ImageError> {
    let mut chain = vec![top];
    let mut path = options.file.clone();
    loop {
        let Some(last) = chain.last() else {
            return Ok(chain);
        };
        // By what it is: it may have several names.
        let is_new =
            std::fs::metadata(&path).is_ok_and(|found| seen.insert((found.dev(), found.ino())));
        if !is_new {
            return Err(ImageError::Loop(last.name.clone()));
        }
        if chain.len() > CHAIN_MAX + 1 {
            return Err(ImageError::TooLong(options.file.display().to_string()));
        }
        let Some((next, driver)) = behind(last)? else {
            return Ok(chain);
        };
        let format = match driver {
            Some(BlockdevDriver::Qcow2) => Some(Format::Qcow2),
            Some(_) => Some(Format::Raw),
            None => None,
        };
        let backing = ImageFileOptions {
            file: next.clone(),
            format,
            ..options.clone()
        };
        let mut opened = Opened::new(&backing, super::file::Wanted::Read)?;
        if let Some(driver @ (BlockdevDriver::File | BlockdevDriver::HostDevice)) = driver {
            opened.driver = driver.name();
        }
        chain.push(opened);
        path = next;
    }
}

/// The file behind an image, and what it is opened as, if that is said.
fn behind(image: &Opened) -> Result<Option<(PathBuf, Option<BlockdevDriver>)>, ImageError> {
    if image.format == Format::Raw {
        return Ok(None);
    }
    let header = image.qcow2()?.header;
    let Some(name) = header
        .backing_name
        .as_deref()
        .filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    let format = header.extension(extension::BACKING_FORMAT);
    let format = format.map(|format| String::from_utf8_lossy(format).into_owned());
    if format.is_none() && !name.starts_with(b"json:") {
        // As with any image of which nothing is said.
        let text = os_text::from_os(std::ffi::OsStr::from_bytes(name));
        let full = backing_name::full(&image.name, &text);
        let path = full.map(|full| full.strip_prefix("file:").unwrap_or(&full).to_owned());
        return Ok(path.map(|path| (os_text::to_os(&path).into(), None)));
    }
    let (path, driver) = leads(&image.name, name, format.as_deref())?;
    Ok(Some((path, Some(driver))))
}

/// The file that `name`, of the image in the file `image`, leads to, and what it is opened as; `format`: what the image
/// says of that.
///
/// # Errors
/// If it leads to no file.
pub fn leads(
    image: &str,
    name: &[u8],
    format: Option<&str>,
) -> Result<(PathBuf, BlockdevDriver), ImageError> {
    let failed = |reason: String| ImageError::Open {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    };
    let source = backing_name::source(image, name, format);
    match source.map_err(|error| failed(error.desc))? {
        Source::Path { path, driver } => Ok((os_text::to_os(&path).into(), driver)),
        Source::Options(options) => match file(&options) {
            Some(path) => Ok((path, options.kind())),
            None => Err(failed("it is no image in a file".to_owned())),
        },
    }
}

/// The file that a node is in.
fn file(options: &BlockdevOptions) -> Option<PathBuf> {
    match &options.variant {
        BlockdevDriverOptions::File(file) | BlockdevDriverOptions::HostDevice(file) => {
            Some(os_text::to_os(&file.filename).into())
        }
        BlockdevDriverOptions::Raw(raw) if raw.offset.is_some() || raw.size.is_some() => None,
        BlockdevDriverOptions::Raw(_) | BlockdevDriverOptions::Qcow2(_) => {
            match options.children().first() {
                Some((_, Referred::Definition(below))) => match &below.variant {
                    BlockdevDriverOptions::File(_) | BlockdevDriverOptions::HostDevice(_) => {
                        file(below)
                    }
                    _ => None,
                },
                _ => None,
            }
        }
        _ => None,
    }
}
