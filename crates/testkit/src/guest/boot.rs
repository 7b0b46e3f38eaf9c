//! What a guest boots.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::initramfs;
use super::kernel::Kernel;

/// The console is the log. The rest spares an emulated boot what only real machines need; with
/// `panic=0` a panic stays what it is instead of becoming one more boot. Not `nokaslr`: a kernel
/// unpacked over the code of the one before makes QEMU throw its translations away one by one, for
/// which a reboot takes three times as long as a boot.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=0 mitigations=off tsc=reliable \
                                no_timer_check cryptomgr.notests lsm=capability";

/// A kernel with what it needs. The machine has two serial ports: the console, which goes to a file, and
/// the agent's, a unix socket ([`Inside::connect`](super::Inside::connect)).
#[derive(Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its root.
    pub initramfs: PathBuf,
    /// Its command line.
    pub arguments: String,
}

impl Boot {
    /// The newest kernel there is; `dir` gets the rest.
    ///
    /// # Errors
    /// If something a guest is made of is not installed, or cannot be written.
    pub fn prepare(dir: &Path) -> Result<Self> {
        let kernel = Kernel::newest()?;
        let initramfs = dir.join("initramfs");
        initramfs::write(&initramfs, &kernel)?;
        // Found empty, rather than not at all, by an error of a guest that never printed.
        fs::write(dir.join("kernel.log"), "")?;
        Ok(Self {
            kernel: kernel.image,
            initramfs,
            arguments: KERNEL_ARGUMENTS.to_owned(),
        })
    }
}
