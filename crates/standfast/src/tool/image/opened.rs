//! An image that is looked at: which one, and why it cannot be.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use qapi::backing_name;
use qcow2::format::header::MAGIC;
use qcow2::{Image, OpenError, ReadAt};

use super::file::{ImageFile, Wanted};

/// Longest chain, as the daemon has it.
pub const CHAIN_MAX: usize = 200;

/// Exit status: it cannot be opened, or could not be looked at as a whole.
pub const EXIT_FAILED: u8 = 1;

/// Which image, and how what is found is printed.
#[derive(Clone, Debug, Args)]
pub struct ImageFileOptions {
    /// The image
    pub file: PathBuf,
    /// Its format; without it qcow2 is recognised, and all else is raw
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// How it is printed
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: Output,
    /// Look at it even if it is in use: what is shown may be wrong then
    #[arg(short = 'U', long)]
    pub force_share: bool,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Human,
    Json,
}

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
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
    /// It is behind itself.
    #[error("Backing file '{0}' creates an infinite loop.")]
    Loop(String),
    /// More are behind it than the daemon opens.
    #[error("'{0}': the backing chain is longer than {max} images", max = CHAIN_MAX)]
    TooLong(String),
    /// Raw images have no tables.
    #[error("This image format does not support checks")]
    NoCheck,
    /// Something is not stored as it is.
    #[error("File contains external, encrypted or compressed clusters.")]
    NotPlain,
    /// It cannot be made.
    #[error("{name}: {reason}")]
    Create {
        /// The image.
        name: String,
        /// Why not.
        reason: String,
    },
    /// What is asked for is nothing that can be.
    #[error("{0}")]
    Words(String),
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

/// An image that is open.
pub struct Opened {
    /// As it was given.
    pub name: String,
    pub file: ImageFile,
    pub format: Format,
    /// What its format is called.
    pub driver: &'static str,
}

impl Opened {
    pub fn new(options: &ImageFileOptions, wanted: Wanted) -> Result<Self, ImageError> {
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
        Ok(Self {
            name,
            file,
            format,
            driver: format.name(),
        })
    }

    pub fn qcow2(&self) -> Result<Image<'_>, ImageError> {
        Image::open(&self.file).map_err(|error| self.cannot_open(&error))
    }

    /// How long the disk is in bytes: whole sectors.
    pub fn length(&self) -> Result<u64, ImageError> {
        match self.format {
            Format::Qcow2 => Ok(self.qcow2()?.header.size),
            Format::Raw => {
                let length = self.file.length().map_err(|error| self.failed(error))?;
                Ok(length.next_multiple_of(512))
            }
        }
    }

    pub fn cannot_open(&self, error: &OpenError) -> ImageError {
        ImageError::Open {
            name: self.name.clone(),
            reason: error.to_string(),
        }
    }

    pub fn failed(&self, error: impl std::fmt::Display) -> ImageError {
        ImageError::Image {
            name: self.name.clone(),
            reason: error.to_string(),
        }
    }

    /// A name that the image gives: it counts from where the image is.
    pub fn beside(&self, name: &str) -> String {
        backing_name::full(&self.name, name).unwrap_or_else(|| name.to_owned())
    }
}

/// Prints it as a whole.
pub fn print(text: &str) -> Result<(), ImageError> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
