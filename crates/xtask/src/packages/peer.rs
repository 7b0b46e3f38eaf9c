//! qemu-storage-daemon as others have it: the installed one, and that of backports, unpacked beside it.

use super::debian;
use crate::run::{output, run};
use anyhow::{Context, Result, bail};
use corpus::program::{Kind, Program};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first version of QEMU whose words are the measure.
const MEASURE: u32 = 10;
/// What has the program in that version.
const PACKAGE: &str = "qemu-utils";

/// The peers, the one that is the measure first, and QEMU. Says so if there is only the installed one.
pub fn programs(directory: &Path) -> Result<Vec<Program>> {
    let installed = program("qemu-storage-daemon", Kind::StorageDaemon, None)?;
    let qemu = program("qemu-system-x86_64", Kind::Qemu, None)?;
    if major(&installed.name).is_some_and(|major| major >= MEASURE) {
        return Ok(vec![installed, qemu]);
    }
    match unpacked(&directory.join("peer")) {
        Ok(newest) => Ok(vec![newest, installed, qemu]),
        Err(error) => {
            println!(
                "warning: there is no qemu-storage-daemon {MEASURE} to compare with ({error:#}); going on \
                 with {}",
                installed.name
            );
            Ok(vec![installed, qemu])
        }
    }
}

/// A program, and what it says its version is.
fn program(path: &str, kind: Kind, libraries: Option<PathBuf>) -> Result<Program> {
    let path = find(path).with_context(|| format!("{path} is not there"))?;
    let mut command = Command::new(&path);
    if let Some(libraries) = &libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let text = output(command.arg("--version"))?;
    let name = text.lines().next().unwrap_or_default().to_owned();
    Ok(Program {
        name,
        path,
        libraries,
        kind,
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// 10 of `qemu-storage-daemon version 10.0.2 (Debian ...)`.
fn major(name: &str) -> Option<u32> {
    let version = name
        .split(' ')
        .skip_while(|word| *word != "version")
        .nth(1)?;
    version.split('.').next()?.parse().ok()
}

/// The newer one, with what it needs and the system does not have, in a directory of its own.
fn unpacked(directory: &Path) -> Result<Program> {
    let root = directory.join("root");
    let path = root.join("usr/bin/qemu-storage-daemon");
    if !path.is_file() {
        fetch(directory, &root)?;
    }
    let libraries = root.join("lib");
    let path = path.to_string_lossy().into_owned();
    program(&path, Kind::StorageDaemon, Some(libraries))
}

/// Packages are downloaded by apt, with sources and lists of our own, and nothing is installed.
fn fetch(directory: &Path, root: &Path) -> Result<()> {
    if !debian::is_here() {
        bail!("only on Debian can it be had");
    }
    let release = fs::read_to_string("/etc/os-release")?;
    let code_name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("this release has no name")?;
    let debs = directory.join("debs");
    for part in ["lists/partial", "cache/archives/partial", "debs"] {
        fs::create_dir_all(directory.join(part))?;
    }
    let sources = directory.join("sources.list");
    let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let archive = "http://deb.debian.org/debian";
    let text = format!(
        "deb {key} {archive} {code_name} main\ndeb {key} {archive} {code_name}-backports main\n"
    );
    fs::write(&sources, text)?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        let setting = |name: &str, value: &Path| format!("{name}={}", value.display());
        for setting in [
            setting("Dir::Etc::sourcelist", &sources),
            setting("Dir::Etc::sourceparts", Path::new("/dev/null")),
            setting("Dir::State", directory),
            setting("Dir::State::status", Path::new("/var/lib/dpkg/status")),
            setting("Dir::Cache", &directory.join("cache")),
            "APT::Update::Error-Mode=any".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Retries=1".to_owned(),
            "Acquire::http::Timeout=20".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command.env("LC_ALL", "C").current_dir(&debs);
        command
    };
    run(apt("apt-get").args(["-qq", "update"]))?;
    let backports = format!("{code_name}-backports");
    run(apt("apt-get").args(["-qq", "--target-release", &backports, "download", PACKAGE]))?;
    let package = archives(&debs)?
        .pop()
        .context("apt has downloaded nothing")?;
    let depends = output(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(package)
            .arg("Depends"),
    )?;
    let missing = missing(&depends);
    if !missing.is_empty() {
        run(apt("apt-get").args(["-qq", "download"]).args(&missing))?;
    }
    // Renamed at the end, so that what is there is whole.
    let partial = directory.join("root.partial");
    for archive in archives(&debs)? {
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(&partial))?;
    }
    collect_libraries(&partial)?;
    fs::rename(&partial, root)?;
    Ok(())
}

fn archives(debs: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(debs)?;
    Ok(entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?)
}

/// The names in a list of dependencies that dpkg does not call installed.
fn missing(depends: &str) -> BTreeSet<String> {
    let name = |dependency: &str| {
        let first = dependency.split('|').next().unwrap_or_default();
        first
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let is_missing = |name: &String| {
        let status = output(Command::new("dpkg-query").args([
            "--show",
            "--showformat=${db:Status-Status}",
            name,
        ]));
        !status.is_ok_and(|status| status == "installed")
    };
    depends.split(',').map(name).filter(is_missing).collect()
}

/// All libraries in one directory, wherever their packages have them.
fn collect_libraries(root: &Path) -> Result<()> {
    let libraries = root.join("lib-all");
    fs::create_dir_all(&libraries)?;
    for place in ["lib", "usr/lib"] {
        let Ok(directories) = fs::read_dir(root.join(place)) else {
            continue;
        };
        for directory in directories.flatten() {
            let Ok(files) = fs::read_dir(directory.path()) else {
                continue;
            };
            for file in files.flatten().filter(|file| file.path().is_file()) {
                fs::copy(file.path(), libraries.join(file.file_name()))?;
            }
        }
    }
    let lib = root.join("lib");
    if lib.exists() {
        fs::remove_dir_all(&lib)?;
    }
    fs::rename(libraries, lib)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read() {
        let name = "qemu-storage-daemon version 10.0.2 (Debian 1:10.0.2+ds-2)";
        assert_eq!(major(name), Some(10));
        let name = "QEMU emulator version 7.2.22 (Debian 1:7.2)";
        assert_eq!(major(name), Some(7));
        assert_eq!(major("something"), None);
    }

    #[test]
    fn dependencies_that_are_not_installed_are_missing() {
        let missing = missing("libc6 (>= 2.34), no-such-library (>= 1) | other, dpkg");
        if debian::is_here() {
            assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["no-such-library"]);
        }
    }
}
