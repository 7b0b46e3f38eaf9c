//! The directory of one run, what is made in it, and what has to go with it.

use crate::normal::Normal;
use crate::program::Program;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// The directory of one run. When it is dropped, loop devices are detached, and whoever still runs with
/// this directory in its command line is killed: a daemon that has gone into the background, say.
#[derive(Debug)]
pub struct Place {
    /// What is removed at the end: the case's directory, and one beside it for what is ours.
    whole: TempDir,
    directory: PathBuf,
    loops: Vec<(String, String)>,
    /// What makes runs comparable.
    pub normal: Normal,
}

impl Place {
    /// An empty directory for a run of this program. Its path is short: sockets lie in it.
    pub fn new(program: &Program) -> Result<Self> {
        let whole = tempfile::Builder::new().prefix("qsd").tempdir()?;
        let directory = whole.path().join("d");
        fs::create_dir(&directory)?;
        let path = directory.to_string_lossy().into_owned();
        let names = program.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(Self {
            normal: Normal::new(&path, &names),
            whole,
            directory,
            loops: Vec::new(),
        })
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A file that the case does not see.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.whole.path().join(name)
    }

    /// A text of the case with what this run has for its placeholders.
    pub fn fill(&self, text: &str) -> String {
        let directory = self.directory.to_string_lossy();
        let text = text.replace("{dir}", &directory);
        self.loops.iter().fold(text, |text, (name, device)| {
            text.replace(&format!("{{{name}}}"), device)
        })
    }

    /// Makes a sparse file.
    pub fn file(&self, name: &str, bytes: u64) -> Result<()> {
        let file = File::create(self.path(name)).with_context(|| format!("cannot make {name}"))?;
        Ok(file.set_len(bytes)?)
    }

    /// Attaches a loop device to a file.
    pub fn attach(&mut self, name: &str, file: &str) -> Result<()> {
        let file = self.path(file);
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()?;
        if !output.status.success() {
            bail!("losetup: {}", String::from_utf8_lossy(&output.stderr));
        }
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // That of a former user stays read-only when it is detached.
        Command::new("blockdev")
            .args(["--setrw", &device])
            .status()?;
        self.normal.also(device.clone(), "{loop}");
        self.loops.push((name.to_owned(), device));
        Ok(())
    }

    /// Kills whoever has the directory in its command line, and is not in the middle of leaving.
    fn kill_all(&self) {
        let directory = self.whole.path().to_string_lossy().into_owned();
        let Ok(processes) = fs::read_dir("/proc") else {
            return;
        };
        for process in processes.flatten() {
            let name = process.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && String::from_utf8_lossy(&line).contains(&directory)
            {
                // It may have gone meanwhile, and then that is well.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill_all();
        for (_, device) in &self.loops {
            // Best effort: the test has failed or passed already.
            let _ = Command::new("blockdev").args(["--setrw", device]).status();
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}
