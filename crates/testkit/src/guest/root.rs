//! A root file system on a disk: busybox, and what a guest's own root has.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::files::make_ext4_of;
use super::initramfs::{self, Busybox};

const DIRECTORIES: [&str; 9] = [
    "bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp",
];
const INIT: (&str, &str) = ("bin/init", include_str!("root_init.sh"));

/// Makes an image of `bytes` (sparse) with a file system that a guest has as its root, if its kernel's command line says
/// `root=/dev/vda` ([`super::Builder::kernel_arg`]).
///
/// # Errors
/// If something that it is made of is not installed (busybox-static, e2fsprogs), or it cannot be written.
pub fn make_root(path: &Path, bytes: u64) -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("standfast-root-")
        .tempdir()?;
    let at = |name: &str| dir.path().join(name);
    for directory in DIRECTORIES {
        fs::create_dir(at(directory)).context(directory)?;
    }
    let executable = |name: &str, content: &[u8]| -> Result<()> {
        fs::write(at(name), content).with_context(|| name.to_owned())?;
        Ok(fs::set_permissions(
            at(name),
            fs::Permissions::from_mode(0o755),
        )?)
    };
    let busybox = Busybox::find()?;
    executable("bin/busybox", &busybox.program)?;
    let scripts = initramfs::scripts();
    let is_script = |applet: &str| {
        let name = format!("bin/{applet}");
        name == INIT.0 || scripts.iter().any(|(script, _)| *script == name)
    };
    for applet in busybox.applets().filter(|applet| !is_script(applet)) {
        symlink("busybox", at(&format!("bin/{applet}"))).with_context(|| applet.to_owned())?;
    }
    for (script, content) in scripts.iter().chain([&INIT]) {
        executable(script, content.as_bytes())?;
    }
    fs::write(at("etc/issue"), "A root file system of Standfast's tests\n")?;
    make_ext4_of(path, bytes, Some(dir.path()))
}
