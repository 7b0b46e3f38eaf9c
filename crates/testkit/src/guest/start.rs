//! How a guest is started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Guest;
use super::boot::Boot;
use super::disk::{Disk, escape, parse_version};
use super::inside::Inside;
use crate::command::run;
use crate::daemon::Daemon;
use crate::qmp::Qmp;

/// How to start a guest.
#[derive(Debug)]
pub struct Builder {
    qemu: PathBuf,
    memory_mib: u32,
    cpus: u32,
    disks: Vec<Disk>,
    kernel_args: Vec<String>,
    qemu_args: Vec<OsString>,
}

impl Guest {
    /// A guest to be started: 512 MiB, one CPU, no disk.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    fn new() -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            // Only what the guest touches is ever allocated. It uses far less, but with 256 MiB two
            // kernels often overlap: see KERNEL_ARGUMENTS.
            memory_mib: 512,
            cpus: 1,
            disks: Vec::new(),
            kernel_args: Vec::new(),
            qemu_args: Vec::new(),
        }
    }

    /// Another QEMU: a path, or a name to be found in `PATH`.
    #[must_use]
    pub fn qemu(mut self, program: impl AsRef<Path>) -> Self {
        self.qemu = program.as_ref().to_owned();
        self
    }

    /// Memory in MiB. It is shared with the disks' servers.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Number of CPUs; a disk's queue is used by at least one.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a disk. The first is `vda` in the guest and `disk0` in QEMU, and so on.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<Disk>) -> Self {
        self.disks.push(disk.into());
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn kernel_arg(mut self, arg: &str) -> Self {
        self.kernel_args.push(arg.into());
        self
    }

    /// Adds an argument of QEMU.
    #[must_use]
    pub fn qemu_arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.qemu_args.push(arg.as_ref().to_owned());
        self
    }

    /// Starts the guest; it has not booted yet: [`Guest::wait_boot`].
    ///
    /// # Errors
    /// If QEMU or something the guest is made of is not installed, or QEMU ends early; with what
    /// it has written to stderr.
    pub fn start(self) -> Result<Guest> {
        let dir = tempfile::Builder::new()
            .prefix("standfast-guest-")
            .tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let boot = Boot::prepare(dir.path())?;

        let since = Instant::now();
        let qemu = Daemon::builder(&self.qemu)
            .args(self.arguments(dir.path(), &boot)?)
            .args(&self.qemu_args)
            .socket(at("qmp"))
            .socket(at("agent"))
            .timeout(Duration::from_secs(60))
            .start()?;
        let inside = Inside::connect(&at("agent"), &at("kernel.log"))?;
        let mut qmp = Qmp::connect(at("qmp")).context("QEMU's monitor")?;
        qmp.set_timeout(Duration::from_secs(60));
        Ok(Guest {
            qemu,
            inside,
            qmp,
            boots: 0,
            since,
            _dir: dir,
        })
    }

    fn arguments(&self, dir: &Path, boot: &Boot) -> Result<Vec<OsString>> {
        let version = if self.disks.iter().any(Disk::needs_version) {
            let program = self.qemu.to_str().context("QEMU's path is not UTF-8")?;
            let text = run(program, &["--version"])?;
            parse_version(&text).with_context(|| format!("{program} --version says {text:?}"))?
        } else {
            (0, 0)
        };
        let at = |name: &str| escape(&dir.join(name));
        let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", at(id));
        let memory = format!(
            "memory-backend-memfd,id=memory,size={}M,share=on",
            self.memory_mib
        );
        let kernel_args = [from_ref(&boot.arguments), self.kernel_args.as_slice()].concat();

        // pc and q35 boot equally fast, and pc's bus takes hot-plugged disks as it is; microvm does
        // not boot this kernel. qemu64 is cheaper to emulate than max. The keyboard controller stays:
        // it is how the kernel resets a pc.
        let mut arguments: Vec<OsString> = [
            "-no-user-config -nodefaults -display none -accel tcg -cpu qemu64",
            "-machine pc,memory-backend=memory,usb=off,vmport=off",
        ]
        .iter()
        .flat_map(|part| part.split(' '))
        .map(OsString::from)
        .collect();
        let mut option = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        option("-smp", self.cpus.to_string());
        option("-object", memory);
        option("-kernel", boot.kernel.display().to_string());
        option("-initrd", boot.initramfs.display().to_string());
        option("-append", kernel_args.join(" "));
        option("-chardev", format!("file,id=log,path={}", at("kernel.log")));
        option("-serial", "chardev:log".into());
        option("-chardev", socket("agent"));
        option("-serial", "chardev:agent".into());
        option("-chardev", socket("qmp"));
        option("-mon", "chardev=qmp,mode=control".into());
        for (index, disk) in self.disks.iter().enumerate() {
            arguments.extend(
                disk.arguments(index, version)
                    .into_iter()
                    .map(OsString::from),
            );
        }
        Ok(arguments)
    }
}
