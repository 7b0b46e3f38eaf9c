//! A daemon as a process: started, watched, ended.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use crate::{engine, seccomp};

/// How often a condition is looked at while waiting for it.
const PAUSE: Duration = Duration::from_millis(5);

/// How to start a daemon.
#[derive(Debug)]
pub struct Builder {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    sockets: Vec<PathBuf>,
    timeout: Duration,
    no_io_uring: Option<i32>,
}

/// A running daemon; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    output: [Output; 2],
}

/// What a process writes to one of its streams, collected by a thread.
#[derive(Debug)]
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Output {
    fn collect(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut text = shared.lock();
                text.extend_from_slice(&buffer[..count]);
            }
        });
        Self { text, thread }
    }

    fn text(&self) -> String {
        let text = self.text.lock();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Builder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Adds a socket that [`Builder::start`] waits for. The path must be written exactly as the
    /// daemon binds it.
    #[must_use]
    pub fn socket(mut self, path: impl AsRef<Path>) -> Self {
        self.sockets.push(path.as_ref().to_owned());
        self
    }

    /// How long [`Builder::start`] waits for the sockets. A minute unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// It gets this errno for io_uring: see [`seccomp`].
    #[must_use]
    pub fn without_io_uring(mut self, errno: i32) -> Self {
        self.no_io_uring = Some(errno);
        self
    }

    /// Starts the daemon and waits until something listens on all of its sockets. Nobody connects
    /// to them for that, so that the first connection is the test's.
    ///
    /// # Errors
    /// If it cannot be started, ends early or takes too long; with what it has written to stderr.
    ///
    /// With `STANDFAST_TEST_ENGINE=threads` in the environment no `standfastd` gets an io_uring: that runs
    /// all tests on the other engine.
    pub fn start(self) -> Result<Daemon> {
        let name = self.program.display().to_string();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env("STANDFAST_LOG", "warn,standfast=info")
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let by_threads = self.program.ends_with("standfastd") && engine::is_threads();
        if let Some(errno) = self
            .no_io_uring
            .or_else(|| by_threads.then_some(libc::EPERM))
        {
            seccomp::forbid_io_uring(&mut command, errno);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("{name} cannot be started; is it built or installed?"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = stdout
            .zip(stderr)
            .context("the child's streams are piped")?;
        let output = [Output::collect(stdout), Output::collect(stderr)];
        let mut daemon = Daemon {
            name,
            child,
            output,
        };
        daemon.wait_for_sockets(&self.sockets, self.timeout)?;
        Ok(daemon)
    }
}

impl Daemon {
    /// A daemon to be started: `program` is a path, or a name to be found in `PATH`.
    #[must_use]
    pub fn builder(program: impl AsRef<Path>) -> Builder {
        Builder {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            no_io_uring: None,
            sockets: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    fn wait_for_sockets(&mut self, sockets: &[PathBuf], timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let Some(missing) = first_not_listening(sockets)? else {
                return Ok(());
            };
            let what = if let Some(status) = self.try_wait()? {
                format!("ended with {status}")
            } else if Instant::now() >= deadline {
                format!("does not listen on {} after {timeout:?}", missing.display())
            } else {
                thread::sleep(PAUSE);
                continue;
            };
            self.finish_output();
            bail!("{} {what}; its stderr:\n{}", self.name, self.stderr());
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.output[1].text()
    }

    /// What it has written to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.output[0].text()
    }

    /// Waits until stderr contains `text`.
    ///
    /// # Errors
    /// If it does not within `timeout`; with what it contains.
    pub fn wait_for_stderr(&self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.stderr().contains(text) {
            if Instant::now() >= deadline {
                bail!(
                    "no {text:?} within {timeout:?} in the stderr of {}:\n{}",
                    self.name,
                    self.stderr()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If the system cannot say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it has not ended within `timeout`; with its stderr.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                self.finish_output();
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} has not ended within {timeout:?}; its stderr:\n{}",
                    self.name,
                    self.stderr()
                );
            }
            thread::sleep(PAUSE);
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has been waited for already, or the system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not waited for, so the pid cannot belong to anybody else.
        if let Some(status) = self.try_wait()? {
            bail!(
                "{} has ended with {status}; its stderr:\n{}",
                self.name,
                self.stderr()
            );
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a child's pid is a positive i32")?;
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("{signal:?} to {} ({})", self.name, self.pid()))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it has not ended within `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .with_context(|| format!("SIGKILL to {}", self.name))?;
        self.wait(Duration::from_secs(60))
    }

    /// Lets the collecting threads read what an ended process has left in its pipes. Bounded, as a
    /// child of it may still hold them open.
    fn finish_output(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        let done = || self.output.iter().all(|output| output.thread.is_finished());
        while !done() && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "{} ({}) wrote to stderr:\n{}",
                self.name,
                self.pid(),
                self.stderr()
            );
        }
    }
}

/// The first of the sockets on which nobody listens. Looked up in /proc/net/unix: a connection just
/// to see whether it is accepted would be served as a client.
fn first_not_listening(sockets: &[PathBuf]) -> Result<Option<&Path>> {
    const ACCEPTCON: u32 = 0x1_0000;
    let table = fs::read("/proc/net/unix").context("/proc/net/unix")?;
    let table = String::from_utf8_lossy(&table);
    let listens = |path: &PathBuf| {
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_ascii_whitespace();
            let flags = fields
                .nth(3)
                .and_then(|flags| u32::from_str_radix(flags, 16).ok());
            let listening = flags.is_some_and(|flags| flags & ACCEPTCON != 0);
            listening && fields.nth(3).is_some_and(|name| Path::new(name) == path)
        })
    };
    Ok(sockets
        .iter()
        .find(|path| !listens(path))
        .map(PathBuf::as_path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn shell(script: &str) -> Builder {
        Daemon::builder("/bin/sh").args(["-c", script])
    }

    #[test]
    fn an_early_end_is_an_error_with_the_stderr() {
        let error = shell("echo out of luck >&2; exit 3")
            .socket("/nonexistent")
            .start();
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.contains("out of luck") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn a_socket_that_does_not_come_is_an_error_and_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mut timeout = Duration::from_millis(300);
        // On a busy machine the shell may not get that far.
        let pid = loop {
            let error = shell(&format!("echo $$ >{}; exec sleep 60", pid_file.display()))
                .socket(dir.path().join("socket"))
                .timeout(timeout)
                .start();
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains("does not listen"), "{error}");
            match fs::read_to_string(&pid_file) {
                Ok(pid) if pid.ends_with('\n') => break pid,
                other => assert!(timeout < Duration::from_secs(20), "{other:?}"),
            }
            timeout *= 2;
        };
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn only_a_listening_socket_counts() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = [dir.path().join("one"), dir.path().join("two")];
        let one = UnixListener::bind(&sockets[0]).unwrap();
        assert_eq!(
            first_not_listening(&sockets).unwrap(),
            Some(sockets[1].as_path())
        );
        let _two = UnixListener::bind(&sockets[1]).unwrap();
        assert_eq!(first_not_listening(&sockets).unwrap(), None);
        drop(one);
        assert_eq!(
            first_not_listening(&sockets).unwrap(),
            Some(sockets[0].as_path())
        );
    }

    #[test]
    fn signals_and_statuses() {
        let script =
            "trap 'echo bye >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.02; done";
        let mut daemon = shell(script).start().unwrap();
        daemon
            .wait_for_stderr("ready", Duration::from_secs(60))
            .unwrap();
        let status = daemon.terminate(Duration::from_secs(60)).unwrap();
        assert_eq!(status.code(), Some(7));
        assert!(daemon.stderr().contains("bye"));
        assert!(daemon.signal(Signal::TERM).is_err());

        let mut daemon = shell("exec sleep 60").start().unwrap();
        assert!(daemon.wait(Duration::from_millis(20)).is_err());
        let status = daemon.kill().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
    }
}
