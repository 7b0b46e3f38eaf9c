//! One thing the tests need of the host, and how to tell that it is there.

use Probe::{File, Kernel, Program};

use crate::part::Part;
use crate::run::is_installed;
use std::fmt;
use std::fs;
use std::path::Path;

/// One thing the tests need.
#[derive(Debug)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// How to tell elsewhere that it is there.
    pub probe: Probe,
    /// The parts that need it.
    pub parts: &'static [Part],
    /// What for.
    pub why: &'static str,
}

/// How to tell that something is there.
#[derive(Debug)]
pub enum Probe {
    /// A program.
    Program(&'static str),
    /// A file that is no program.
    File(&'static str),
    /// A kernel in /boot that `testkit` boots.
    Kernel,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Program(name) | File(name) => f.write_str(name),
            Kernel => write!(f, "/boot/vmlinuz-*{KERNEL_FLAVOUR} with its modules"),
        }
    }
}

/// How the names of the kernels that `testkit` boots end.
const KERNEL_FLAVOUR: &str = "-cloud-amd64";

/// Whether something is there.
pub fn is_there(probe: &Probe) -> bool {
    match probe {
        Program(name) => is_installed(name),
        File(path) => Path::new(path).is_file(),
        Kernel => fs::read_dir("/boot").is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                let release = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-"));
                release.is_some_and(|release| {
                    release.ends_with(KERNEL_FLAVOUR)
                        && Path::new("/lib/modules").join(release).is_dir()
                })
            })
        }),
    }
}

/// Says what is missing, and what it is for.
pub fn list(missing: &[&Package]) {
    for Package {
        name, probe, why, ..
    } in missing
    {
        println!("missing: {name} ({probe}): {why}");
    }
}
