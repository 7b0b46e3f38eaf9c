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
const SCRIPTS: [(&str, &str); 4] = [
    ("init", include_str!("init.sh")),
    ("bin/agent", include_str!("agent.sh")),
    ("bin/stamps", include_str!("stamps.sh")),
    ("bin/files", include_str!("files.sh")),
];

/// Writes the archive. It takes some milliseconds, less than a cache of it would be worth.
pub(super) fn write(path: &Path, kernel: &Kernel) -> Result<()> {
    let busybox = if Path::new(BUSYBOX).exists() {
        BUSYBOX
    } else {
        BUSYBOX_OLD
    };
    let program = fs::read(busybox)
        .with_context(|| format!("{busybox}; the guest needs the package busybox-static"))?;
    let applets = run(busybox, &["--list"])?;

    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it as init's standard streams before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.executable("bin/busybox", &program)?;
    for applet in applets.lines().filter(|&applet| applet != "busybox") {
        archive.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    for (path, script) in SCRIPTS {
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
