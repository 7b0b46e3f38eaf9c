//! The command line: what qemu-storage-daemon accepts, in two passes.
//!
//! The first pass finds mistakes of syntax, `--help`, `--version`, and what concerns the process. Everything
//! else becomes a list of [`Step`]s, which the second pass executes strictly in the order given: a thing
//! must be defined before it is referred to.
//!
//! clap describes the options and writes the help; the words are taken apart by [`getopt`], because
//! that is what scripts that are written for qemu-storage-daemon count on.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, ValueHint};
use qapi::os_text;
use qapi::types::VersionTriple;

use super::getopt::{self, Known, Word};

/// What the daemon is called in its messages.
pub const PROGRAM: &str = "standfastd";

/// The version of QEMU whose monitor ours follows.
pub const QEMU_VERSION: VersionTriple = VersionTriple {
    major: 10,
    minor: 0,
    micro: 0,
};

/// An option that is executed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opt {
    /// `--object`
    Object,
    /// `--blockdev`
    Blockdev,
    /// `--export`
    Export,
    /// `--chardev`
    Chardev,
    /// `--monitor`
    Monitor,
    /// `--nbd-server`
    NbdServer,
    /// `--config`, ours
    Config,
}

/// Options that qemu-storage-daemon does not have.
const OURS: [&str; 3] = ["compat", "config", "state-dir"];

impl Opt {
    const ALL: [Self; 7] = [
        Self::Object,
        Self::Blockdev,
        Self::Export,
        Self::Chardev,
        Self::Monitor,
        Self::NbdServer,
        Self::Config,
    ];

    /// Its name without the dashes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Blockdev => "blockdev",
            Self::Export => "export",
            Self::Chardev => "chardev",
            Self::Monitor => "monitor",
            Self::NbdServer => "nbd-server",
            Self::Config => "config",
        }
    }
}

/// One option with its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub opt: Opt,
    /// Its argument: keyval or JSON. What is not UTF-8 in it is as in [`qapi::os_text`].
    pub arg: String,
    /// How it was written, for messages.
    pub written: String,
}

/// Who speaks to the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// The daemon.
    #[default]
    Daemon,
    /// The back-end program of vhost-user.
    VhostUserBlk,
}

impl Program {
    /// What it is called in its messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => PROGRAM,
            Self::VhostUserBlk => "standfast-vhost-user-blk",
        }
    }
}

/// A command line that is syntactically sound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Whose it is.
    pub program: Program,
    /// `--pidfile`; given more than once, the last counts.
    pub pidfile: Option<PathBuf>,
    /// `--state-dir`; given more than once, the last counts.
    pub state_dir: Option<PathBuf>,
    /// `--daemonize`
    pub daemonize: bool,
    /// `--compat`; given more than once, the last counts.
    pub compat: Compat,
    /// All else, in order.
    pub steps: Vec<Step>,
}

/// Whose defaults count where ours are others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// Ours.
    #[default]
    None,
    /// Those of qemu-storage-daemon: errors are reported to the guest.
    Qsd,
}

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `--help` or `--version`: print this on stdout and succeed.
    Print(String),
    /// Print this on stderr and fail.
    Error(String),
}

const EXAMPLES: &str = "\
Values are QEMU's: key=value,... with dotted keys for what is nested and ',,' for a comma, or a JSON \
object. Options are executed in the order given, so define a thing before you refer to it.

Examples:
  A disk for a VM that is held, not failed, when the storage under it is full:

    standfastd \\
      --blockdev driver=file,node-name=disk0,filename=/srv/vm/disk0.img,cache.direct=on \\
      --export type=vhost-user-blk,id=vda,node-name=disk0,writable=on,werror=stop,rerror=stop,\\
addr.type=unix,addr.path=/run/vm/vda.sock \\
      --chardev socket,id=qmp,path=/run/vm/qmp.sock,server=on,wait=off \\
      --monitor chardev=qmp \\
      --pidfile /run/vm/standfastd.pid

  The same with an iothread of its own, two queues and a limit on what may be allocated:

    standfastd \\
      --object iothread,id=io1 \\
      --blockdev driver=quota,node-name=disk0,limit=10G,file.driver=file,\\
file.filename=/srv/vm/disk0.img,file.cache.direct=on \\
      --export vhost-user-blk,id=vda,node-name=disk0,writable=on,iothread=io1,num-queues=2,\\
addr.type=unix,addr.path=/run/vm/vda.sock

  The first with QEMU truly paused while its disk is full, and resumed by 'cont' (QEMU has '-qmp \
unix:/run/vm/qemu-link.sock,server=on,wait=off' for the link alone):

    standfastd --object vmm-qemu,id=vm0,path=/run/vm/qemu-link.sock ...

  Then, with the operator's tool:

    standfast status /run/vm/qmp.sock
    standfast cont /run/vm/qmp.sock

Environment:
  STANDFAST_LOG  what is logged to stderr, e.g. 'debug' or 'warn,standfast_block=trace'; RUST_LOG is \
read if it is not set. Default: warnings and errors; where stderr is the journal of systemd, info, too.

SIGTERM, SIGINT, SIGHUP and QMP's 'quit' end the daemon in order; requests that are held then are \
neither completed nor failed. Started again with the same options, it serves them again: at once, or \
with --state-dir in the run state it was in, after 'cont'.";

fn ordered(opt: Opt, value: &'static str, help: &'static str) -> Arg {
    Arg::new(opt.name())
        .long(opt.name())
        .value_name(value)
        .help(help)
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(OsString))
        // As getopt: the next word is the argument, whatever it begins with.
        .allow_hyphen_values(true)
}

/// The description of the command line: of its help, its manual page, and what completes it.
pub fn command() -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Serves disks to virtual machines, and stands fast when the storage under them fails: \
             requests are held, not failed, and go on with 'cont'.",
        )
        .after_help(EXAMPLES)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(ordered(
            Opt::Blockdev,
            "[driver=]DRIVER,node-name=N[,...]",
            "Add a node: file, host_device, raw, qcow2 (read-only), throttle, copy-on-read, null-co, null-aio, quota, blkdebug",
        ))
        .arg(ordered(
            Opt::Export,
            "[type=]vhost-user-blk,id=ID,node-name=N[,...]",
            "Offer a node to a client. Ours beside QEMU's members: werror, rerror \
             (report|ignore|enospc|stop|auto), hold-scope (vm|device|request), how requests are counted: \
             account-failed, account-invalid, stats-intervals.0=SECONDS, and who may connect: \
             addr.mode=0660, addr.owner, addr.group",
        ))
        .arg(ordered(
            Opt::Chardev,
            "BACKEND,id=ID[,...]",
            "Add a character device for a monitor: 'socket,path=P' or 'socket,host=H,port=P' with \
             server=on,wait=off or reconnect-ms=N; stdio, pty, file, ringbuf, null. \
             '--chardev help' lists them. Ours: mode=0660, owner, group of a socket that is made",
        ))
        .arg(ordered(
            Opt::Monitor,
            "[chardev=]ID[,mode=control][,pretty=on]",
            "Run a QMP monitor on a character device",
        ))
        .arg(ordered(
            Opt::Object,
            "TYPE,id=ID[,...]",
            "Add an object: 'iothread[,poll-max-ns=NS][,thread-pool-max=N]' for exports to be put on; \
             'throttle-group[,limits.bps-total=N][...]'; a link to the VMM, \
             which pauses the VM while requests are held: 'vmm-qemu,path=QMP.sock', \
             'vmm-cloud-hypervisor,path=API.sock', 'vmm-firecracker,path=API.sock', or \
             'vmm-command,pause=ARGV,resume=ARGV[,state=ARGV]', where ARGV is a JSON list. \
             '--object help' lists the types, '--object TYPE,help' their properties",
        ))
        .arg(ordered(
            Opt::NbdServer,
            "addr.type=unix,addr.path=P",
            "Refused: there is no NBD server, exports are vhost-user-blk",
        ))
        .arg(
            ordered(
                Opt::Config,
                "FILE",
                "Execute what a TOML or JSON file lists, here: objects, blockdevs, exports, chardevs, \
                 monitors",
            )
            .value_hint(ValueHint::FilePath),
        )
        .arg(
            Arg::new("compat")
                .long("compat")
                .value_name("qsd|none")
                .value_parser(["qsd", "none"])
                .hide_possible_values(true)
                .help(
                    "With 'qsd' exports that do not say werror or rerror report errors to the guest, as \
                     qemu-storage-daemon does; without, a full disk is held (auto)",
                ),
        )
        .arg(
            Arg::new("daemonize")
                .long("daemonize")
                .help(
                    "Go to the background: the command returns when everything is set up. Standard \
                     streams are /dev/null from then on, and the working directory is /",
                )
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("pidfile")
                .long("pidfile")
                .value_name("PATH")
                .help("Write the process id to this file once everything is set up")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::FilePath)
                .allow_hyphen_values(true),
        )
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .value_name("DIR")
                .help(
                    "Keep run state, I/O status, errors and counters in this directory, for the \
                     daemon that is started next with the same options, and what is acknowledged \
                     of qcow2 images and not flushed, in case this one is killed",
                )
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .allow_hyphen_values(true),
        )
        .arg(
            Arg::new("trace")
                .long("trace")
                .short('T')
                .value_name("PATTERN")
                .help("Accepted and ignored: there are no trace events, see STANDFAST_LOG"),
        )
        .arg(
            Arg::new("help")
                .long("help")
                .short('h')
                .help("Show this help")
                .action(ArgAction::Help),
        )
        .arg(
            Arg::new("version")
                .long("version")
                .short('V')
                .help("Show the version")
                .action(ArgAction::Version),
        )
}

/// The options that there are, as getopt sees them.
pub fn known(command: &Command) -> Vec<Known> {
    let known = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long()?;
        Some(Known {
            name: name.to_owned(),
            letter: arg.get_short(),
            has_argument: arg.get_action().takes_values(),
            is_qemus: !OURS.contains(&name),
        })
    });
    let mut known: Vec<_> = known.collect();
    known.sort_by(|a, b| a.name.cmp(&b.name));
    known
}

/// The first pass. `args` begins with the program's name, which is not looked at. As in
/// qemu-storage-daemon the first mistake, `--help` or `--version` ends it.
///
/// # Errors
/// What to print instead of running.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Exit> {
    let mut command = command();
    let known = known(&command);
    let mut line = CommandLine::default();
    for word in getopt::scan(&known, args.into_iter().skip(1)) {
        let (name, argument, written) = match word.map_err(|text| refuse(&text))? {
            Word::Option {
                name,
                argument,
                written,
            } => (name, argument.unwrap_or_default(), written),
            Word::Other(word) => {
                let word = os_text::from_os(&word);
                return Err(refuse(&format!("{word}: Unexpected argument")));
            }
        };
        match name.as_str() {
            "help" => return Err(Exit::Print(command.render_help().to_string())),
            "version" => return Err(Exit::Print(version())),
            "daemonize" => line.daemonize = true,
            "pidfile" => line.pidfile = Some(argument.into()),
            // The working directory is whichever it happens to be.
            "state-dir" if argument.is_empty() => {
                return Err(refuse(
                    "--state-dir: the name of a directory is expected, and this one is empty",
                ));
            }
            "state-dir" => line.state_dir = Some(argument.into()),
            "compat" => {
                line.compat = compat(&os_text::from_os(&argument), &os_text::from_os(&written))?;
            }
            // There are no trace events.
            "trace" => {
                if matches!(argument.as_encoded_bytes(), b"help" | b"?") {
                    return Err(Exit::Print(String::new()));
                }
            }
            name => {
                if let Some(opt) = Opt::ALL.into_iter().find(|opt| opt.name() == name) {
                    let arg = os_text::from_os(&argument);
                    let written = os_text::from_os(&written);
                    line.steps.push(Step { opt, arg, written });
                }
            }
        }
    }
    Ok(line)
}

fn compat(name: &str, written: &str) -> Result<Compat, Exit> {
    match name {
        "qsd" => Ok(Compat::Qsd),
        "none" => Ok(Compat::None),
        _ => Err(refuse(&format!(
            "{written}: Parameter 'compat' does not accept value '{name}', use 'qsd' or 'none'"
        ))),
    }
}

/// The third word is the version: that is where scripts look for it.
fn version() -> String {
    let VersionTriple {
        major,
        minor,
        micro,
    } = QEMU_VERSION;
    format!(
        "{PROGRAM} version {} (speaks as qemu-storage-daemon {major}.{minor}.{micro})\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Says a mistake of syntax as getopt and QEMU do.
fn refuse(text: &str) -> Exit {
    Exit::Error(format!("{PROGRAM}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> Result<CommandLine, Exit> {
        let args = std::iter::once("standfastd").chain(args.iter().copied());
        parse(args.map(OsString::from))
    }

    #[test]
    fn clap_agrees_with_itself() {
        command().debug_assert();
    }

    #[test]
    fn steps_keep_the_order_of_the_command_line() {
        let parsed = line(&[
            "--export",
            "e1",
            "--blockdev=b1",
            "--chardev",
            "c",
            "--blockdev",
            "b2",
            "--monitor=m",
            "--export=e2",
            "--object",
            "o",
        ])
        .unwrap();
        let steps: Vec<_> = parsed
            .steps
            .iter()
            .map(|s| (s.opt.name(), &*s.arg))
            .collect();
        assert_eq!(
            steps,
            [
                ("export", "e1"),
                ("blockdev", "b1"),
                ("chardev", "c"),
                ("blockdev", "b2"),
                ("monitor", "m"),
                ("export", "e2"),
                ("object", "o"),
            ]
        );
    }

    #[test]
    fn what_concerns_the_process() {
        let parsed = line(&["--blockdev", "--export", "--pidf", "/a", "--pidfile=/b"]).unwrap();
        assert_eq!(parsed.steps.len(), 1);
        assert_eq!(parsed.steps[0].arg, "--export");
        assert_eq!(parsed.pidfile, Some(PathBuf::from("/b")));
        assert_eq!(parsed.state_dir, None);
        let parsed = line(&["--state-dir", "/s", "--state-dir=/t", "--d"]).unwrap();
        assert_eq!(parsed.state_dir, Some(PathBuf::from("/t")));
        assert!(parsed.daemonize);
        // An '=' or a comma in the value is the value's.
        let parsed = line(&["--blockdev=driver=file,filename=a=b"]).unwrap();
        assert_eq!(parsed.steps[0].arg, "driver=file,filename=a=b");
        assert_eq!(line(&[]).unwrap(), CommandLine::default());
        assert_eq!(
            line(&["-T", "x", "--tr=y"]).unwrap(),
            CommandLine::default()
        );
        assert_eq!(line(&["--trace", "help"]), Err(Exit::Print(String::new())));
        assert_eq!(line(&["--compat=qsd"]).unwrap().compat, Compat::Qsd);
        assert!(line(&["--compat=qemu"]).is_err());
    }

    #[test]
    fn mistakes_are_said_in_getopt_s_words() {
        for (args, text) in [
            (&["--frob"][..], "unrecognized option '--frob'"),
            (&["--frob=1"], "unrecognized option '--frob=1'"),
            (&["bar"], "bar: Unexpected argument"),
            (&["-"], "-: Unexpected argument"),
            (&["-x"], "invalid option -- 'x'"),
            (&["--blockdev"], "option '--blockdev' requires an argument"),
            (&["--pidfile"], "option '--pidfile' requires an argument"),
            (
                &["--state-dir", ""],
                "--state-dir: the name of a directory is expected, and this one is empty",
            ),
            (
                &["--da=1"],
                "option '--daemonize' doesn't allow an argument",
            ),
            // The first one counts, whatever the second pass would say.
            (
                &["--blockdev", "x", "--frob", "--help"],
                "unrecognized option '--frob'",
            ),
        ] {
            let expected = Exit::Error(format!("standfastd: {text}"));
            assert_eq!(line(args), Err(expected), "{args:?}");
        }
    }

    /// Scripts that find out what they have look for these (avocado-vt: names in the help, the third word of
    /// the version).
    #[test]
    fn help_and_version_are_printed() {
        for args in [
            &["--help"][..],
            &["-h"],
            &["--he"],
            &["-hx"],
            &["--blockdev=x", "--help", "--frob"],
        ] {
            let Err(Exit::Print(text)) = line(args) else {
                panic!("{args:?} prints nothing");
            };
            for word in [
                "--blockdev",
                "--export",
                "--daemonize",
                "--nbd-server",
                "--trace",
                "--state-dir",
                "werror=stop",
                "Usage: standfastd",
            ] {
                assert!(text.contains(word), "{word} is missing in\n{text}");
            }
        }
        for args in ["-V", "--version"] {
            let Err(Exit::Print(text)) = line(&[args]) else {
                panic!("{args} prints nothing");
            };
            let third = text.split_whitespace().nth(2);
            assert_eq!(third, Some(env!("CARGO_PKG_VERSION")), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }
}
