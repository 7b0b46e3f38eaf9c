//! A program that runs: what it prints is collected by threads, so that it never waits for us.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Said of a program that had to be killed.
pub const DOES_NOT_END: &str = "does not end";
/// How often is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(4);
/// How long an orderly end may take.
const END_MAX: Duration = Duration::from_secs(10);

/// A program that runs. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    /// Its output, for a conversation; read into the answer else.
    raw_stdout: Option<ChildStdout>,
    has_ended: bool,
}

/// What became of waiting.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// It has ended.
    Ended,
    /// What was waited for is there, and the program runs.
    Ready,
    /// Neither.
    Nothing,
}

impl Process {
    /// Starts it. A conversation may have its input and output.
    pub fn start(mut command: Command, stdin: Stdio) -> Result<Self> {
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stderr = child.stderr.take().map(collect);
        let raw_stdout = child.stdout.take();
        Ok(Self {
            child,
            stdout: None,
            stderr,
            raw_stdout,
            has_ended: false,
        })
    }

    /// Its standard input and output, for a conversation. Once.
    pub fn stdio(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.raw_stdout.take()?))
    }

    /// Collects what it prints, if that is nobody's conversation.
    pub fn collect(&mut self) {
        if let Some(stdout) = self.raw_stdout.take() {
            self.stdout = Some(collect(stdout));
        }
    }

    /// Waits until it has ended, or until something is there.
    pub fn wait(&mut self, limit: Duration, is_ready: impl Fn() -> bool) -> Result<Waited> {
        let end = Instant::now() + limit;
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(Waited::Ended);
            }
            if is_ready() {
                return Ok(Waited::Ready);
            }
            if Instant::now() > end {
                return Ok(Waited::Nothing);
            }
            thread::sleep(LOOK);
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether its end has been told already.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no process id")?, signal)?)
    }

    /// Waits for its end, and tells how that was. `{"exit": "does not end"}` after a time, and then it is killed.
    pub fn end(&mut self) -> Result<Value> {
        self.has_ended = true;
        self.collect();
        let waited = self.wait(END_MAX, || false)?;
        if waited == Waited::Nothing {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        let exit = match waited {
            Waited::Nothing => DOES_NOT_END.into(),
            _ => exit(status),
        };
        let text = |thread: &mut Option<JoinHandle<String>>| {
            let text = thread.take().and_then(|thread| thread.join().ok());
            text.unwrap_or_default()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        Ok(json!({"exit": exit, "stdout": stdout, "stderr": stderr}))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended; nobody is left to be told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exit(status: ExitStatus) -> Value {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.into(),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()).into(),
    }
}

/// Reads to the end, on a thread. A process that has gone into the background may keep it open: what
/// has come until then is lost with the thread, so such a process has to be given other outputs.
fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
