//! The command line: what qemu-storage-daemon accepts, in two passes.
//!
//! The first pass finds mistakes of syntax, `--help`, `--version` and `--pidfile`. Everything else
//! becomes a list of [`Step`]s, which the second pass executes strictly in the order given: a thing
//! must be defined before it is referred to.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, ValueHint};
use qapi::os_text;

/// What the daemon is called in its messages.
pub const PROGRAM: &str = "standfastd";

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
}

impl Opt {
    const ALL: [Self; 5] = [
        Self::Object,
        Self::Blockdev,
        Self::Export,
        Self::Chardev,
        Self::Monitor,
    ];

    /// Its name without the dashes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Blockdev => "blockdev",
            Self::Export => "export",
            Self::Chardev => "chardev",
            Self::Monitor => "monitor",
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
}

/// A command line that is syntactically sound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `--pidfile`; given more than once, the last counts.
    pub pidfile: Option<PathBuf>,
    /// `--state-dir`; given more than once, the last counts.
    pub state_dir: Option<PathBuf>,
    /// All else, in order.
    pub steps: Vec<Step>,
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
read if it is not set. Default: info and above.

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

/// The description that clap works by.
fn command() -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Serves disks to virtual machines, and stands fast when the storage under them fails: \
             requests are held, not failed, and go on with 'cont'.",
        )
        .after_help(EXAMPLES)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .arg(ordered(
            Opt::Blockdev,
            "[driver=]DRIVER,node-name=N[,...]",
            "Add a node: file, host_device, raw, throttle, null-co, null-aio, quota, blkdebug",
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
            "Add a character device for a monitor: socket,path=P,server=on,wait=off\
             [,mode=0660][,owner=U][,group=G] or stdio",
        ))
        .arg(ordered(
            Opt::Monitor,
            "[chardev=]ID[,pretty=on]",
            "Run a QMP monitor on a character device",
        ))
        .arg(ordered(
            Opt::Object,
            "TYPE,id=ID[,...]",
            "Add an object: 'iothread[,poll-max-ns=NS][,thread-pool-max=N]' for exports to be put on; \
             'throttle-group[,limits.bps-total=N][...]'; a link to the VMM, \
             which pauses the VM while requests are held: 'vmm-qemu,path=QMP.sock', \
             'vmm-cloud-hypervisor,path=API.sock', 'vmm-firecracker,path=API.sock', or \
             'vmm-command,pause=ARGV,resume=ARGV[,state=ARGV]', where ARGV is a JSON list",
        ))
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
                     daemon that is started next with the same options",
                )
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .allow_hyphen_values(true),
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

/// The first pass. `args` begins with the program's name, which is not looked at.
///
/// # Errors
/// What to print instead of running.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Exit> {
    let args = std::iter::once(PROGRAM.into()).chain(args.into_iter().skip(1));
    let mut matches = command().try_get_matches_from(args).map_err(refuse)?;
    let mut steps = Vec::new();
    for opt in Opt::ALL {
        let places: Vec<usize> = matches
            .indices_of(opt.name())
            .map(Iterator::collect)
            .unwrap_or_default();
        let values = matches.remove_many::<OsString>(opt.name());
        let values = values.into_iter().flatten();
        let steps_of = values.map(|arg| Step {
            opt,
            arg: os_text::from_os(&arg),
        });
        steps.extend(places.into_iter().zip(steps_of));
    }
    steps.sort_by_key(|(place, _)| *place);
    Ok(CommandLine {
        pidfile: matches.remove_one("pidfile"),
        state_dir: matches.remove_one("state-dir"),
        steps: steps.into_iter().map(|(_, step)| step).collect(),
    })
}

/// Says a mistake of syntax as getopt and QEMU do.
fn refuse(error: clap::Error) -> Exit {
    let culprit = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let text = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Exit::Print(error.render().to_string());
        }
        ErrorKind::UnknownArgument => {
            let word = culprit(ContextKind::InvalidArg);
            match word.strip_prefix('-') {
                Some(option) if option.starts_with('-') => {
                    format!("unrecognized option '{word}'")
                }
                Some(option) => format!("invalid option -- '{option}'"),
                None => format!("{word}: Unexpected argument"),
            }
        }
        ErrorKind::InvalidValue if culprit(ContextKind::InvalidValue).is_empty() => {
            let option = culprit(ContextKind::InvalidArg);
            let option = option.split_whitespace().next().unwrap_or_default();
            format!("option '{option}' requires an argument")
        }
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".to_owned(),
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").to_owned()
        }
    };
    Exit::Error(format!(
        "{PROGRAM}: {text}\nTry '{PROGRAM} --help' for more information."
    ))
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
    fn arguments_are_taken_as_getopt_does() {
        let parsed = line(&["--blockdev", "--export", "--pidf", "/a", "--pidfile=/b"]).unwrap();
        assert_eq!(parsed.steps.len(), 1);
        assert_eq!(parsed.steps[0].arg, "--export");
        assert_eq!(parsed.pidfile, Some(PathBuf::from("/b")));
        assert_eq!(parsed.state_dir, None);
        let parsed = line(&["--state-dir", "/s", "--state-dir=/t"]).unwrap();
        assert_eq!(parsed.state_dir, Some(PathBuf::from("/t")));
        // An '=' or a comma in the value is the value's.
        let parsed = line(&["--blockdev=driver=file,filename=a=b"]).unwrap();
        assert_eq!(parsed.steps[0].arg, "driver=file,filename=a=b");
        assert_eq!(line(&[]).unwrap(), CommandLine::default());
    }

    #[test]
    fn mistakes_are_said_in_getopt_s_words() {
        let hint = "\nTry 'standfastd --help' for more information.";
        for (args, text) in [
            (&["--frob"][..], "unrecognized option '--frob'"),
            (&["--frob=1"], "unrecognized option '--frob'"),
            (&["bar"], "bar: Unexpected argument"),
            (&["-x"], "invalid option -- 'x'"),
            (&["--blockdev"], "option '--blockdev' requires an argument"),
            (&["--pidfile"], "option '--pidfile' requires an argument"),
        ] {
            let expected = Exit::Error(format!("standfastd: {text}{hint}"));
            assert_eq!(line(args), Err(expected), "{args:?}");
        }
    }

    #[test]
    fn help_and_version_are_printed() {
        for args in ["--help", "-h", "--he"] {
            let Err(Exit::Print(text)) = line(&[args]) else {
                panic!("{args} prints nothing");
            };
            for word in [
                "--blockdev",
                "--export",
                "--state-dir",
                "werror=stop",
                "Usage: standfastd",
            ] {
                assert!(text.contains(word), "{word} is missing in\n{text}");
            }
        }
        let version = format!("standfastd {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(line(&["-V"]), Err(Exit::Print(version.clone())));
        assert_eq!(line(&["--version"]), Err(Exit::Print(version)));
    }
}
