//! `standfast image`: looks at the file of an image, in qemu-img's words.

mod check;
mod file;
mod info;
mod map;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use qcow2::check::Fix;
use qcow2::format::header::MAGIC;
use qcow2::{Image, OpenError, ReadAt};

use self::file::{ImageFile, Wanted};

/// Exit status: it cannot be opened, or could not be looked at as a whole.
pub const EXIT_FAILED: u8 = 1;

/// What is done with an image.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show what an image is: format, sizes, features, snapshots, bitmaps
    Info(ImageFileOptions),
    /// Check an image for corruptions and leaks, and repair it. Exit status: 0 nothing found, 1 it could
    /// not be checked, 2 corruptions, 3 leaks and nothing else, 63 a format that has no check
    Check(CheckOptions),
    /// Show which parts of the disk are where in the file
    Map(ImageFileOptions),
}

/// Which image, and how what is found is printed.
#[derive(Debug, Args)]
pub struct ImageFileOptions {
    /// The image
    file: PathBuf,
    /// Its format; without it qcow2 is recognised, and all else is raw
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// How it is printed
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Output,
    /// Look at it even if it is in use: what is shown may be wrong then
    #[arg(short = 'U', long)]
    force_share: bool,
}

/// As [`ImageFileOptions`], and what is repaired.
#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    image: ImageFileOptions,
    /// Repair leaked clusters, or all that can be repaired without throwing data away; nobody else may use
    /// the image
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<Repair>,
    /// Print nothing but failures
    #[arg(short, long)]
    quiet: bool,
    /// MiB of memory for counting references; a cluster in use takes 6 bytes
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_memory: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Repair {
    Leaks,
    All,
}

impl From<Repair> for Fix {
    fn from(repair: Repair) -> Self {
        match repair {
            Repair::Leaks => Self::Leaks,
            Repair::All => Self::All,
        }
    }
}

/// Why an image is not looked at.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("Could not open '{name}': {reason}")]
    Open {
        /// The image.
        name: String,
        /// Why not.
        reason: String,
    },
    /// It cannot be looked at, or be repaired.
    #[error("'{name}': {reason}")]
    Image {
        /// The image.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Raw images have no tables.
    #[error("This image format does not support checks")]
    NoCheck,
    /// Something is not stored as it is.
    #[error("File contains external, encrypted or compressed clusters.")]
    NotPlain,
    /// Somebody else may write what would be repaired.
    #[error("-U and -r exclude each other: nobody else may use an image that is repaired")]
    SharedRepair,
    /// What came of it cannot be printed.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

impl ImageError {
    /// What the process says by its exit status.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::NoCheck => 63,
            _ => EXIT_FAILED,
        }
    }
}

/// Does it.
///
/// # Errors
/// If the image cannot be opened or looked at.
pub fn main(command: &ImageCommand) -> Result<ExitCode, ImageError> {
    let done = match command {
        ImageCommand::Info(options) => Opened::new(options, Wanted::Read).and_then(|opened| {
            let text = info::show(&opened, options.output)?;
            print(&text).map(|()| ExitCode::SUCCESS)
        }),
        ImageCommand::Map(options) => Opened::new(options, Wanted::Read)
            .and_then(|opened| map::show(&opened, options.output))
            .map(|()| ExitCode::SUCCESS),
        ImageCommand::Check(options) => check::run(options),
    };
    match done {
        // Whoever reads it has seen enough.
        Err(ImageError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        done => done,
    }
}

/// An image that is open.
struct Opened {
    /// As it was given.
    name: String,
    file: ImageFile,
    format: Format,
}

impl Opened {
    fn new(options: &ImageFileOptions, wanted: Wanted) -> Result<Self, ImageError> {
        let name = options.file.to_string_lossy().into_owned();
        let file =
            ImageFile::open(&options.file, wanted, options.force_share).map_err(|reason| {
                let name = name.clone();
                ImageError::Open { name, reason }
            })?;
        let format = match options.format {
            Some(format) => format,
            None => {
                let mut start = [0; MAGIC.len()];
                match file.read_at(0, &mut start) {
                    Ok(()) if start == MAGIC => Format::Qcow2,
                    _ => Format::Raw,
                }
            }
        };
        Ok(Self { name, file, format })
    }

    fn qcow2(&self) -> Result<Image<'_>, ImageError> {
        Image::open(&self.file).map_err(|error| self.cannot_open(&error))
    }

    fn cannot_open(&self, error: &OpenError) -> ImageError {
        ImageError::Open {
            name: self.name.clone(),
            reason: error.to_string(),
        }
    }

    fn failed(&self, error: impl std::fmt::Display) -> ImageError {
        ImageError::Image {
            name: self.name.clone(),
            reason: error.to_string(),
        }
    }

    /// A name that the image gives: it counts from where the image is.
    fn beside(&self, name: &str) -> String {
        let is_protocol = |(protocol, _): (&str, &str)| !protocol.contains('/');
        if name.starts_with('/') || name.split_once(':').is_some_and(is_protocol) {
            return name.to_owned();
        }
        match self.name.rsplit_once('/') {
            Some((directory, _)) => format!("{directory}/{name}"),
            None => name.to_owned(),
        }
    }
}

fn print(text: &str) -> Result<(), ImageError> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
