//! `standfast image`: makes the file of an image, or looks at it, in qemu-img's words.

mod chain;
mod check;
mod create;
mod file;
mod info;
mod layers;
mod map;
mod opened;

use std::io;
use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use self::opened::{EXIT_FAILED, ImageError};

use self::check::CheckOptions;
use self::create::CreateOptions;
use self::file::Wanted;
use self::opened::{ImageFileOptions, Opened, print};

/// What is done with an image.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show what an image is: format, sizes, features, snapshots, bitmaps
    Info(InfoOptions),
    /// Check an image for corruptions and leaks, and repair it. Exit status: 0 nothing found, 1 it could
    /// not be checked, 2 corruptions, 3 leaks and nothing else, 63 a format that has no check
    Check(CheckOptions),
    /// Make an image
    Create(CreateOptions),
    /// Show which parts of the disk are where, in the file or in the backing files
    Map(ImageFileOptions),
}

/// Which image, and whether those behind it are shown, too.
#[derive(Debug, Args)]
pub struct InfoOptions {
    #[command(flatten)]
    image: ImageFileOptions,
    /// Show all images of the backing chain, from the top
    #[arg(long)]
    backing_chain: bool,
}

/// Does it.
///
/// # Errors
/// If the image cannot be opened or looked at.
pub fn main(command: &ImageCommand) -> Result<ExitCode, ImageError> {
    let done = match command {
        ImageCommand::Info(options) => show(options).map(|()| ExitCode::SUCCESS),
        ImageCommand::Map(options) => Opened::new(options, Wanted::Read)
            .and_then(|opened| chain::open(options, opened))
            .and_then(|chain| map::show(&chain, options.output))
            .map(|()| ExitCode::SUCCESS),
        ImageCommand::Check(options) => check::run(options),
        ImageCommand::Create(options) => create::run(options),
    };
    match done {
        // Whoever reads it has seen enough.
        Err(ImageError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        done => done,
    }
}

fn show(options: &InfoOptions) -> Result<(), ImageError> {
    let (image, output) = (&options.image, options.image.output);
    let opened = Opened::new(image, Wanted::Read)?;
    let text = match options.backing_chain {
        true => info::show_all(&chain::open(image, opened)?, output)?,
        false => info::show(&opened, output)?,
    };
    print(&text)
}
