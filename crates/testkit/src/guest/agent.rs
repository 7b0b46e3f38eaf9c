//! The test's end of the port over which the guest executes commands; `agent.sh` is the other end.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// More could overrun the guest's receive buffer.
const SCRIPT_BYTES_MAX: usize = 16 << 10;
/// How much of the kernel log an error shows.
const LOG_LINES_SHOWN: usize = 30;

/// What a command in the guest has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// What it wrote to stdout and stderr.
    pub output: String,
}

/// A command in the guest. Nothing happens to it when it is dropped.
#[derive(Debug)]
pub struct Job {
    id: u64,
    script: String,
    shared: Arc<Shared>,
}

/// The port.
#[derive(Debug)]
pub(super) struct Agent {
    stream: Mutex<UnixStream>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    kernel_log: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    boots: u64,
    jobs: HashMap<u64, Progress>,
    jobs_started: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Progress {
    lines: Vec<String>,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Status(i32),
    Rebooted,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Looks at the state whenever it changes, until `look` finds what it looks for.
    fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut(&mut State) -> Option<Result<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return found.with_context(|| format!("{what}\n{}", self.log_tail()));
            }
            if state.closed {
                bail!("{what}: QEMU has ended\n{}", self.log_tail());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: not within {timeout:?}\n{}", self.log_tail());
            }
            self.changed.wait_for(&mut state, left);
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.kernel_log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
        format!("the kernel log ends with:\n{}", lines[from..].join("\n"))
    }

    fn receive(&self, input: impl Read) {
        for line in BufReader::new(input).split(b'\n') {
            let Ok(line) = line else { break };
            self.lock().line(&String::from_utf8_lossy(&line));
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl State {
    /// Takes what the guest said. What is none of its words is noise on the line of a machine that
    /// is just being reset.
    fn line(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let word = words.next().unwrap_or_default();
        if word.ends_with("boot") {
            self.boots += 1;
            for job in self.jobs.values_mut() {
                job.end.get_or_insert(End::Rebooted);
            }
            return;
        }
        let id = words.next().and_then(|id| id.parse().ok());
        let Some(job) = id.and_then(|id: u64| self.jobs.get_mut(&id)) else {
            return;
        };
        let text = words.next().unwrap_or_default();
        match word {
            "out" => job.lines.push(text.to_owned()),
            "end" => job.end = text.parse().ok().map(End::Status),
            _ => {}
        }
    }
}

impl Agent {
    pub(super) fn connect(port: &Path, kernel_log: &Path) -> Result<Self> {
        let stream = UnixStream::connect(port).context("the guest's port")?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            kernel_log: kernel_log.to_owned(),
        });
        let (input, receiver) = (stream.try_clone()?, Arc::clone(&shared));
        thread::spawn(move || receiver.receive(input));
        Ok(Self {
            stream: Mutex::new(stream),
            shared,
        })
    }

    /// How often the guest has booted.
    pub(super) fn boots(&self) -> u64 {
        self.shared.lock().boots
    }

    /// Waits until the guest has booted more than `boots` times; returns how often it has.
    pub(super) fn wait_boot(&self, boots: u64, timeout: Duration) -> Result<u64> {
        self.shared.wait("a boot of the guest", timeout, |state| {
            (state.boots > boots).then_some(Ok(state.boots))
        })
    }

    pub(super) fn spawn(&self, script: &str) -> Result<Job> {
        ensure!(
            script.len() <= SCRIPT_BYTES_MAX,
            "a script of {} bytes; {SCRIPT_BYTES_MAX} is the limit",
            script.len()
        );
        let id = {
            let mut state = self.shared.lock();
            ensure!(state.boots > 0, "the guest has not booted; wait_boot first");
            state.jobs_started += 1;
            let id = state.jobs_started;
            state.jobs.insert(id, Progress::default());
            id
        };
        let job = Job {
            id,
            script: script.to_owned(),
            shared: Arc::clone(&self.shared),
        };
        self.send(id, script).context("the guest's port")?;
        Ok(job)
    }

    fn send(&self, id: u64, script: &str) -> io::Result<()> {
        let lines: Vec<_> = script.lines().collect();
        let message = format!("{id} {}\n", lines.len());
        let message = lines
            .iter()
            .fold(message, |message, line| message + line + "\n");
        let mut stream = self.stream.lock();
        stream.write_all(message.as_bytes())
    }
}

impl Job {
    /// The lines it has written so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let state = self.shared.lock();
        let job = state.jobs.get(&self.id);
        job.map(|job| job.lines.clone()).unwrap_or_default()
    }

    /// Whether it has ended, by itself or because the guest was reset.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let state = self.shared.lock();
        state
            .jobs
            .get(&self.id)
            .is_some_and(|job| job.end.is_some())
    }

    /// Waits until it has written this line.
    ///
    /// # Errors
    /// If it has not within `timeout`, or has ended without; with the end of the kernel log.
    pub fn wait_line(&self, line: &str, timeout: Duration) -> Result<()> {
        let what = format!("line {line:?} of {:?} in the guest", self.script);
        self.shared.wait(&what, timeout, |state| {
            let job = state.jobs.get(&self.id)?;
            if job.lines.iter().any(|written| written == line) {
                return Some(Ok(()));
            }
            let written = || job.lines.join("\n");
            job.end
                .map(|end| Err(anyhow::anyhow!("it ended with {end:?}:\n{}", written())))
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it has not ended within `timeout`, or the guest was reset; with the end of the kernel log.
    pub fn wait(&self, timeout: Duration) -> Result<Output> {
        let what = format!("end of {:?} in the guest", self.script);
        self.shared.wait(&what, timeout, |state| {
            let job = state.jobs.get(&self.id)?;
            let output = job.lines.join("\n");
            match job.end? {
                End::Status(status) => Some(Ok(Output { status, output })),
                End::Rebooted => Some(Err(anyhow::anyhow!(
                    "the guest was reset; so far:\n{output}"
                ))),
            }
        })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.shared.lock().jobs.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const SOON: Duration = Duration::from_millis(30);
    const LATE: Duration = Duration::from_secs(10);

    fn port() -> (Agent, BufReader<UnixStream>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("port")).unwrap();
        fs::write(dir.path().join("log"), "[ 1.0] the last words\r\n").unwrap();
        let agent = Agent::connect(&dir.path().join("port"), &dir.path().join("log")).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (agent, BufReader::new(stream), dir)
    }

    fn say(guest: &BufReader<UnixStream>, text: &str) {
        guest.get_ref().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn jobs_run_side_by_side_and_end_with_a_status() {
        let (agent, mut guest, _dir) = port();
        assert!(agent.spawn("too early").is_err());
        say(&guest, "\u{fffd}boot\n");
        assert_eq!(agent.wait_boot(0, LATE).unwrap(), 1);
        let one = agent.spawn("ls\nfalse").unwrap();
        let two = agent.spawn("true").unwrap();
        let mut received = String::new();
        for _ in 0..5 {
            guest.read_line(&mut received).unwrap();
        }
        assert_eq!(received, "1 2\nls\nfalse\n2 1\ntrue\n");

        say(&guest, "out 1 a  b\nnoise\nout 2 x\nout 1 \nend 2 0\n");
        assert_eq!(
            two.wait(LATE).unwrap(),
            Output {
                status: 0,
                output: "x".into()
            }
        );
        one.wait_line("a  b", LATE).unwrap();
        let error = format!("{:#}", one.wait(SOON).unwrap_err());
        assert!(
            error.contains("not within") && error.contains("the last words"),
            "{error}"
        );
        assert!(!one.has_ended());
        say(&guest, "end 1 127\n");
        assert_eq!(
            one.wait(LATE).unwrap(),
            Output {
                status: 127,
                output: "a  b\n".into()
            }
        );
        assert!(one.has_ended());
        assert!(one.wait_line("never", LATE).is_err());
    }

    #[test]
    fn a_reset_ends_jobs_and_so_does_the_end_of_qemu() {
        let (agent, guest, _dir) = port();
        say(&guest, "boot\n");
        agent.wait_boot(0, LATE).unwrap();
        let job = agent.spawn("sleep 100").unwrap();
        say(&guest, "boot\n");
        let error = format!("{:#}", job.wait(LATE).unwrap_err());
        assert!(error.contains("was reset"), "{error}");
        agent.wait_boot(1, LATE).unwrap();
        let job = agent.spawn("sleep 100").unwrap();
        drop(guest);
        let error = format!("{:#}", job.wait(LATE).unwrap_err());
        assert!(error.contains("QEMU has ended"), "{error}");
    }

    #[test]
    fn a_script_that_the_port_cannot_take_is_refused() {
        let (agent, guest, _dir) = port();
        say(&guest, "boot\n");
        agent.wait_boot(0, LATE).unwrap();
        assert!(agent.spawn(&"x".repeat(SCRIPT_BYTES_MAX + 1)).is_err());
    }
}
