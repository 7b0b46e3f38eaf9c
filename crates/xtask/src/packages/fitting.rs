//! Which versions go together: pure, from what apt says is installed, there, and would be done.

use super::apt::{Installed, Policy, Simulation, upstream};
use std::collections::{BTreeMap, BTreeSet};

/// What `apt-get install` is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub words: Vec<String>,
}

impl Request {
    pub fn plain(names: &[&str]) -> Self {
        let words = names.iter().map(|&name| name.to_owned()).collect();
        Self { words }
    }
}

/// What apt answered to a request.
#[derive(Debug)]
pub struct Simulated {
    pub would: Simulation,
    /// Its errors; empty if it would do it.
    pub errors: Vec<String>,
}

/// What is installed and what the archives have.
#[derive(Debug)]
pub struct State {
    /// What belongs together is looked at within these.
    pub needed: Vec<&'static str>,
    pub installed: BTreeMap<String, Installed>,
    pub sources: BTreeMap<String, String>,
    pub policies: BTreeMap<String, Policy>,
}

impl State {
    /// The installed packages that are of one source with something that is needed.
    pub fn relatives(&self) -> impl Iterator<Item = &str> {
        let ours: BTreeSet<String> = self.needed.iter().map(|name| self.source(name)).collect();
        let of_ours = move |(_, package): &(&String, &Installed)| ours.contains(&package.source);
        let relatives = self.installed.iter().filter(of_ours);
        relatives.map(|(name, _)| name.as_str())
    }

    /// The version that `apt-get install` would take.
    pub fn candidate(&self, name: &str) -> Option<&str> {
        self.policies.get(name)?.candidate.as_deref()
    }

    /// The version that the archives prefer, whatever is installed.
    fn of_distribution(&self, name: &str) -> Option<&str> {
        self.policies.get(name)?.of_distribution()
    }

    pub fn source(&self, name: &str) -> String {
        match (self.installed.get(name), self.sources.get(name)) {
            (Some(installed), _) => installed.source.clone(),
            (None, Some(source)) => source.clone(),
            (None, None) => name.to_owned(),
        }
    }

    /// What is installed of the same source package in another version than the distribution has.
    pub fn siblings(&self, name: &str) -> Vec<(&str, &Installed)> {
        let source = self.source(name);
        let version = self.of_distribution(name).map(upstream);
        self.installed
            .iter()
            .filter(|(_, package)| package.source == source)
            .filter(|(_, package)| version.is_some_and(|v| v != upstream(&package.version)))
            .map(|(name, package)| (name.as_str(), package))
            .collect()
    }

    /// What we need of the source packages of these, them included.
    fn family(&self, names: &[&str]) -> Vec<String> {
        let sources: BTreeSet<String> = names.iter().map(|name| self.source(name)).collect();
        let of_family = |name: &&&str| sources.contains(&self.source(name));
        let family = self.needed.iter().filter(of_family);
        family.map(|&name| name.to_owned()).collect()
    }

    /// Asks for the packages in the version that their siblings have.
    pub fn follow(&self, names: &[&str]) -> Option<Request> {
        let siblings: Vec<_> = names.iter().flat_map(|name| self.siblings(name)).collect();
        let release = siblings
            .iter()
            .find_map(|(name, package)| self.policies.get(*name)?.release_of(&package.version))?;
        let mut words = vec!["--target-release".to_owned(), release.to_owned()];
        words.extend(self.family(names));
        Some(Request { words })
    }

    /// Asks for the packages, and for their siblings and what stands in the way in the version
    /// of the distribution.
    pub fn conform(&self, names: &[&str], plain: &Simulated) -> Option<Request> {
        let mut others: BTreeSet<&str> = names
            .iter()
            .flat_map(|name| self.siblings(name))
            .map(|(name, _)| name)
            .collect();
        others.extend(plain.would.removed.iter().map(|(name, _)| name.as_str()));
        if others.is_empty() {
            return None;
        }
        let is_held = |name: &&str| self.installed.get(*name).is_some_and(|p| p.is_held);
        if others.iter().any(is_held) {
            return None;
        }
        let mut words = vec!["--allow-downgrades".to_owned()];
        words.extend(
            names
                .iter()
                .filter(|name| !others.contains(**name))
                .map(|&name| name.into()),
        );
        for name in others {
            words.push(match self.of_distribution(name) {
                Some(version) => format!("{name}={version}"),
                None => name.to_owned(),
            });
        }
        Some(Request { words })
    }

    /// Whether a request goes through, removes nothing, and leaves the packages and their siblings
    /// that we need in one version.
    pub fn fits(&self, names: &[&str], simulated: &Simulated) -> bool {
        if !simulated.errors.is_empty() || !simulated.would.removed.is_empty() {
            return false;
        }
        let mut versions: BTreeMap<String, &str> = BTreeMap::new();
        self.family(names).iter().all(|name| {
            let old = self.installed.get(name).map(|p| p.version.as_str());
            let new = simulated.would.installed.get(name).map(String::as_str);
            let Some(version) = new.or(old).map(upstream) else {
                return true;
            };
            *versions.entry(self.source(name)).or_insert(version) == version
        })
    }

    /// Why no request fits, and what helps.
    pub fn refusal(&self, names: &[&str], plain: &Simulated) -> String {
        let mut in_the_way: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, package) in names.iter().flat_map(|name| self.siblings(name)) {
            in_the_way.insert(name, &package.version);
        }
        for (name, version) in &plain.would.removed {
            in_the_way.insert(name, version);
        }
        let wanted: Vec<String> = names
            .iter()
            .map(|name| match self.candidate(name) {
                Some(version) => format!("{name} {version}"),
                None => (*name).to_owned(),
            })
            .collect();
        let wanted = wanted.join(", ");
        let said = plain.errors.join("; ");
        if in_the_way.is_empty() {
            return format!(
                "apt cannot install {wanted} ({said}): `apt-get --fix-broken install`, or install \
                 them by hand, then run this again"
            );
        }
        let is_held = |name: &str| self.installed.get(name).is_some_and(|p| p.is_held);
        let described: Vec<String> = in_the_way
            .iter()
            .map(|(name, version)| {
                let held = if is_held(name) { ", on hold" } else { "" };
                format!("{name} ({version}{held})")
            })
            .collect();
        let held: Vec<&str> = in_the_way
            .keys()
            .copied()
            .filter(|name| is_held(name))
            .collect();
        let remedy = if held.is_empty() {
            "install both from one release".to_owned()
        } else {
            format!(
                "`apt-mark unhold {}`, or install both from one release",
                held.join(" ")
            )
        };
        let said = if said.is_empty() {
            "it would remove what is installed".to_owned()
        } else {
            said
        };
        format!(
            "apt has {wanted}, which does not go together with what is installed: {} ({said}): \
             {remedy}, then run this again",
            described.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::apt;
    use super::*;

    const OLD: &str = "1:7.2+dfsg-7+deb12u18+b3";
    const NEW: &str = "1:10.0.2+ds-2+deb13u1~bpo12+1";
    const NEEDED: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-utils", "fio"];

    /// A machine with these QEMU packages; its archives have the old QEMU, or both.
    fn machine(packages: &[(&str, &str)], has_backports: bool, is_held: bool) -> State {
        let installed = |&(name, version): &(&str, &str)| {
            let installed = Installed {
                version: version.to_owned(),
                source: "qemu".to_owned(),
                is_held,
            };
            (name.to_owned(), installed)
        };
        let installed: BTreeMap<_, _> = packages.iter().map(installed).collect();
        let source = |&name: &&str| {
            let source = if name == "fio" { "fio" } else { "qemu" };
            (name.to_owned(), source.to_owned())
        };
        let mut policy = String::new();
        for name in NEEDED {
            let version = if name == "fio" { "3.33-3" } else { OLD };
            let now = installed.get(name).map(|p| p.version.as_str());
            let candidate = now.unwrap_or(version);
            policy += &format!("{name}:\n  Candidate: {candidate}\n  Version table:\n");
            if has_backports && name != "fio" {
                policy +=
                    &format!("     {NEW} 100\n        100 http://d bookworm-backports/main\n");
            } else if now == Some(NEW) {
                policy += &format!(" *** {NEW} 100\n        100 /var/lib/dpkg/status\n");
            }
            policy += &format!("     {version} 500\n        500 http://d bookworm/main\n");
        }
        State {
            needed: NEEDED.to_vec(),
            installed,
            sources: NEEDED.iter().map(source).collect(),
            policies: apt::policies(&policy),
        }
    }

    fn simulated(text: &str) -> Simulated {
        Simulated {
            would: apt::simulation(text),
            errors: Vec::new(),
        }
    }

    fn words(request: Option<Request>) -> String {
        request.map_or_else(String::new, |request| request.words.join(" "))
    }

    const MISSING: [&str; 2] = ["qemu-system-x86", "qemu-system-common"];

    /// Only qemu-utils was there, from backports. apt removed it silently when it installed the
    /// rest of the old QEMU, and the tests then did not find qemu-img.
    #[test]
    fn newer_sibling_is_brought_to_the_version_of_the_distribution() {
        let state = machine(&[("qemu-utils", NEW)], false, false);
        let plain = format!("Remv qemu-utils [{NEW}]\nInst qemu-system-common ({OLD} Debian)\n");
        let plain = simulated(&plain);
        assert!(!state.fits(&MISSING, &plain));
        assert_eq!(state.follow(&MISSING), None);
        assert_eq!(
            words(state.conform(&MISSING, &plain)),
            format!("--allow-downgrades qemu-system-x86 qemu-system-common qemu-utils={OLD}")
        );
        let conform = format!(
            "Inst qemu-utils [{NEW}] ({OLD} Debian)\nInst qemu-system-common ({OLD} Debian)\n\
             Inst qemu-system-x86 ({OLD} Debian)\n"
        );
        assert!(state.fits(&MISSING, &simulated(&conform)));
    }

    #[test]
    fn what_is_installed_is_followed_where_an_archive_has_it() {
        let state = machine(&[("qemu-utils", NEW)], true, false);
        assert_eq!(
            words(state.follow(&MISSING)),
            "--target-release bookworm-backports qemu-system-x86 qemu-system-common qemu-utils"
        );
        // In the other direction, too.
        let state = machine(
            &[("qemu-system-x86", NEW), ("qemu-system-common", NEW)],
            true,
            false,
        );
        assert_eq!(
            words(state.follow(&["qemu-utils"])),
            "--target-release bookworm-backports qemu-system-x86 qemu-system-common qemu-utils"
        );
    }

    /// apt would not mind: qemu-storage-daemon has moved from one package to the other between
    /// the two, and would be in neither.
    #[test]
    fn two_versions_of_one_source_do_not_fit() {
        let state = machine(
            &[("qemu-system-x86", NEW), ("qemu-system-common", NEW)],
            false,
            false,
        );
        let plain = simulated(&format!("Inst qemu-utils ({OLD} Debian)\n"));
        assert!(!state.fits(&["qemu-utils"], &plain));
        // It is nothing to those who want something else.
        assert!(state.fits(&["fio"], &simulated("Inst fio (3.33-3 Debian)\n")));
        assert_eq!(
            words(state.conform(&["qemu-utils"], &plain)),
            format!("--allow-downgrades qemu-utils qemu-system-common={OLD} qemu-system-x86={OLD}")
        );
    }

    #[test]
    fn nothing_in_the_way_is_left_alone() {
        let state = machine(&[], false, false);
        let plain = simulated(&format!("Inst qemu-system-x86 ({OLD} Debian)\n"));
        assert!(state.fits(&MISSING, &plain));
        assert!(state.siblings("qemu-system-x86").is_empty());
        assert_eq!(state.follow(&MISSING), None);
        assert_eq!(state.conform(&MISSING, &plain), None);
        // A revision of the same version is no other version.
        let state = machine(&[("qemu-utils", "1:7.2+dfsg-7+deb12u15")], false, false);
        assert!(state.siblings("qemu-system-x86").is_empty());
        assert!(state.fits(&MISSING, &plain));
    }

    #[test]
    fn refusal_names_package_version_and_remedy() {
        let state = machine(&[("qemu-utils", NEW)], false, true);
        let mut plain = simulated(&format!("Remv qemu-utils [{NEW}]\n"));
        plain.errors.push("Held packages were changed".to_owned());
        assert_eq!(state.conform(&MISSING, &plain), None);
        let text = state.refusal(&MISSING, &plain);
        for part in [
            "qemu-system-common 1:7.2+dfsg-7+deb12u18+b3",
            "qemu-utils (1:10.0.2+ds-2+deb13u1~bpo12+1, on hold)",
            "`apt-mark unhold qemu-utils`",
            "Held packages were changed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        plain = simulated("");
        plain.errors.push("Unmet dependencies".to_owned());
        let text = machine(&[], false, false).refusal(&["fio"], &plain);
        assert!(
            text.contains("cannot install fio 3.33-3 (Unmet dependencies)"),
            "{text}"
        );
    }
}
