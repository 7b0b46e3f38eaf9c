//! How large the storage behind a path is, and how much of it is free.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, SeekFrom};
use tokio::time::timeout;

use crate::core::room::{Kind, Measure};

/// Storage that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Measures, and lets storage that hangs keep one thread for each path and no more.
#[derive(Clone, Debug, Default)]
pub struct Measurer {
    under_way: Arc<Mutex<HashSet<PathBuf>>>,
}

/// What was found, and what storage it is: a key that all disks on it have.
pub type Found = (String, Measure);

impl Measurer {
    /// Measures what `path` lies on.
    ///
    /// # Errors
    /// If the system cannot say, or does not answer.
    pub async fn measure(&self, path: &Path) -> Result<Found, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        if !self.under_way.lock().insert(path.to_owned()) {
            return Err(named(
                "its storage has not answered since it was measured before".to_owned(),
            ));
        }
        let (owned, under_way) = (path.to_owned(), Arc::clone(&self.under_way));
        let measured = tokio::task::spawn_blocking(move || {
            let found = measure(&owned);
            under_way.lock().remove(&owned);
            found
        });
        match timeout(LIMIT, measured).await {
            Ok(Ok(found)) => found.map_err(|error| named(error.to_string())),
            Ok(Err(error)) => Err(named(error.to_string())),
            Err(_) => Err(named(format!(
                "its storage has not answered within {} s",
                LIMIT.as_secs()
            ))),
        }
    }
}

fn measure(path: &Path) -> io::Result<Found> {
    let found = std::fs::metadata(path)?;
    if found.file_type().is_block_device() {
        // Without O_NONBLOCK some devices wait for a medium.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        let size = rustix::fs::seek(&device, SeekFrom::End(0))?;
        let measure = Measure {
            kind: Kind::Device,
            size,
            free: None,
            exhausted: false,
        };
        return Ok((format!("device {:x}", found.rdev()), measure));
    }
    let figures = rustix::fs::statvfs(path)?;
    let measure = Measure {
        kind: Kind::Filesystem,
        size: figures.f_blocks.saturating_mul(figures.f_frsize),
        free: Some(figures.f_bavail.saturating_mul(figures.f_frsize)),
        exhausted: false,
    };
    Ok((format!("filesystem {:x}", found.dev()), measure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_system_is_one_for_all_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::write(&file, "x").unwrap();
        let measurer = Measurer::default();
        let (key, of_dir) = measurer.measure(dir.path()).await.unwrap();
        let (other, of_file) = measurer.measure(&file).await.unwrap();
        assert_eq!((key, of_dir.size), (other, of_file.size));
        assert!(of_dir.free.is_some_and(|free| free <= of_dir.size));
        let why = measurer
            .measure(&dir.path().join("gone"))
            .await
            .unwrap_err();
        assert!(why.contains("gone: No such file"), "{why}");
        assert!(measurer.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn one_question_for_a_path_at_a_time() {
        let measurer = Measurer::default();
        measurer.under_way.lock().insert("/".into());
        let why = measurer.measure(Path::new("/")).await.unwrap_err();
        assert!(why.contains("has not answered since"), "{why}");
    }
}
