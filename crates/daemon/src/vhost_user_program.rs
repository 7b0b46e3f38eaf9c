//! `standfast-vhost-user-blk`: one disk, started as the vhost-user specification says that back-ends of type
//! "block" are. There is no monitor, and so nobody who could say `cont`: errors are reported to the guest.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use block::strerror;
use clap::{Arg, ArgAction, Command, ValueHint};
use qapi::os_text;

use super::cli::{self, CommandLine, Exit, Opt, Program, Step};
use super::getopt::{self, Word};

/// What it is called in its messages.
const NAME: &str = Program::VhostUserBlk.name();

const USAGE: &str = "\
standfast-vhost-user-blk (--socket-path=PATH | --fd=FDNUM) --blk-file=PATH [--read-only]
       standfast-vhost-user-blk --print-capabilities";

const CAPABILITIES: &str = "{\"type\": \"block\", \"features\": [\"read-only\", \"blk-file\"]}\n";

/// What is wanted.
#[derive(Debug, Default)]
struct Wanted {
    socket_path: Option<OsString>,
    fd: Option<OsString>,
    blk_file: Option<OsString>,
    read_only: bool,
}

/// The description of the command line: of its help, its manual page, and what completes it.
pub fn command() -> Command {
    let option = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help);
    let path = |name, help| {
        option(name, help)
            .value_name("PATH")
            .value_parser(clap::value_parser!(OsString))
            .value_hint(ValueHint::FilePath)
    };
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Serves one image to one VM over vhost-user, as the conventions for back-end programs of \
             vhost-user say.",
        )
        .override_usage(USAGE)
        .after_help(
            "Errors of the storage are reported to the guest. To hold them, use standfastd.",
        )
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(path("socket-path", "Make this socket and listen on it"))
        .arg(
            option(
                "fd",
                "Listen on the unix socket that is passed as this descriptor",
            )
            .value_name("FDNUM"),
        )
        .arg(path("blk-file", "The image: a file, or a block device"))
        .arg(option("read-only", "The guest cannot write").action(ArgAction::SetTrue))
        .arg(
            option(
                "print-capabilities",
                "Print what it can, in JSON, and end; all else is ignored then",
            )
            .action(ArgAction::SetTrue),
        )
        .arg(
            option("help", "Show this help")
                .short('h')
                .action(ArgAction::Help),
        )
}

/// What the program is to do; `args` begins with its name.
///
/// # Errors
/// What to print instead.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Exit> {
    let args: Vec<_> = args.into_iter().skip(1).collect();
    // All else is ignored then.
    if args.iter().any(|arg| arg == "--print-capabilities") {
        return Err(Exit::Print(CAPABILITIES.to_owned()));
    }
    let refuse = |text: String| Exit::Error(format!("{NAME}: {text}"));
    let mut command = command();
    let known = cli::known(&command);
    let mut wanted = Wanted::default();
    for word in getopt::scan(&known, args) {
        match word.map_err(refuse)? {
            Word::Option { name, argument, .. } => match name.as_str() {
                "blk-file" => wanted.blk_file = argument,
                "fd" => wanted.fd = argument,
                "socket-path" => wanted.socket_path = argument,
                "read-only" => wanted.read_only = true,
                "print-capabilities" => return Err(Exit::Print(CAPABILITIES.to_owned())),
                _ => return Err(Exit::Print(command.render_help().to_string())),
            },
            Word::Other(word) => {
                let word = os_text::from_os(&word);
                return Err(refuse(format!("{word}: Unexpected argument")));
            }
        }
    }
    command_line(&wanted).map_err(refuse)
}

/// A value of keyval.
fn value(text: &OsString) -> String {
    os_text::from_os(text).replace(',', ",,")
}

/// The same as a command line of the daemon.
fn command_line(wanted: &Wanted) -> Result<CommandLine, String> {
    let Some(file) = &wanted.blk_file else {
        return Err("--blk-file is missing".to_owned());
    };
    let shown = |option: &str, argument| format!("--{option} {}", os_text::from_os(argument));
    let (address, socket) = match (&wanted.socket_path, &wanted.fd) {
        (Some(path), None) => (
            format!("addr.type=unix,addr.path={}", value(path)),
            shown("socket-path", path),
        ),
        (None, Some(number)) => (
            format!("addr.type=fd,addr.str={}", value(number)),
            shown("fd", number),
        ),
        (None, None) => return Err("--socket-path or --fd is missing".to_owned()),
        (Some(_), Some(_)) => {
            return Err("--socket-path and --fd are mutually exclusive".to_owned());
        }
    };
    if let Some(path) = &wanted.socket_path
        && path.is_empty()
    {
        return Err("--socket-path is empty".to_owned());
    }
    if let Some(number) = &wanted.fd
        && number
            .to_str()
            .is_none_or(|text| text.parse::<u32>().is_err())
    {
        let number = os_text::from_os(number);
        return Err(format!(
            "--fd {number}: expected the number of a descriptor"
        ));
    }
    let kind = fs::metadata(Path::new(file)).map_err(|error| {
        let name = os_text::from_os(file);
        format!("Could not open '{name}': {}", strerror(&error))
    })?;
    let driver = match kind.file_type().is_block_device() {
        true => "host_device",
        false => "file",
    };
    let (read_only, writable) = match wanted.read_only {
        true => ("on", "off"),
        false => ("off", "on"),
    };
    // Errors name what was typed.
    let step = |opt, arg, written| Step { written, opt, arg };
    Ok(CommandLine {
        program: Program::VhostUserBlk,
        steps: vec![
            step(
                Opt::Blockdev,
                format!(
                    "{driver},node-name=disk,filename={},cache.direct=on,read-only={read_only}",
                    value(file)
                ),
                shown("blk-file", file),
            ),
            step(
                Opt::Export,
                format!(
                    "vhost-user-blk,id=disk,node-name=disk,writable={writable},werror=report,\
                     rerror=report,{address}"
                ),
                socket,
            ),
        ],
        ..CommandLine::default()
    })
}
