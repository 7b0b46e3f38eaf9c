//! `standfast image create`.

mod words;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::Node;
use clap::Args;
use drivers::file::{Medium, NewFile, Preallocation};
use drivers::{FileDriver, FileOptions};
use qapi::os_text;
use qcow2::create::{SECTOR, make_alone};

use super::chain;
use super::file::Wanted as FileWanted;
use super::opened::{Format, ImageError, ImageFileOptions, Opened, Output, print};

use self::words::Wanted;

/// What is made.
#[derive(Debug, Args)]
pub struct CreateOptions {
    /// The format: raw or qcow2
    #[arg(short, long, value_name = "FORMAT", default_value = "raw")]
    format: String,
    /// Options of the format, with commas between: "-o help" shows them
    #[arg(short, long = "options", value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The image that shows where nothing has been written; its name counts from where the new image is
    #[arg(short, long, value_name = "FILE")]
    backing: Option<OsString>,
    /// The format of that image
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not look at the backing file, and at what is behind it: it need not be there yet
    #[arg(short, long = "unsafe")]
    unsafe_backing: bool,
    /// Print nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// The new image: a file, which begins anew if it is there, or a block device
    file: Option<PathBuf>,
    /// The length of the disk, with a suffix k, M, G, T, P or E or without one; without it that of the backing file
    size: Option<String>,
}

/// Makes it.
pub fn run(options: &CreateOptions) -> Result<ExitCode, ImageError> {
    let format = match options.format.as_str() {
        "raw" => Format::Raw,
        "qcow2" => Format::Qcow2,
        other => {
            return Err(ImageError::Words(format!(
                "Unknown file format '{other}': raw and qcow2 can be made here, others by qemu-img"
            )));
        }
    };
    let texts: Vec<_> = (options.options.iter())
        .map(|word| os_text::from_os(word))
        .collect();
    if texts
        .iter()
        .any(|text| matches!(text.as_str(), "help" | "?"))
    {
        print(&words::help(format))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(path) = &options.file else {
        return Err(ImageError::Words("Expecting image file name".to_owned()));
    };
    let name = path.to_string_lossy().into_owned();
    let failed = |reason: String| ImageError::Create {
        name: name.clone(),
        reason,
    };
    let mut wanted = Wanted::new(format);
    for text in &texts {
        wanted.take(text).map_err(failed)?;
    }
    if let Some(text) = &options.size {
        let size = words::size(text).map_err(ImageError::Words)?;
        wanted.set_size(size).map_err(failed)?;
    }
    if let Some(backing) = &options.backing {
        wanted.backing = Some(os_text::from_os(backing));
    }
    if let Some(format) = &options.backing_format {
        wanted.backing_format = Some(format.clone());
    }
    prepare(&mut wanted, path, options.unsafe_backing).map_err(failed)?;
    if !options.quiet {
        print(&format!("{}\n", wanted.announcement(&name)))?;
    }
    make(&wanted, path, &name).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// What follows from what was said: the backing file, the length.
fn prepare(wanted: &mut Wanted, path: &Path, unsafe_backing: bool) -> Result<(), String> {
    if wanted.format == Format::Raw && wanted.backing.is_some() {
        return Err("Backing file not supported for file format 'raw'".to_owned());
    }
    match (&wanted.backing, &wanted.backing_format) {
        (None, Some(_)) => {
            return Err("Backing format cannot be used without backing file".to_owned());
        }
        (Some(_), None) => {
            return Err(
                "Backing file specified without backing format: say -F raw or -F qcow2".to_owned(),
            );
        }
        (Some(backing), Some(format)) if !unsafe_backing => {
            let length = length_of(backing, format, path)?;
            wanted.size.get_or_insert(length);
        }
        _ => {}
    }
    let Some(size) = wanted.size else {
        return Err("Image creation needs a size parameter".to_owned());
    };
    wanted.image.size = size.next_multiple_of(SECTOR);
    wanted.image.backing_file = wanted.backing.as_deref().map(words::bytes_of);
    wanted
        .image
        .backing_format
        .clone_from(&wanted.backing_format);
    Ok(())
}

/// The length of the disk in the image that is to be behind the one at `path`. All that is behind that has to be there, as
/// with qemu-img, and the new image is not among it.
fn length_of(backing: &str, format: &str, path: &Path) -> Result<u64, String> {
    let known = [Format::Raw, Format::Qcow2];
    let Some(format) = known.into_iter().find(|known| known.name() == format) else {
        return Err(format!(
            "Unknown backing format '{format}': say the size, and -u, and it is not looked at"
        ));
    };
    let wrong = |error: ImageError| format!("{error}\nCould not open backing image.");
    let (image, name) = (os_text::from_os(path.as_os_str()), words::bytes_of(backing));
    let found = chain::leads(&image, &name, Some(format.name()));
    let (found, _) = found.map_err(wrong)?;
    if is_same(&found, path) {
        return Err(
            "Error: Trying to create an image with the same filename as the backing file"
                .to_owned(),
        );
    }
    let options = ImageFileOptions {
        file: found,
        format: Some(format),
        output: Output::Human,
        // It may be in use: all that is written into the new image is its name.
        force_share: true,
    };
    let top = Opened::new(&options, FileWanted::Read).map_err(wrong)?;
    let chain = chain::open_behind(&options, top, path).map_err(wrong)?;
    chain.first().map_or(Ok(0), Opened::length).map_err(wrong)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let found = path.metadata().ok()?;
        Some((found.dev(), found.ino()))
    };
    id(one).is_some_and(|one| id(other) == Some(one))
}

fn make(wanted: &Wanted, path: &Path, name: &str) -> Result<(), String> {
    if wanted.format == Format::Qcow2 {
        let checked = qcow2::create::Layout::new(&wanted.image);
        checked.map_err(|error| error.to_string())?;
    }
    let is_device = |path: &Path| {
        path.metadata()
            .is_ok_and(|found| found.file_type().is_block_device())
    };
    if wanted.format == Format::Raw {
        return match is_device(path) {
            true => Err("a raw image needs no making on a device: it is one".to_owned()),
            false => new_file(
                wanted,
                path,
                name,
                wanted.image.size,
                wanted.image.preallocation,
            ),
        };
    }
    let data = wanted.data_file.as_deref();
    if data.is_some_and(|data| data == path || is_same(data, path)) {
        return Err("the image cannot be its own data file".to_owned());
    }
    let mut made = Made::default();
    let mut node = |path: &Path| {
        if is_device(path) {
            return open(path, Medium::HostDevice);
        }
        if !path.exists() {
            made.0.push(path.to_owned());
        }
        let name = path.to_string_lossy();
        new_file(wanted, path, &name, 0, Preallocation::Off)?;
        open(path, Medium::File)
    };
    let file = node(path)?;
    let data = data.map(&mut node).transpose()?;
    let going_on = Arc::new(AtomicBool::new(false));
    let image = make_alone(&file, data.as_ref(), &wanted.image, going_on);
    image.map_err(|error| error.to_string())?;
    made.0.clear();
    Ok(())
}

/// Files that were not there before: they go if nothing comes of them.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // What cannot be removed is empty.
            let _ = fs::remove_file(path);
        }
    }
}

fn new_file(
    wanted: &Wanted,
    path: &Path,
    name: &str,
    size: u64,
    preallocation: Preallocation,
) -> Result<(), String> {
    let hint = u32::try_from(wanted.extent_size_hint);
    let hint = hint.map_err(|_| "Extent size hint is too large".to_owned())?;
    let new = NewFile {
        path,
        name,
        opener: None,
        size,
        preallocation,
        nocow: wanted.nocow,
        extent_size_hint: Some(hint).filter(|hint| *hint > 0),
    };
    let made = drivers::file::create(&new, &AtomicBool::new(false));
    // Whether the file system takes the hint is its own affair.
    made.map(drop).map_err(|error| error.desc)
}

fn open(path: &Path, medium: Medium) -> Result<Arc<Node>, String> {
    let name = path.to_string_lossy();
    let options = FileOptions {
        node_name: name.as_ref().into(),
        filename: name.clone().into_owned(),
        path: Some(path.to_owned()),
        ..FileOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error: io::Error| error.to_string())?;
    let opened = runtime.block_on(FileDriver::open(medium, options));
    let driver = opened.map_err(|error| error.desc)?;
    Ok(Node::new(&name, Box::new(driver)))
}
