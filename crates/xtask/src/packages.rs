//! What the tests need of the host. Debian gets it installed; elsewhere the missing is named.

use crate::run::{is_installed, run};
use crate::test::Part;
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

/// One thing the tests need.
#[derive(Debug)]
struct Package {
    /// Its name in Debian.
    name: &'static str,
    /// How to tell elsewhere that it is there.
    probe: Probe,
    /// The parts that need it.
    parts: &'static [Part],
    /// What for.
    why: &'static str,
}

#[derive(Debug)]
enum Probe {
    /// A program.
    Program(&'static str),
    /// A kernel in /boot.
    Kernel,
}

use Probe::{Kernel, Program};

/// Everything the tests need beyond Rust.
const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        probe: Program("qemu-system-x86_64"),
        parts: &[Part::E2e],
        why: "boots a guest whose disk is ours",
    },
    Package {
        name: "qemu-system-common",
        probe: Program("qemu-storage-daemon"),
        parts: &[Part::E2e],
        why: "qemu-storage-daemon, the peer whose answers ours are compared with",
    },
    Package {
        name: "qemu-utils",
        probe: Program("qemu-io"),
        parts: &[Part::E2e],
        why: "qemu-img and qemu-io make, check and lock images behind the daemon's back",
    },
    Package {
        name: "fio",
        probe: Program("fio"),
        parts: &[Part::E2e],
        why: "load that verifies what it wrote",
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
    if is_debian(&fs::read_to_string("/etc/os-release").unwrap_or_default()) {
        ensure_debian(&needed)
    } else {
        ensure_elsewhere(&needed)
    }
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .any(|line| matches!(line, "ID=debian" | "ID=\"debian\""))
}

fn ensure_debian(needed: &[&Package]) -> Result<()> {
    let names = needed.iter().map(|package| package.name);
    // Its status is an error if one name is unknown; what it prints counts.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(names)
        .output()
        .context("cannot run `dpkg-query`")?;
    let missing = missing(needed, &String::from_utf8_lossy(&output.stdout));
    if missing.is_empty() {
        println!("all {} packages are installed", needed.len());
        return Ok(());
    }
    list(&missing);
    run(&mut apt_get(&["update"])?)?;
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"])?;
    install.args(missing.iter().map(|package| package.name));
    run(&mut install)
}

/// Which packages are not installed, by what dpkg-query printed.
fn missing<'a>(needed: &[&'a Package], status: &str) -> Vec<&'a Package> {
    let installed = |package: &&&Package| {
        let line = format!("{} installed", package.name);
        status.lines().any(|l| l == line)
    };
    needed
        .iter()
        .filter(|package| !installed(package))
        .copied()
        .collect()
}

fn apt_get(args: &[&str]) -> Result<Command> {
    // env: sudo drops the variables of its caller.
    let mut words = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "--quiet",
    ];
    if !is_root()? {
        if !is_installed("sudo") {
            bail!("installing packages needs root or sudo: run this as root once");
        }
        words.insert(0, "sudo");
    }
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(args);
    Ok(command)
}

fn is_root() -> Result<bool> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    Ok(uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0"))
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

fn is_there(probe: &Probe) -> bool {
    match probe {
        Program(name) => is_installed(name),
        Kernel => fs::read_dir("/boot").is_ok_and(|entries| {
            entries
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with("vmlinuz"))
        }),
    }
}

fn list(missing: &[&Package]) {
    for Package {
        name, probe, why, ..
    } in missing
    {
        let what = match probe {
            Program(program) => program,
            Kernel => "/boot/vmlinuz*",
        };
        println!("missing: {name} ({what}): {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_calls_installed_is_there() {
        let needed: Vec<&Package> = PACKAGES.iter().take(3).collect();
        let names = |status: &str| -> Vec<&str> {
            missing(&needed, status)
                .iter()
                .map(|package| package.name)
                .collect()
        };
        let all = ["qemu-system-x86", "qemu-system-common", "qemu-utils"];
        assert_eq!(names(""), all);
        assert_eq!(
            names(
                "qemu-system-x86 installed\nqemu-utils config-files\nqemu-system-common not-installed\n"
            ),
            all[1..]
        );
        let status: String = all
            .iter()
            .map(|name| format!("{name} installed\n"))
            .collect();
        assert_eq!(names(&status), [""; 0]);
    }

    #[test]
    fn knows_debian() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(!is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn parts_without_needs_touch_nothing() {
        ensure(&[Part::Check, Part::Loom]).unwrap();
    }
}
