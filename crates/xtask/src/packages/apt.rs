//! What dpkg-query, apt-cache and apt-get say, taken apart. All of it in the C locale.

use std::collections::BTreeMap;

/// What dpkg-query is asked for of each installed package.
pub const DPKG_FORMAT: &str = "${binary:Package}\\t${db:Status-Status}\\t${db:Status-Want}\\t${Version}\\t${source:Package}\\n";

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub version: String,
    /// The source package that it was built from. What comes from one source belongs together.
    pub source: String,
    /// The administrator wants it to stay as it is.
    pub is_held: bool,
}

/// Everything that is installed, by name, from what dpkg-query printed with [`DPKG_FORMAT`].
pub fn installed(text: &str) -> BTreeMap<String, Installed> {
    let package = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?;
        let is_installed = fields.next()? == "installed";
        let is_held = fields.next()? == "hold";
        let version = fields.next()?.to_owned();
        let source = fields.next()?.to_owned();
        is_installed.then(|| {
            let installed = Installed {
                version,
                source,
                is_held,
            };
            (name.to_owned(), installed)
        })
    };
    text.lines().filter_map(package).collect()
}

/// The source packages of binary packages, from `apt-cache show --no-all-versions`.
pub fn sources(text: &str) -> BTreeMap<String, String> {
    let package = |paragraph: &str| {
        let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name));
        let name = field("Package: ")?;
        // A version in brackets follows where it is not that of the binary package.
        let source = field("Source: ").and_then(|source| source.split_whitespace().next());
        Some((name.to_owned(), source.unwrap_or(name).to_owned()))
    };
    text.split("\n\n").filter_map(package).collect()
}

/// Which versions of a package apt knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What `apt-get install` would take.
    pub candidate: Option<String>,
    /// Newest first.
    versions: Vec<Version>,
}

#[derive(Debug, PartialEq, Eq)]
struct Version {
    version: String,
    /// The archives that have it: priority, and the release's name. Empty if it is only installed.
    archives: Vec<(i64, String)>,
}

impl Policy {
    /// The version that the archives prefer, whatever is installed.
    pub fn of_distribution(&self) -> Option<&str> {
        let priority = |version: &Version| version.archives.iter().map(|(p, _)| *p).max();
        let best = self.versions.iter().filter_map(priority).max()?;
        let mut versions = self.versions.iter();
        let version = versions.find(|version| priority(version) == Some(best))?;
        Some(&version.version)
    }

    /// The release that has this very version.
    pub fn release_of(&self, version: &str) -> Option<&str> {
        let version = self.versions.iter().find(|v| v.version == version)?;
        version
            .archives
            .first()
            .map(|(_, release)| release.as_str())
    }
}

/// What `apt-cache policy NAME...` printed.
pub fn policies(text: &str) -> BTreeMap<String, Policy> {
    let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
    let mut policy = &mut Policy::default();
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.contains(' ')) {
            policy = policies.entry(name.to_owned()).or_default();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().filter(|w| *w != "***").collect();
        match words[..] {
            ["Candidate:", "(none)"] => policy.candidate = None,
            ["Candidate:", version] => policy.candidate = Some(version.to_owned()),
            // What is installed; no archive.
            [_, "/var/lib/dpkg/status"] => {}
            [priority, _, archive, ..] if archive.contains('/') => {
                let release = archive.split('/').next().unwrap_or(archive).to_owned();
                if let (Some(version), Ok(priority)) =
                    (policy.versions.last_mut(), priority.parse())
                {
                    version.archives.push((priority, release));
                }
            }
            [version, priority, ..] if priority.parse::<i64>().is_ok() => {
                policy.versions.push(Version {
                    version: version.to_owned(),
                    archives: Vec::new(),
                });
            }
            _ => {}
        }
    }
    policies
}

/// What `apt-get --simulate install` would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Simulation {
    /// Name and version of what it would remove.
    pub removed: Vec<(String, String)>,
    /// Name and new version of what it would install, upgrade or downgrade.
    pub installed: BTreeMap<String, String>,
}

/// Reads its lines `Remv NAME [OLD]` and `Inst NAME [OLD] (NEW ORIGIN [ARCHITECTURE])`.
pub fn simulation(text: &str) -> Simulation {
    let mut simulation = Simulation::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Remv"), Some(name)) => {
                let version = words.next().unwrap_or_default();
                let version = version.trim_matches(['[', ']']).to_owned();
                simulation.removed.push((name.to_owned(), version));
            }
            (Some("Inst"), Some(name)) => {
                if let Some(version) = words.find_map(|word| word.strip_prefix('(')) {
                    simulation
                        .installed
                        .insert(name.to_owned(), version.to_owned());
                }
            }
            _ => {}
        }
    }
    simulation
}

/// The upstream part of a Debian version: 10.0.2+ds of `1:10.0.2+ds-2+deb13u1`.
pub fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version
        .rsplit_once('-')
        .map_or(version, |(upstream, _)| upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with backports' qemu-utils and the sources of bookworm and bookworm-backports.
    const POLICY: &str = "\
qemu-system-x86:
  Installed: (none)
  Candidate: 1:7.2+dfsg-7+deb12u18+b3
  Version table:
     1:10.0.2+ds-2+deb13u1~bpo12+1 100
        100 http://deb.debian.org/debian bookworm-backports/main amd64 Packages
     1:7.2+dfsg-7+deb12u18+b3 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
     1:7.2+dfsg-7+deb12u15 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
qemu-utils:
  Installed: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Candidate: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Version table:
 *** 1:10.0.2+ds-2+deb13u1~bpo12+1 100
        100 http://deb.debian.org/debian bookworm-backports/main amd64 Packages
        100 /var/lib/dpkg/status
     1:7.2+dfsg-7+deb12u18+b3 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
ca-certificates:
  Installed: 20230311
  Candidate: 20230311
  Version table:
 *** 20230311 500 (phased 10%)
        100 /var/lib/dpkg/status
linux-image:
  Installed: (none)
  Candidate: (none)
  Version table:
";

    #[test]
    fn policy_tells_versions_and_releases() {
        let policies = policies(POLICY);
        let names: Vec<&str> = policies.keys().map(String::as_str).collect();
        let expected = [
            "ca-certificates",
            "linux-image",
            "qemu-system-x86",
            "qemu-utils",
        ];
        assert_eq!(names, expected);
        let (old, new) = ("1:7.2+dfsg-7+deb12u18+b3", "1:10.0.2+ds-2+deb13u1~bpo12+1");
        let utils = &policies["qemu-utils"];
        assert_eq!(utils.candidate.as_deref(), Some(new));
        assert_eq!(utils.of_distribution(), Some(old));
        assert_eq!(utils.release_of(new), Some("bookworm-backports"));
        assert_eq!(utils.release_of("1:9.0"), None);
        assert_eq!(policies["qemu-system-x86"].candidate.as_deref(), Some(old));
        // Installed, and in no archive.
        let certificates = &policies["ca-certificates"];
        assert_eq!(certificates.candidate.as_deref(), Some("20230311"));
        assert_eq!(certificates.of_distribution(), None);
        assert_eq!(certificates.release_of("20230311"), None);
        assert_eq!(policies["linux-image"], Policy::default());
    }

    #[test]
    fn simulation_tells_what_is_removed_and_installed() {
        let text = "\
Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]
Inst systemd [252.38-1~deb12u1] (252.39-1~deb12u2 Debian:12.15/oldstable [amd64]) []
Inst cpio (2.13+dfsg-7.1 Debian:12.15/oldstable [amd64])
Conf cpio (2.13+dfsg-7.1 Debian:12.15/oldstable [amd64])
";
        let simulation = simulation(text);
        let removed = ("qemu-utils".into(), "1:10.0.2+ds-2+deb13u1~bpo12+1".into());
        assert_eq!(simulation.removed, [removed]);
        let installed: Vec<_> = simulation.installed.into_iter().collect();
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(
            installed,
            [
                pair("cpio", "2.13+dfsg-7.1"),
                pair("systemd", "252.39-1~deb12u2")
            ]
        );
    }

    #[test]
    fn only_what_dpkg_calls_installed_is_there() {
        let text = "\
g++\tinstalled\tinstall\t4:12.2.0-3\tgcc-defaults
qemu-utils\tinstalled\thold\t1:10.0.2+ds-2\tqemu
cpio\tnot-installed\tunknown\t\t
fio\tconfig-files\tdeinstall\t3.33-3\tfio
";
        let installed = installed(text);
        let names: Vec<&str> = installed.keys().map(String::as_str).collect();
        assert_eq!(names, ["g++", "qemu-utils"]);
        assert!(installed["qemu-utils"].is_held && !installed["g++"].is_held);
        assert_eq!(installed["g++"].source, "gcc-defaults");
    }

    #[test]
    fn source_is_the_name_where_none_is_given() {
        let text = "\
Package: qemu-system-x86
Source: qemu (1:7.2+dfsg-7+deb12u18)
Version: 1:7.2+dfsg-7+deb12u18+b3

Package: fio
Version: 3.33-3
";
        let sources = sources(text);
        assert_eq!(sources["qemu-system-x86"], "qemu");
        assert_eq!(sources["fio"], "fio");
        assert_eq!(sources.len(), 2);
    }

    #[test]
    fn upstream_is_without_epoch_and_revision() {
        assert_eq!(upstream("1:10.0.2+ds-2+deb13u1~bpo12+1"), "10.0.2+ds");
        assert_eq!(upstream("20230311"), "20230311");
        assert_eq!(upstream("2.13+dfsg-7.1"), "2.13+dfsg");
    }
}
