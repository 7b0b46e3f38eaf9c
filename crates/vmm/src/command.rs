//! Any VMM, by commands.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use block::VmState;
use qapi::os_text;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command as Program};
use tokio::time::timeout;

use crate::http::excerpt;
use crate::limits;
use crate::machine::{Action, Answer, Failure};
use crate::time_limit::TIME_LIMIT;

/// Kept of what a command prints, in bytes.
const OUTPUT_BYTES_MAX: usize = 4096;
/// When a command has ended, what it left in its pipes is there; what a child of it still prints is
/// not waited for longer than this.
const AFTER_EXIT: Duration = Duration::from_millis(100);

/// The commands of one VM.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) pause: Vec<String>,
    pub(crate) resume: Vec<String>,
    pub(crate) state: Option<Vec<String>>,
}

/// What a command did.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A process group that is killed unless its leader has been reaped. Until then its number is
/// nobody else's.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that nobody is left in it.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end; keeps the beginning.
async fn collect(mut from: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut bytes = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&bytes[..read.min(room)]);
    }
}

/// Starts a program. exec(2) waits for the file system that it lies on: nobody else does.
async fn spawn(mut program: Program) -> io::Result<Child> {
    let started = tokio::task::spawn_blocking(move || program.spawn());
    match timeout(TIME_LIMIT, started).await {
        Ok(ended) => ended.map_err(io::Error::other)?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Runs a command. It and its children are dead when this returns late or is dropped.
async fn run(argv: &[String]) -> Result<Ended, String> {
    let [program, arguments @ ..] = argv else {
        return Err("names no program".to_owned());
    };
    let mut program = Program::new(os_text::to_os(program));
    program
        .args(arguments.iter().map(|word| os_text::to_os(word)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    limits::restore(&mut program);
    let mut child = spawn(program)
        .await
        .map_err(|e| format!("cannot be started: {e}"))?;
    let mut group = Group::of(&child);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let pipes = (child.stdout.take(), child.stderr.take());
    let ended = {
        let reading = async {
            if let (Some(out), Some(err)) = pipes {
                tokio::join!(collect(out, &mut stdout), collect(err, &mut stderr));
            }
        };
        tokio::pin!(reading);
        let mut read = false;
        timeout(TIME_LIMIT, async {
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status,
                    () = &mut reading, if !read => read = true,
                }
            };
            if !read {
                // A child of it that keeps the pipes open is not waited for.
                let _ = timeout(AFTER_EXIT, reading).await;
            }
            status
        })
        .await
    };
    match ended {
        Ok(Ok(status)) => {
            group.0 = None;
            Ok(Ended {
                status,
                stdout,
                stderr,
            })
        }
        Ok(Err(e)) => Err(format!("cannot be waited for: {e}")),
        Err(_) => {
            drop(group);
            // Reaps it. One that hangs in the kernel is reaped by the runtime when it has ended.
            let _ = timeout(AFTER_EXIT, child.wait()).await;
            Err(format!(
                "has not ended within {} s and was killed; see why it hangs",
                TIME_LIMIT.as_secs()
            ))
        }
    }
}

impl Commands {
    pub(crate) async fn perform(&mut self, action: Action) -> Result<Answer, Failure> {
        let (option, argv) = match action {
            Action::Pause => ("pause", &self.pause),
            Action::Resume => ("resume", &self.resume),
            Action::Query => match &self.state {
                Some(argv) => ("state", argv),
                // Nobody can say; the link believes what it has done.
                None => return Ok(Answer::default()),
            },
            Action::Reset => {
                return Err(Failure::Refused(
                    "A 'vmm-command' object has no command for a reset; reset the VM at its VMM"
                        .to_owned(),
                ));
            }
        };
        let command = excerpt(argv.join(" ").as_bytes());
        let ended = run(argv)
            .await
            .map_err(|why| Failure::Lost(format!("Command '{option}' ({command}) {why}")))?;
        if !ended.status.success() {
            let said = match excerpt(&ended.stderr) {
                empty if empty.is_empty() => excerpt(&ended.stdout),
                stderr => stderr,
            };
            let said = match said.as_str() {
                "" => "it printed nothing".to_owned(),
                said => format!("it printed: {said}"),
            };
            return Err(Failure::Refused(format!(
                "Command '{option}' ({command}) has failed ({}); {said}",
                ended.status
            )));
        }
        if action != Action::Query {
            return Ok(Answer::default());
        }
        let vm = match ended.stdout.trim_ascii() {
            b"running" => VmState::Running,
            b"paused" => VmState::Paused,
            b"absent" => VmState::Absent,
            other => {
                return Err(Failure::Lost(format!(
                    "Command '{option}' ({command}) printed '{}'; let it print 'running', 'paused' \
                     or 'absent'",
                    excerpt(other)
                )));
            }
        };
        Ok(Answer {
            vm,
            ..Answer::default()
        })
    }
}
