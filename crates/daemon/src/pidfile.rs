//! `--pidfile`: the process id in a file that stays locked while the daemon lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use block::strerror;
use rustix::fs::{FlockOperation, fcntl_lock};

/// Why there is no pidfile, in QEMU's words.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    /// It cannot be made.
    #[error("Could not create '{}': {}", .0.display(), strerror(.1))]
    Create(PathBuf, io::Error),
    /// Another instance lives.
    #[error(
        "Cannot lock pid file: Resource temporarily unavailable\nAnother instance holds '{}': end it, or \
         give another path",
        .0.display()
    )]
    Locked(PathBuf),
    /// It cannot be locked at all.
    #[error("Cannot lock pid file '{}': {}", .0.display(), strerror(.1))]
    Lock(PathBuf, io::Error),
    /// It cannot be written.
    #[error("Failed to write pid file '{}': {}", .0.display(), strerror(.1))]
    Write(PathBuf, io::Error),
}

/// The file, locked; dropping it removes it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    file: File,
}

impl Pidfile {
    /// Makes it, mode 0600, locks it and writes "PID\n".
    ///
    /// # Errors
    /// If another instance holds it, or the file system refuses. A file made here is removed.
    pub fn create(path: &Path) -> Result<Self, PidfileError> {
        let failed = |error| PidfileError::Create(path.to_owned(), error);
        let mut pidfile = loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                    return Err(PidfileError::Locked(path.to_owned()));
                }
                Err(errno) => return Err(PidfileError::Lock(path.to_owned(), errno.into())),
            }
            // Whoever had it may have removed it between the two: then we hold a file without a
            // name.
            if same_file(&file, path).map_err(failed)? {
                // The working directory may become another one.
                let path = std::path::absolute(path).map_err(failed)?;
                break Self { path, file };
            }
        };
        let written = pidfile
            .file
            .set_len(0)
            .and_then(|()| writeln!(pidfile.file, "{}", std::process::id()));
        written.map_err(|error| PidfileError::Write(path.to_owned(), error))?;
        Ok(pidfile)
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Somebody else's file of that name is not ours to remove.
        if matches!(same_file(&self.file, &self.path), Ok(true))
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove pid file '{}': {error}", self.path.display());
        }
    }
}

fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn holds_the_pid_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "what a former instance left").unwrap();
        let pidfile = Pidfile::create(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        drop(pidfile);
        assert!(!path.exists());
        drop(Pidfile::create(&path).unwrap());
        let pidfile = Pidfile::create(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A file that somebody has put in its place stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "other").unwrap();
        drop(pidfile);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "other");
    }

    #[test]
    fn errors_name_the_path() {
        let error = Pidfile::create(Path::new("/nonexistent/pid")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Could not create '/nonexistent/pid': No such file or directory"
        );
    }
}
