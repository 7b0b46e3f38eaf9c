//! A daemon of this package with a disk that can run full, and how it is asked.

#![allow(dead_code)] // Each test target uses a part.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use testkit::Daemon;
use testkit::daemon::Builder;

/// For whatever is bound to happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const DISK_BYTES: u64 = 1 << 20;
pub const LIMIT_BYTES: u64 = 512 << 10;

pub fn standfastd() -> Builder {
    Daemon::builder(env!("CARGO_BIN_EXE_standfastd")).timeout(PATIENCE)
}

/// Runs the daemon where it is bound to end by itself.
pub fn refused(args: &[&str]) -> Output {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_standfastd"));
    daemon.args(args).output().unwrap()
}

/// Runs the tool.
pub fn standfast(args: &[&str]) -> Output {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_standfast"));
    tool.args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory with everything that a daemon makes.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn name(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// The names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A daemon with the disk `vda` of [`DISK_BYTES`] on storage of [`LIMIT_BYTES`], `werror=stop`,
    /// a QMP socket and a pid file.
    pub fn daemon(&self) -> Builder {
        let image = self.file("disk.img");
        if !image.exists() {
            let file = std::fs::File::create(&image).unwrap();
            file.set_len(DISK_BYTES).unwrap();
        }
        let blockdev = format!(
            "driver=quota,node-name=disk0,limit={LIMIT_BYTES},file.driver=file,file.filename={}",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=vda,node-name=disk0,writable=on,werror=stop,addr.type=unix,\
             addr.path={}",
            self.name("vda.sock")
        );
        let chardev = format!(
            "socket,id=qmp,path={},server=on,wait=off",
            self.name("qmp.sock")
        );
        standfastd()
            .args(["--blockdev", &blockdev, "--export", &export])
            .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
            .args(["--pidfile", &self.name("pid")])
            .socket(self.file("vda.sock"))
            .socket(self.file("qmp.sock"))
    }
}

/// Waits until `is` holds.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(
            std::time::Instant::now() < deadline,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
