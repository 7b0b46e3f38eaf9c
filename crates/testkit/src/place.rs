//! A directory for a daemon with a disk that can run full, and what tests of programs say and wait for.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use crate::daemon::Builder;

/// For whatever is bound to happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Size of the disk of [`Place::with_disk`].
pub const DISK_BYTES: u64 = 1 << 20;
/// What the storage under it takes.
pub const LIMIT_BYTES: u64 = 512 << 10;

/// What a program has written to standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program has written to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory with everything that a daemon makes. Its methods panic where the file system fails.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory can be made"),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn name(&self, name: &str) -> String {
        let path = self.file(name).into_os_string();
        path.into_string().expect("the path is text")
    }

    /// The names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("the directory is there");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("the directory can be read").file_name())
            .map(|name| name.into_string().expect("names are text"))
            .collect();
        names.sort();
        names
    }

    /// Gives `daemon` the disk `vda` of [`DISK_BYTES`] on storage of [`LIMIT_BYTES`], `werror=stop`, a
    /// QMP socket and a pid file.
    #[must_use]
    pub fn with_disk(&self, daemon: Builder) -> Builder {
        let image = self.file("disk.img");
        if !image.exists() {
            let file = std::fs::File::create(&image).expect("an image can be made");
            file.set_len(DISK_BYTES).expect("it can be that long");
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
        daemon
            .args(["--blockdev", &blockdev, "--export", &export])
            .args(["--chardev", &chardev, "--monitor", "chardev=qmp"])
            .args(["--pidfile", &self.name("pid")])
            .socket(self.file("vda.sock"))
            .socket(self.file("qmp.sock"))
    }
}

/// Waits until `is` holds; panics if that takes longer than [`PATIENCE`].
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
