//! Runs a program: no shell, a time limit, bounded output, and nothing of it left behind.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::settings::Program;

/// Kept of each of the two streams that a program writes, in bytes.
const OUTPUT_BYTES_MAX: usize = 4096;
/// When a program has ended, what it left in its pipes is there; what a child of it still prints is not
/// waited for longer than this.
const AFTER_EXIT: Duration = Duration::from_millis(100);
/// exec(2) waits for the file system that the program lies on.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What a program did.
#[derive(Debug)]
pub struct Ended {
    /// How it has ended.
    pub status: ExitStatus,
    /// What it has printed, errors first, on one line.
    pub said: String,
    /// The beginning of what it has written to its standard output.
    pub output: Vec<u8>,
}

impl Ended {
    /// In words: how it has ended, and what it said.
    pub fn words(&self) -> String {
        match self.said.as_str() {
            "" => format!("{}, it printed nothing", self.status),
            said => format!("{}, it printed: {said}", self.status),
        }
    }
}

/// A process group that is killed unless its leader has been reaped. Until then its number is nobody
/// else's.
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

/// Runs a program with `input` on its standard input. It and its children are dead when this returns an
/// error or is dropped.
///
/// # Errors
/// It could not be started, or has not ended in time.
pub async fn run(
    program: &Program,
    input: Vec<u8>,
    environment: &[(&str, String)],
) -> Result<Ended, String> {
    let [name, arguments @ ..] = program.argv.as_slice() else {
        return Err("no program is named".to_owned());
    };
    let mut command = Command::new(name);
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let started = tokio::task::spawn_blocking(move || command.spawn());
    let started = match timeout(START_LIMIT, started).await {
        Ok(ended) => ended.map_err(std::io::Error::other).and_then(|child| child),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    let mut child = started.map_err(|error| format!("{name} cannot be started: {error}"))?;
    let mut group = Group::of(&child);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ended = {
        let talking = async {
            if let (Some(mut to), Some(out), Some(err)) = pipes {
                let write = async move {
                    // It need not read it.
                    let _ = to.write_all(&input).await;
                };
                tokio::join!(write, collect(out, &mut stdout), collect(err, &mut stderr));
            }
        };
        tokio::pin!(talking);
        let mut silent = false;
        timeout(program.time_limit, async {
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status,
                    () = &mut talking, if !silent => silent = true,
                }
            };
            if !silent {
                // A child of it that keeps the pipes open is not waited for.
                let _ = timeout(AFTER_EXIT, talking).await;
            }
            status
        })
        .await
    };
    match ended {
        Ok(Ok(status)) => {
            group.0 = None;
            stderr.extend_from_slice(b" ");
            stderr.extend_from_slice(&stdout);
            Ok(Ended {
                status,
                said: one_line(&stderr),
                output: stdout,
            })
        }
        Ok(Err(error)) => Err(format!("{name} cannot be waited for: {error}")),
        Err(_) => {
            drop(group);
            // Reaps it. One that hangs in the kernel is reaped by the runtime when it has ended.
            let _ = timeout(AFTER_EXIT, child.wait()).await;
            Err(format!(
                "{name} has not ended within {} s and was killed",
                program.time_limit.as_secs_f64()
            ))
        }
    }
}

/// What was printed, for people: words on one line, the beginning of it.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
    plain
        .chars()
        .filter(|char| !char.is_control())
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str, limit: Duration) -> Program {
        Program {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            time_limit: limit,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn input_environment_and_status() {
        let program = shell("read line; echo \"$line $WHO\"; echo bad >&2; exit 3", LONG);
        let ended = run(&program, b"hello\n".to_vec(), &[("WHO", "you".to_owned())])
            .await
            .unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.said, "bad hello you");
        assert_eq!(ended.words(), "exit status: 3, it printed: bad hello you");
    }

    #[tokio::test]
    async fn whoever_does_not_read_or_prints_without_end_is_bounded() {
        let input = vec![b'x'; 1 << 20];
        let ended = run(&shell("exit 0", LONG), input, &[]).await.unwrap();
        assert!(ended.status.success());
        let endless = shell(
            "while :; do echo 0123456789; done",
            Duration::from_millis(500),
        );
        let why = run(&endless, Vec::new(), &[]).await.unwrap_err();
        assert!(
            why.contains("has not ended within 0.5 s and was killed"),
            "{why}"
        );
        let much = shell("head -c 10000000 /dev/zero | tr '\\0' y", LONG);
        let ended = run(&much, Vec::new(), &[]).await.unwrap();
        assert_eq!(ended.said.len(), 500);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let why = run(&shell(&script, Duration::from_secs(1)), Vec::new(), &[])
            .await
            .unwrap_err();
        assert!(why.contains("was killed"), "{why}");
        let pid = std::fs::read_to_string(&file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Whoever reaps it may take its time: a zombie is dead.
        let dead = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        let begin = Instant::now();
        while !dead() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{stat} lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipes_is_not_waited_for() {
        let begin = Instant::now();
        let ended = run(&shell("sleep 30 & echo done", LONG), Vec::new(), &[])
            .await
            .unwrap();
        assert_eq!(ended.said, "done");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_named() {
        let program = Program {
            argv: vec!["/nonexistent/grow".to_owned()],
            time_limit: LONG,
        };
        let why = run(&program, Vec::new(), &[]).await.unwrap_err();
        assert!(
            why.starts_with("/nonexistent/grow cannot be started: No such file"),
            "{why}"
        );
    }
}
