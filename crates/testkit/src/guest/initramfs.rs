//! The guest's root: busybox, the modules of its disks and a few scripts, in memory.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::command::run;

const BUSYBOX: &str = "/usr/bin/busybox";
/// Where older releases of Debian have it.
const BUSYBOX_OLD: &str = "/bin/busybox";
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
const DIRECTORIES: [&str; 8] = ["bin", "dev", "mnt", "modules", "proc", "run", "sys", "tmp"];
const INIT: (&str, &str) = ("init", include_str!("init.sh"));
const SCRIPTS: [(&str, &str); 3] = [
    ("bin/agent", include_str!("agent.sh")),
    ("bin/stamps", include_str!("stamps.sh")),
    ("bin/files", include_str!("files.sh")),
];

/// What every root has: where it lies, and what it is.
pub(super) fn scripts() -> &'static [(&'static str, &'static str)] {
    &SCRIPTS
}

/// The whole user space.
#[derive(Debug)]
pub(super) struct Busybox {
    /// The program.
    pub(super) program: Vec<u8>,
    applets: String,
}

impl Busybox {
    /// The one that is installed.
    pub(super) fn find() -> Result<Self> {
        let path = if Path::new(BUSYBOX).exists() {
            BUSYBOX
        } else {
            BUSYBOX_OLD
        };
        let program = fs::read(path)
            .with_context(|| format!("{path}; the guest needs the package busybox-static"))?;
        let applets = run(path, &["--list"])?;
        Ok(Self { program, applets })
    }

    /// The names by which it is called.
    pub(super) fn applets(&self) -> impl Iterator<Item = &str> {
        self.applets.lines().filter(|&applet| applet != "busybox")
    }
}

/// Writes the archive. It takes some milliseconds, less than a cache of it would be worth.
pub(super) fn write(path: &Path, kernel: &Kernel) -> Result<()> {
    let busybox = Busybox::find()?;
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it as init's standard streams before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.executable("bin/busybox", &busybox.program)?;
    for applet in busybox.applets() {
        archive.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    for (path, script) in SCRIPTS.into_iter().chain([INIT]) {
        archive.executable(path, script.as_bytes())?;
    }
    let mut order = String::new();
    for path in kernel.module_files(&MODULES)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.context("a module without a name")?;
        let module = fs::read(&path).with_context(|| path.display().to_string())?;
        archive.executable(&format!("modules/{name}"), &module)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.executable("modules/order", order.as_bytes())?;
    archive.finish()?;
    Ok(())
}
