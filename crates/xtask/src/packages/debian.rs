//! Debian and what descends from it: apt installs what is missing, and removes nothing for it.
//!
//! What is installed may be newer than what the archives have: qemu-utils of backports, say, on a
//! machine whose archives have only the old QEMU. apt's way out is to remove it without a word. So
//! it is asked beforehand what it would do, and what comes from one source package is brought to
//! one version: to that which is installed, where an archive has the rest of it, else to that of
//! the distribution.

use super::apt::{self, Installed, Policy};
use super::fitting::{Request, Simulated, State};
use super::package::{Package, is_there, list};
use crate::run::{is_installed, run, show};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

/// Whether this is Debian, or something that is like it and has its tools.
pub fn is_here() -> bool {
    is_debian(&fs::read_to_string("/etc/os-release").unwrap_or_default())
        && ["apt-get", "apt-cache", "dpkg-query"]
            .iter()
            .all(|program| is_installed(program))
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| {
            line.strip_prefix("ID=")
                .or_else(|| line.strip_prefix("ID_LIKE="))
        })
        .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace())
        .any(|word| word == "debian")
}

/// Installs what is missing.
pub fn ensure(needed: &[&Package]) -> Result<()> {
    let missing = not_there(needed, &installed()?);
    if missing.is_empty() {
        println!("all {} packages are installed", needed.len());
        return Ok(());
    }
    list(&missing);
    // Of several sources a single one that does not answer makes this an error, and one that we
    // do not need must not stop us.
    let update = run(&mut apt_get(&[
        "-o",
        "APT::Update::Error-Mode=any",
        "update",
    ])?);
    if let Err(error) = &update {
        println!("warning: {error}; going on with the package lists of the last update");
    }
    let result = install(needed, &missing);
    match update {
        Err(error) => result.context(format!(
            "the package lists could not be updated ({error}): see to the network and to the \
             sources in /etc/apt"
        )),
        Ok(()) => result,
    }
}

/// What dpkg does not call installed, or what is installed without what it is for.
fn not_there<'a>(
    needed: &[&'a Package],
    installed: &BTreeMap<String, Installed>,
) -> Vec<&'a Package> {
    let is_missing = |p: &&&Package| !installed.contains_key(p.name) || !is_there(&p.probe);
    needed.iter().filter(is_missing).copied().collect()
}

fn install(needed: &[&Package], missing: &[&Package]) -> Result<()> {
    let mut state = state_now(needed)?;
    // A derivative may call it something else; what it is for counts.
    let unknown =
        |p: &&&Package| state.candidate(p.name).is_none() && !state.installed.contains_key(p.name);
    let (unknown, known): (Vec<&Package>, Vec<&Package>) = missing.iter().partition(unknown);
    if let Some(package) = unknown.iter().find(|package| !is_there(&package.probe)) {
        bail!(
            "apt knows no package {name} ({}): add an archive that has it to the sources in \
             /etc/apt, or install what provides it",
            package.why,
            name = package.name,
        );
    }
    let names: Vec<&str> = known.iter().map(|package| package.name).collect();
    // First what has to fit to something that is installed; then all the rest at once.
    let families: BTreeSet<String> = names
        .iter()
        .filter(|name| !state.siblings(name).is_empty())
        .map(|name| state.source(name))
        .collect();
    for family in families {
        let of_family = |name: &&&str| state.source(name) == family;
        let names: Vec<&str> = names.iter().filter(of_family).copied().collect();
        install_fitting(&mut state, &names)?;
        state = state_now(needed)?;
    }
    let rest: Vec<&str> = names
        .iter()
        .filter(|name| !state.installed.contains_key(**name))
        .copied()
        .collect();
    if !rest.is_empty() {
        install_fitting(&mut state, &rest)?;
    }
    // What apt says is one thing, what there is another.
    let installed = installed()?;
    let missing = needed.iter().find(|package| !is_there(&package.probe));
    if let Some(package) = missing {
        let state = match installed.get(package.name) {
            Some(Installed { version, .. }) => format!("{} is installed", version),
            None => "it is not installed".to_owned(),
        };
        bail!(
            "the package {name} ({state}) does not bring {}: install it in the version of the \
             distribution, with all that is of its source package",
            package.probe,
            name = package.name,
        );
    }
    Ok(())
}

/// Runs the first of the possible requests that removes nothing and mixes no versions.
fn install_fitting(state: &mut State, names: &[&str]) -> Result<()> {
    let plain = simulate(&Request::plain(names))?;
    let in_the_way = plain.would.removed.iter().map(|(name, _)| name.as_str());
    state.policies.extend(policies(in_the_way)?);
    let mut requests = vec![Request::plain(names)];
    requests.extend(state.follow(names));
    requests.extend(state.conform(names, &plain));
    for request in requests {
        let simulated = simulate(&request)?;
        if state.fits(names, &simulated) {
            let mut command = apt_get(&["install", "--yes", "--no-install-recommends"])?;
            // Nothing is removed even if something has changed since it was asked.
            return run(command.arg("--no-remove").args(&request.words));
        }
    }
    bail!(state.refusal(names, &plain))
}

fn state_now(needed: &[&Package]) -> Result<State> {
    let names: Vec<&'static str> = needed.iter().map(|package| package.name).collect();
    // Names that are unknown make it an error; what it prints counts.
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions"]).args(&names);
    let mut state = State {
        installed: installed()?,
        sources: apt::sources(&stdout(&mut show)?),
        policies: BTreeMap::new(),
        needed: names,
    };
    let needed = state.needed.iter().copied();
    state.policies = policies(state.relatives().chain(needed))?;
    Ok(state)
}

fn simulate(request: &Request) -> Result<Simulated> {
    let mut command = Command::new("apt-get");
    command
        .env("LC_ALL", "C")
        .args(["--quiet", "--simulate", "install", "--yes"])
        .arg("--no-install-recommends")
        .args(&request.words);
    let line = show(&command);
    let output = command
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut errors: Vec<String> = Vec::new();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines = stderr.lines().filter_map(|line| line.strip_prefix("E: "));
        errors.extend(lines.map(str::to_owned));
        if errors.is_empty() {
            errors.push(format!("`{line}`: {}: {}", output.status, stderr.trim()));
        }
    }
    let would = apt::simulation(&String::from_utf8_lossy(&output.stdout));
    Ok(Simulated { would, errors })
}

fn policies<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, Policy>> {
    let mut policy = Command::new("apt-cache");
    policy.arg("policy").args(names);
    if policy.get_args().len() == 1 {
        // It would tell of the archives.
        return Ok(BTreeMap::new());
    }
    Ok(apt::policies(&stdout(&mut policy)?))
}

fn installed() -> Result<BTreeMap<String, Installed>> {
    let mut query = Command::new("dpkg-query");
    query
        .arg("--show")
        .arg(format!("--showformat={}", apt::DPKG_FORMAT));
    Ok(apt::installed(&stdout(&mut query)?))
}

/// What a command printed, whatever its status.
fn stdout(command: &mut Command) -> Result<String> {
    let line = show(command);
    let output = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_debian_and_what_descends_from_it() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(is_debian("ID='debian'"));
        assert!(!is_debian("ID=fedora\nHOME_URL=https://debian.example\n"));
        assert!(!is_debian("ID=nodebian\n"));
        assert!(!is_debian(""));
    }
}
