//! Links to VMMs: the VM is paused while its storage fails, and resumed afterwards.
//!
//! [`Link`] is one link. [`machine`] decides what it does next and is pure; the rest speaks to the
//! VMM: to QEMU by QMP, to Cloud Hypervisor and Firecracker by HTTP, to others by commands.

mod api;
mod cloud_hypervisor;
mod command;
mod firecracker;
mod http;
mod limits;
pub mod machine;
mod peer;
mod qemu;
mod report;
mod task;
mod time_limit;
mod vmm;

use std::path::PathBuf;

pub use limits::set_program_descriptors;
pub use task::{CLIENTS_TIME, Link};

/// What a link is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// The object's id.
    pub id: String,
    /// The VMM.
    pub peer: Peer,
}

/// How a VMM is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// QEMU, by QMP.
    Qemu {
        /// A QMP socket that nobody else uses.
        path: PathBuf,
    },
    /// Cloud Hypervisor, by its REST API.
    CloudHypervisor {
        /// The socket of `--api-socket`.
        path: PathBuf,
    },
    /// Firecracker, by its API.
    Firecracker {
        /// The socket of `--api-sock`.
        path: PathBuf,
    },
    /// Anything else, by commands. They are executed as they are, without a shell; the first
    /// element is the program.
    Command {
        /// Pauses the VM.
        pause: Vec<String>,
        /// Resumes it.
        resume: Vec<String>,
        /// Prints `running`, `paused` or `absent`.
        state: Option<Vec<String>>,
    },
}

impl Peer {
    /// Whether the VMM comes back to a restarted daemon while its VM is paused. Cloud Hypervisor does
    /// so when the VM runs again, Firecracker never.
    const fn reconnects_while_paused(&self) -> bool {
        matches!(self, Self::Qemu { .. } | Self::Command { .. })
    }

    /// The type of the object.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Qemu { .. } => "vmm-qemu",
            Self::CloudHypervisor { .. } => "vmm-cloud-hypervisor",
            Self::Firecracker { .. } => "vmm-firecracker",
            Self::Command { .. } => "vmm-command",
        }
    }
}

/// Why a link cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A command without a program.
    #[error("Object '{id}': '{option}' names no program; give a list whose first element is one")]
    NoProgram {
        /// The object.
        id: String,
        /// The option.
        option: &'static str,
    },
    /// A path that no socket can have.
    #[error(
        "Object '{id}': path '{path}' is {length} bytes long; the path of a socket has 1 to 107 bytes"
    )]
    Path {
        /// The object.
        id: String,
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// It was called outside a tokio runtime.
    #[error("Object '{0}': links need a tokio runtime")]
    NoRuntime(String),
}

/// Longest path of a Unix socket, in bytes: `sun_path` less its final zero.
const SOCKET_PATH_MAX: usize = 107;

impl LinkConfig {
    fn check(&self) -> Result<(), StartError> {
        let program = |option, argv: &[String]| match argv.first() {
            Some(program) if !program.is_empty() => Ok(()),
            _ => Err(StartError::NoProgram {
                id: self.id.clone(),
                option,
            }),
        };
        match &self.peer {
            Peer::Qemu { path } | Peer::CloudHypervisor { path } | Peer::Firecracker { path } => {
                let length = path.as_os_str().len();
                if (1..=SOCKET_PATH_MAX).contains(&length) {
                    return Ok(());
                }
                Err(StartError::Path {
                    id: self.id.clone(),
                    path: path.display().to_string(),
                    length,
                })
            }
            Peer::Command {
                pause,
                resume,
                state,
            } => {
                program("pause", pause)?;
                program("resume", resume)?;
                state.as_ref().map_or(Ok(()), |argv| program("state", argv))
            }
        }
    }
}
