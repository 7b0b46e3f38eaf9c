//! The programs to which cases are played.

use crate::case::Peer;
use std::path::PathBuf;
use std::process::Command;

/// A program, and how it is called.
#[derive(Debug, Clone)]
pub struct Program {
    /// For people: `standfastd`, `qemu-storage-daemon 10.0.2`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Where its libraries are, if not with the system's.
    pub libraries: Option<PathBuf>,
    /// What understands the command line.
    pub kind: Kind,
}

/// What understands a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A storage daemon: as the case has it.
    StorageDaemon,
    /// QEMU, whose option for a monitor is another one, and which wants to know that there is no machine.
    Qemu,
}

impl Program {
    /// Whether it is what a case is compared with.
    pub fn is(&self, peer: Peer) -> bool {
        match peer {
            Peer::Daemon => self.kind == Kind::StorageDaemon,
            Peer::Qemu => self.kind == Kind::Qemu,
        }
    }

    /// What it calls itself: by its path, and by its name.
    pub fn names(&self) -> [String; 2] {
        let path = self.path.to_string_lossy().into_owned();
        let name = self.path.file_name().unwrap_or_default();
        [path, name.to_string_lossy().into_owned()]
    }

    /// A command that runs it with these arguments.
    pub fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        // Messages of the C library are the same everywhere then.
        command.env("LC_ALL", "C").env_remove("STANDFAST_LOG");
        command.env_remove("RUST_LOG");
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        match self.kind {
            Kind::StorageDaemon => {
                command.args(args);
            }
            Kind::Qemu => {
                command.args(["-machine", "none", "-nodefaults", "-display", "none"]);
                let mut args = args.iter();
                while let Some(arg) = args.next() {
                    if arg == "--monitor" {
                        let value = args.next().map_or("", String::as_str);
                        command.args(["-mon", &format!("{value},mode=control")]);
                    } else {
                        command.arg(arg);
                    }
                }
            }
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_gets_its_own_option_for_a_monitor() {
        let mut program = Program {
            name: "QEMU".into(),
            path: "/usr/bin/qemu".into(),
            libraries: None,
            kind: Kind::Qemu,
        };
        let args = ["--monitor", "m", "--blockdev", "b"].map(String::from);
        let words = |program: &Program| -> Vec<String> {
            let command = program.command(&args);
            let args = command.get_args().map(|arg| arg.to_string_lossy());
            args.map(|arg| arg.into_owned()).collect()
        };
        let qemu = words(&program);
        assert_eq!(qemu[5..], ["-mon", "m,mode=control", "--blockdev", "b"]);
        program.kind = Kind::StorageDaemon;
        assert_eq!(words(&program), args);
        assert_eq!(program.names(), ["/usr/bin/qemu", "qemu"]);
    }
}
