//! What the tests need of the host. Debian gets it installed; elsewhere the missing is named.

mod apt;
mod debian;
mod fitting;
mod package;
pub mod peer;

use self::package::Probe::{File, Kernel, Program};
use self::package::{Package, is_there, list};
use crate::part::Part;
use anyhow::{Result, bail};

/// Everything the tests need beyond Rust.
const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        probe: Program("qemu-system-x86_64"),
        parts: &[Part::E2e, Part::Qsd],
        why: "boots a guest whose disk is ours",
    },
    Package {
        name: "qemu-system-common",
        probe: Program("qemu-storage-daemon"),
        parts: &[Part::E2e, Part::Qsd],
        why: "qemu-storage-daemon, the peer whose answers ours are compared with",
    },
    Package {
        name: "qemu-utils",
        probe: Program("qemu-io"),
        parts: &[Part::E2e, Part::Qsd, Part::BenchGate],
        why: "qemu-img and qemu-io make, check and lock images behind the daemon's back",
    },
    Package {
        name: "qemu-system-arm",
        probe: Program("qemu-system-aarch64"),
        parts: &[Part::E2e],
        why: "a machine with virtio-mmio, on which U-Boot runs",
    },
    Package {
        name: "u-boot-qemu",
        probe: File("/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
        parts: &[Part::E2e],
        why: "a guest whose virtio driver is not Linux's",
    },
    Package {
        name: "fio",
        probe: Program("fio"),
        parts: &[Part::E2e],
        why: "load that verifies what it wrote",
    },
    Package {
        name: "libvirt-daemon",
        probe: Program("libvirtd"),
        parts: &[Part::E2e],
        why: "a manager that starts, suspends and resumes domains with our disks",
    },
    Package {
        name: "libvirt-daemon-driver-qemu",
        probe: File("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"),
        parts: &[Part::E2e],
        why: "what makes QEMU's machines of its domains",
    },
    Package {
        name: "libvirt-clients",
        probe: Program("virsh"),
        parts: &[Part::E2e],
        why: "its administrator",
    },
    Package {
        name: "nbdkit",
        probe: Program("nbdkit"),
        parts: &[Part::E2e],
        why: "storage that fails, delays and pauses on demand",
    },
    Package {
        name: "libnbd-bin",
        probe: Program("nbdcopy"),
        parts: &[Part::E2e],
        why: "nbdinfo and nbdcopy, a foreign NBD client",
    },
    Package {
        name: "e2fsprogs",
        probe: Program("mkfs.ext4"),
        parts: &[Part::E2e],
        why: "file systems on our disks, small ones to run full under them, and fsck",
    },
    Package {
        name: "util-linux",
        probe: Program("losetup"),
        parts: &[Part::E2e],
        why: "losetup, fallocate, unshare",
    },
    Package {
        name: "mount",
        probe: Program("mount"),
        parts: &[Part::E2e],
        why: "a small tmpfs that runs full and is then enlarged",
    },
    Package {
        name: "curl",
        probe: Program("curl"),
        parts: &[Part::E2e],
        why: "a foreign HTTP client, which reads our metrics",
    },
    Package {
        name: "python3-prometheus-client",
        probe: File("/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py"),
        parts: &[Part::E2e],
        why: "the parser of the Prometheus project, which is strict about our metrics",
    },
    Package {
        name: "python3-venv",
        probe: Program("python3"),
        parts: &[Part::Qsd],
        why: "an environment for qemu.qmp, QEMU's own client of QMP",
    },
    Package {
        name: "man-db",
        probe: Program("man"),
        parts: &[Part::E2e],
        why: "shows our manual pages, and warns of their mistakes",
    },
    Package {
        name: "groff-base",
        probe: Program("groff"),
        parts: &[Part::E2e],
        why: "what sets them",
    },
    Package {
        name: "mandoc",
        probe: Program("mandoc"),
        parts: &[Part::E2e],
        why: "the stricter judge of manual pages",
    },
    Package {
        name: "zsh",
        probe: Program("zsh"),
        parts: &[Part::E2e],
        why: "reads our completions, as bash does",
    },
    Package {
        name: "fish",
        probe: Program("fish"),
        parts: &[Part::E2e],
        why: "reads our completions, too",
    },
    Package {
        name: "busybox-static",
        probe: Program("busybox"),
        parts: &[Part::E2e],
        why: "the guest's user land",
    },
    Package {
        name: "cpio",
        probe: Program("cpio"),
        parts: &[Part::E2e],
        why: "packs the guest's initramfs",
    },
    Package {
        name: "linux-image-cloud-amd64",
        probe: Kernel,
        parts: &[Part::E2e],
        why: "the guest's kernel, with virtio-blk",
    },
    Package {
        name: "valgrind",
        probe: Program("valgrind"),
        parts: &[Part::BenchGate],
        why: "callgrind counts the instructions per request",
    },
    Package {
        name: "g++",
        probe: Program("c++"),
        parts: &[Part::FuzzSmoke],
        why: "libfuzzer-sys compiles libFuzzer from its C++ source",
    },
];

/// Sees to it that everything the parts need is there.
pub fn ensure(parts: &[Part]) -> Result<()> {
    ensure_if(|package| package.parts.iter().any(|part| parts.contains(part)))
}

/// The same for single packages, by their names in Debian.
pub fn ensure_named(names: &[&str]) -> Result<()> {
    ensure_if(|package| names.contains(&package.name))
}

fn ensure_if(wanted: impl Fn(&Package) -> bool) -> Result<()> {
    let needed: Vec<&Package> = PACKAGES.iter().filter(|package| wanted(package)).collect();
    if needed.is_empty() {
        println!("nothing is needed");
        return Ok(());
    }
    if debian::is_here() {
        debian::ensure(&needed)
    } else {
        ensure_elsewhere(&needed)
    }
}

fn ensure_elsewhere(needed: &[&Package]) -> Result<()> {
    let missing: Vec<_> = needed
        .iter()
        .filter(|p| !is_there(&p.probe))
        .copied()
        .collect();
    if missing.is_empty() {
        println!("all {} programs are there", needed.len());
        return Ok(());
    }
    list(&missing);
    bail!(
        "{} of the things above are missing, and only on Debian can they be installed for you: \
         install what your distribution calls them",
        missing.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_without_needs_touch_nothing() {
        ensure(&[Part::Check, Part::Loom]).unwrap();
    }
}
