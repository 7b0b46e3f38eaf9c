//! Loop devices: a file as a block device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::run;

/// A loop device, detached on drop. Needs root.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a free loop device to `file`. With `direct_io` the loop driver bypasses the page
    /// cache of the backing file, so that its errors reach the request that caused them.
    ///
    /// # Errors
    /// If losetup fails.
    pub fn new(file: &Path, direct_io: bool) -> Result<Self> {
        Self::attach(
            file,
            if direct_io {
                "--direct-io=on"
            } else {
                "--direct-io=off"
            },
        )
    }

    /// The same with sectors of `bytes` bytes, and the page cache in between.
    ///
    /// # Errors
    /// If losetup fails.
    pub fn with_sectors(file: &Path, bytes: u32) -> Result<Self> {
        Self::attach(file, &format!("--sector-size={bytes}"))
    }

    fn attach(file: &Path, option: &str) -> Result<Self> {
        let file = file.to_str().context("the file's name is not UTF-8")?;
        let path = run("losetup", &["--find", "--show", option, file])?;
        ensure!(
            path.starts_with("/dev/loop"),
            "losetup printed {path:?}, expected a loop device"
        );
        Ok(Self { path: path.into() })
    }

    /// The device, such as `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many flushes of its cache have been carried out since it was made, those included by which
    /// single writes were made durable. The kernel counts them.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn flushes(&self) -> Result<u64> {
        let name = self.path.file_name().context("a path with a name")?;
        let stat = Path::new("/sys/block").join(name).join("stat");
        let stat = std::fs::read_to_string(stat)?;
        let flushes = stat.split_whitespace().nth(15);
        Ok(flushes.context("no count of flushes")?.parse()?)
    }

    /// Takes over a changed size of the backing file.
    ///
    /// # Errors
    /// If losetup fails.
    pub fn update_size(&self) -> Result<()> {
        run(
            "losetup",
            &["--set-capacity".as_ref(), self.path.as_os_str()],
        )
        .map(|_| ())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A device that is still open is detached by the kernel at its last close.
        if let Err(error) = run("losetup", &["--detach".as_ref(), self.path.as_os_str()]) {
            eprintln!("{}: {error:#}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{Seek, SeekFrom, Write};
    use std::time::{Duration, Instant};

    use super::*;

    fn size(path: &Path) -> u64 {
        File::open(path).unwrap().seek(SeekFrom::End(0)).unwrap()
    }

    #[test]
    fn writes_reach_the_file_and_the_device_is_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let device = LoopDevice::new(&file, false).unwrap();
        assert_eq!(size(device.path()), 1 << 20);

        let mut writer = OpenOptions::new().write(true).open(device.path()).unwrap();
        writer.write_all(&[0x5a; 4096]).unwrap();
        writer.sync_all().unwrap();
        drop(writer);
        assert_eq!(fs::read(&file).unwrap()[..4096], [0x5a; 4096]);

        OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        device.update_size().unwrap();
        assert_eq!(size(device.path()), 2 << 20);

        drop(device);
        // Detaching ends when udev, or whoever looked at the new device, has closed it too.
        let name = file.to_str().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !run("losetup", &["--associated", name]).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "{name} is still attached");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn direct_io_is_switched_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let device = LoopDevice::new(&file, true).unwrap();
        let listed = run("losetup", &["-nO", "DIO", device.path().to_str().unwrap()]).unwrap();
        assert_eq!(listed, "1");
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let error = LoopDevice::new(Path::new("/nonexistent/image"), false).unwrap_err();
        assert!(
            format!("{error:#}").contains("/nonexistent/image"),
            "{error:#}"
        );
    }
}
