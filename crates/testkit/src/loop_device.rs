//! Loop devices: a file as a block device.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::run;
use crate::place::PATIENCE;
use crate::workload::wait_until;

/// `struct loop_info64` of <linux/loop.h>, of which the limit is changed.
const INFO_BYTES: usize = 232;
const LIMIT_AT: usize = 32;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4c04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;

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

    /// The device has the first `bytes` of the file alone (whole sectors), or all of it again: 0. What is behind stays in the file.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let device = OpenOptions::new().read(true).open(&self.path)?;
        let mut info = [0_u64; INFO_BYTES / size_of::<u64>()];
        // SAFETY: the kernel writes as many bytes as `info` has.
        let got = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
        ensure!(got == 0, "{}", std::io::Error::last_os_error());
        info[LIMIT_AT / size_of::<u64>()] = bytes;
        // Whoever looks at the device leaves pages of it in the cache, and then the kernel asks to try again.
        wait_until("the limit is set", PATIENCE, || {
            // SAFETY: the kernel reads as many bytes as `info` has.
            let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, info.as_ptr()) };
            let error = std::io::Error::last_os_error();
            let again = error.raw_os_error() == Some(libc::EAGAIN);
            ensure!(set == 0 || again, "{error}");
            Ok(set == 0)
        })
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
    fn what_is_behind_a_limit_is_there_again_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        fs::write(&file, [0x33; 1 << 20]).unwrap();
        let device = LoopDevice::new(&file, true).unwrap();
        device.limit(512 << 10).unwrap();
        assert_eq!(size(device.path()), 512 << 10);
        device.limit(0).unwrap();
        let all = fs::read(device.path()).unwrap();
        assert!(all.len() == 1 << 20 && all.iter().all(|byte| *byte == 0x33));
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
