//! File systems of a known size: storage that really runs full.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::command::run;
use crate::loop_device::LoopDevice;

/// A mount point in a directory of its own. Unmounted on drop, lazily if it is busy.
#[derive(Debug)]
pub(crate) struct MountPoint {
    dir: TempDir,
}

impl MountPoint {
    pub fn new(source: &Path, kind: &str, options: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("standfast-mount-")
            .tempdir()?;
        let data = std::ffi::CString::new(options)?;
        rustix::mount::mount(
            source,
            dir.path(),
            kind,
            MountFlags::empty(),
            data.as_c_str(),
        )
        .with_context(|| {
            format!(
                "mount -t {kind} -o '{options}' {} (root is needed)",
                source.display()
            )
        })?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        let dir = self.dir.path();
        // FORCE ends a FUSE connection, for those as well who only come to it when its server, a thread
        // of this process, is gone: a process with such a thread never ends. To others it means nothing.
        let unmounted = rustix::mount::unmount(dir, UnmountFlags::FORCE)
            .or_else(|_| rustix::mount::unmount(dir, UnmountFlags::DETACH));
        if let Err(errno) = unmounted {
            // Whatever is mounted must not be emptied together with the directory.
            self.dir.disable_cleanup(true);
            eprintln!(
                "{}: cannot be unmounted: {errno}",
                self.dir.path().display()
            );
        }
    }
}

/// A tmpfs of a given size. Needs root.
#[derive(Debug)]
pub struct Tmpfs {
    mount: MountPoint,
}

impl Tmpfs {
    /// Mounts one that holds `bytes` (rounded up to whole pages by the kernel).
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn new(bytes: u64) -> Result<Self> {
        let mount = MountPoint::new(Path::new("tmpfs"), "tmpfs", &format!("size={bytes}"))?;
        Ok(Self { mount })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Changes its size, as an administrator does who extends a volume.
    ///
    /// # Errors
    /// If the kernel refuses, for one thing because more than `bytes` are in use.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let data = std::ffi::CString::new(format!("size={bytes}"))?;
        rustix::mount::mount_remount(self.path(), MountFlags::empty(), data.as_c_str())
            .with_context(|| format!("remount of {} with {bytes} bytes", self.path().display()))
    }
}

/// An ext4 file system in a loop device of a given size. Needs root.
#[derive(Debug)]
pub struct Ext4 {
    // Dropped in this order: unmount, detach, remove the image.
    mount: MountPoint,
    _device: LoopDevice,
    _dir: TempDir,
}

impl Ext4 {
    /// Makes and mounts one in an image of `bytes`, without blocks reserved for root. What is left
    /// for files is less by the file system's own structures; 4 MiB is about the smallest.
    ///
    /// # Errors
    /// If it cannot be made or mounted.
    pub fn new(bytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("standfast-ext4-")
            .tempdir()?;
        let image: PathBuf = dir.path().join("image");
        File::create(&image)?.set_len(bytes)?;
        let path = image
            .to_str()
            .context("the temporary directory's name is not UTF-8")?;
        let extended = "lazy_itable_init=0,lazy_journal_init=0";
        run(
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", "-b", "4096", "-E", extended, path],
        )?;
        let device = LoopDevice::new(&image, false)?;
        let mount = MountPoint::new(device.path(), "ext4", "")?;
        Ok(Self {
            mount,
            _device: device,
            _dir: dir,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Write};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn is_mounted(path: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = path.to_str().unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(path))
    }

    /// Writes until the file system is full; returns how much went in.
    fn fill(path: &Path) -> u64 {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        loop {
            match file.write(&[1; 65536]) {
                Ok(0) => panic!("an empty write"),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull);
                    return file.metadata().unwrap().len();
                }
            }
        }
    }

    #[test]
    fn a_tmpfs_is_full_at_its_size_and_takes_more_after_a_resize() {
        let tmpfs = Tmpfs::new(1 << 20).unwrap();
        let file = tmpfs.path().join("file");
        assert_eq!(fill(&file), 1 << 20);
        tmpfs.resize(3 << 20).unwrap();
        assert_eq!(fill(&file), 3 << 20);
        assert!(tmpfs.resize(1 << 20).is_err());
    }

    #[test]
    fn nothing_stays_mounted_after_a_panic_or_with_an_open_file() {
        let tmpfs = Tmpfs::new(1 << 20).unwrap();
        let path = tmpfs.path().to_owned();
        let open = File::create(path.join("file")).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _tmpfs = tmpfs;
            panic!("a test that fails");
        }));
        assert!(panicked.is_err());
        assert!(!is_mounted(&path));
        assert!(!path.exists());
        drop(open);
    }

    #[test]
    fn an_ext4_runs_full_and_leaves_neither_mount_nor_device() {
        let ext4 = Ext4::new(8 << 20).unwrap();
        let path = ext4.path().to_owned();
        let image = ext4._dir.path().join("image");
        assert!(is_mounted(&path));
        let filled = fill(&path.join("file"));
        assert!((1 << 20..8 << 20).contains(&filled), "{filled}");
        drop(ext4);
        assert!(!is_mounted(&path));
        assert!(!path.exists() && !image.exists());
    }
}
