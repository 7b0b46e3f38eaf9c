//! The operator's tool: its command line.

mod arguments;
pub mod client;
pub mod events;
mod failure;
mod image;
mod shown;
pub mod size;
mod status;
mod table;
pub mod time;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use qapi::{Object, os_text};

use self::client::Client;
use self::failure::{EXIT_USAGE, Failure};

const EXAMPLES: &str = "\
Examples:
  standfast demo                             see what it is about, in a minute
  standfast status /run/vm/qmp.sock          how the disks are
  standfast cont /run/vm/qmp.sock            retry what is held
  standfast events /run/vm/qmp.sock          follow what happens
  standfast qmp /run/vm/qmp.sock x-quota-set node-name=disk0 limit=20G
  standfast watch --config watch.toml        make room when it is needed, and continue machines
  standfast history                          what it has done
  standfast image create -f qcow2 a.qcow2 20G    make an image
  standfast image check disk.qcow2           whether an image is as it should be

SOCKET is that of the daemon's monitor: --chardev socket,id=qmp,path=SOCKET,server=on,wait=off \
--monitor chardev=qmp

Exit status: 0 success; 1 the daemon refused, the demo failed, or a machine is left as it is; 2 usage; \
3 no daemon, watcher or journal there. That of image is qemu-img's: 1 for all that fails; check: see there.";

/// Shows and steers a Standfast daemon.
#[derive(Debug, Parser)]
#[command(name = "standfast", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fill a disk's storage under a (simulated) VM: nothing is lost. Needs neither root nor a VM
    Demo(crate::demo::Options),
    /// Show the run state and every disk: I/O status, held requests, policy
    Status {
        /// The daemon's QMP socket
        socket: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on: reset every I/O status, retry what is held, resume the VM that the daemon's link has
    /// paused
    Cont {
        /// The daemon's QMP socket
        socket: PathBuf,
        /// Resume the VM even if somebody else has paused it
        #[arg(long)]
        force: bool,
    },
    /// Stop: no request is started any more
    Stop {
        /// The daemon's QMP socket
        socket: PathBuf,
    },
    /// Follow what happens, one line each, until the daemon ends
    Events {
        /// The daemon's QMP socket
        socket: PathBuf,
        /// Print the events as they come, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Execute any QMP command and print its result
    Qmp {
        /// The daemon's QMP socket
        socket: PathBuf,
        /// The command, e.g. query-block
        command: String,
        /// Its arguments: one JSON object, or key=value ... (64M is a size in bytes, "64M" a text)
        #[arg(value_name = "ARGS")]
        arguments: Vec<OsString>,
    },
    /// Make room when storage is full, and continue machines: those of Standfast and of QEMU
    Watch(watch::Watch),
    /// Print what the watcher has done
    History(watch::ShowHistory),
    /// Make the file of an image, raw or qcow2, look at it, check and repair it
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// The daemon of the demo: the same program, which ends with its parent
    #[command(name = crate::demo::DAEMON_COMMAND, hide = true, disable_help_flag = true)]
    DemoDaemon {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// The description of the command line: of its help, its manual pages, and what completes it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the tool; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    // There 2 means that an image is corrupt.
    let usage = match args.get(1).is_some_and(|command| command == "image") {
        true => image::EXIT_FAILED,
        false => EXIT_USAGE,
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nowhere to print to: the exit status says it.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(usage),
                false => ExitCode::SUCCESS,
            };
        }
    };
    let result = match cli.command {
        Command::Demo(options) => return crate::demo::main(options),
        Command::Watch(options) => match watch::main(options) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(failure) => Err(failure),
        },
        Command::History(show) => watch::history(&show),
        Command::Image(command) => match image::main(&command) {
            Ok(status) => return status,
            Err(error) => Err(Failure::Image(error)),
        },
        Command::DemoDaemon { arguments } => return crate::demo::daemon_main(arguments),
        Command::Status { socket, json } => status::show(&socket, json),
        Command::Cont { socket, force } => {
            let force = force.then(|| ("x-force".to_owned(), true.into()));
            plain(&socket, "cont", force.into_iter().collect())
        }
        Command::Stop { socket } => plain(&socket, "stop", Object::new()),
        Command::Events { socket, json } => events::follow(&socket, json),
        Command::Qmp {
            socket,
            command,
            arguments,
        } => qmp(&socket, &command, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nowhere to print to: the exit status says it.
            let _ = writeln!(
                io::stderr(),
                "standfast: {}",
                shown::error(&failure.to_string())
            );
            ExitCode::from(failure.exit_status())
        }
    }
}

fn plain(socket: &Path, command: &str, arguments: Object) -> Result<(), Failure> {
    Client::connect(socket)?.execute(command, arguments)?;
    Ok(())
}

fn qmp(socket: &Path, command: &str, arguments: &[OsString]) -> Result<(), Failure> {
    let words: Vec<_> = (arguments.iter())
        .map(|word| os_text::from_os(word))
        .collect();
    let arguments = arguments::parse(&words).map_err(Failure::Arguments)?;
    let value = Client::connect(socket)?.execute(command, arguments)?;
    match writeln!(io::stdout(), "{value:#}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_agrees_with_itself() {
        command().debug_assert();
    }
}
