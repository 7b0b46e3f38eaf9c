//! User instructions per request, counted by callgrind: the figure that no noise moves.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::client::float;
use crate::qcow2;
use crate::server::{Server, Setup, Wrapper};

/// Batches of the shorter of two runs; the longer one has twice as many, and the difference is what
/// counts, so that start and end do not.
const BATCHES: u64 = 1000;
/// Between batches the daemon falls asleep, so that it goes the same way each time, in us.
const PAUSE_US: u64 = 200;

/// Length of files and images: of an image all tables are remembered.
const FILE_BYTES: u64 = 256 << 20;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// null-co.
    Null,
    /// A file in memory, where no storage is waited for.
    File,
    /// Allocated clusters of a qcow2 image in memory.
    Qcow2,
}

impl Subject {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null-co",
            Self::File => "file",
            Self::Qcow2 => "qcow2",
        }
    }

    /// What serves it. `directory` is one in memory; what is there is the caller's to remove.
    fn setup(self, server: Server, directory: &Path) -> Result<Setup> {
        match self {
            Self::Null => Ok(Setup::new(
                server,
                "driver=null-co,node-name=disk,size=1073741824",
            )),
            Self::File => {
                let file = directory.join("image");
                File::create(&file)?.set_len(FILE_BYTES)?;
                let node = format!("driver=file,node-name=disk,filename={}", file.display());
                Ok(Setup::new(server, node))
            }
            Self::Qcow2 => {
                let file = directory.join("image.qcow2");
                qcow2::create(&file, FILE_BYTES, qcow2::ALLOCATED)?;
                Ok(Setup::new(server, qcow2::blockdev(&file, "")))
            }
        }
    }
}

/// What is counted with.
#[derive(Debug)]
pub struct Counter {
    /// `standfastd`, a release build.
    pub standfastd: PathBuf,
    /// The preloaded library of `standfast-valgrind-shim`.
    pub shim: PathBuf,
    /// Where callgrind's files go.
    pub directory: PathBuf,
}

impl Counter {
    /// Instructions per 4 KiB random read, `depth` at a time: one kick, one call.
    ///
    /// # Errors
    /// If Valgrind is not there, or the daemon does not work under it.
    pub fn count(&self, subject: Subject, server: Server, depth: u16) -> Result<f64> {
        let requests = BATCHES * u64::from(depth);
        let short = self.run(subject, server, depth, requests)?;
        let long = self.run(subject, server, depth, 2 * requests)?;
        let difference = long.checked_sub(short).with_context(|| {
            format!("{long} instructions for {requests} requests more than for {short}")
        })?;
        Ok(float(difference) / float(requests))
    }

    fn run(&self, subject: Subject, server: Server, depth: u16, requests: u64) -> Result<u64> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        let of = match subject {
            Subject::Null => String::new(),
            _ => format!("-{}", subject.name()),
        };
        let server_name = server.name().replace([' ', '(', ')'], "");
        let out = (self.directory).join(format!("callgrind.{server_name}{of}-{depth}"));
        let images = tempfile::Builder::new()
            .prefix("standfast-bench-")
            .tempdir_in("/dev/shm")?;
        let mut setup = subject.setup(server, images.path())?;
        // No busy waiting: how long it lasts is a matter of time.
        setup.more = ["--object", "iothread,id=io0,poll-max-ns=0"]
            .map(str::to_owned)
            .to_vec();
        setup.export = ",iothread=io0".to_owned();
        setup.wrapper = Some(Wrapper {
            words: vec![
                "valgrind".to_owned(),
                "--tool=callgrind".to_owned(),
                format!("--callgrind-out-file={}", out.display()),
            ],
            env: vec![("LD_PRELOAD".to_owned(), self.shim.clone())],
        });
        let running = setup.start(&self.standfastd)?;
        client(&running.socket(), depth, requests)?;
        let stderr = running.finish()?;
        collected(&stderr).with_context(|| format!("callgrind printed no count:\n{stderr}"))
    }
}

fn client(socket: &Path, depth: u16, requests: u64) -> Result<()> {
    let program = std::env::current_exe()?;
    let output = Command::new(program)
        .arg("client")
        .arg("--socket")
        .arg(socket)
        .args(["--depth", &depth.to_string()])
        .args(["--requests", &requests.to_string()])
        .args(["--pause-us", &PAUSE_US.to_string()])
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "the client failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The count in what callgrind prints at the end.
fn collected(stderr: &str) -> Option<u64> {
    let line = stderr
        .lines()
        .rev()
        .find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// Valgrind's version, as it says it.
///
/// # Errors
/// If it is not installed.
pub fn valgrind_version() -> Result<String> {
    version("valgrind")
}

/// The compiler's version, as it says it.
///
/// # Errors
/// If it is not installed.
pub fn rustc_version() -> Result<String> {
    version("rustc")
}

fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {program}; is it installed?"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_count_is_the_one() {
        let text =
            "==1== Collected : 7\n==1== \n==1== Events    : Ir\n==1== Collected : 212378839\n";
        assert_eq!(collected(text), Some(212_378_839));
        assert_eq!(collected("==1== Events    : Ir\n"), None);
    }
}
