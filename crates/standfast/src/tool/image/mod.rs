//! `standfast image`: looks at the file of an image, in qemu-img's words.

mod check;
mod file;
mod info;
mod map;
mod opened;

use std::io;
use std::process::ExitCode;

use clap::Subcommand;

pub use self::opened::{EXIT_FAILED, ImageError};

use self::check::CheckOptions;
use self::file::Wanted;
use self::opened::{ImageFileOptions, Opened, print};

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
