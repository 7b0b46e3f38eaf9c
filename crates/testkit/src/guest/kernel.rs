//! The guest's kernel and its modules: Debian's cloud kernel, as installed on the host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const FLAVOUR: &str = "-cloud-amd64";

/// An installed kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The bzImage.
    pub(super) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest one that has its modules.
    pub(super) fn newest() -> Result<Self> {
        let entries = fs::read_dir("/boot").context("/boot")?;
        entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let release = name.strip_prefix("vmlinuz-")?.to_owned();
                let modules = Path::new("/lib/modules").join(&release);
                (release.ends_with(FLAVOUR) && modules.join("modules.dep").exists()).then(|| {
                    let image = Path::new("/boot").join(name);
                    (version_key(&release), Self { image, modules })
                })
            })
            .max_by(|(one, _), (other, _)| one.cmp(other))
            .map(|(_, kernel)| kernel)
            .with_context(|| {
                format!(
                    "no /boot/vmlinuz-*{FLAVOUR} with its /lib/modules; the guest needs the \
                     package linux-image-cloud-amd64"
                )
            })
    }

    /// The files of these modules and of all they need, in an order in which they can be loaded.
    /// What is built into the kernel is left out.
    pub(super) fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
        let paths = resolve(names, &dependencies, &builtin)?;
        Ok(paths.iter().map(|path| self.modules.join(path)).collect())
    }
}

/// The numbers in a release, so that 6.12 is newer than 6.1.
fn version_key(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// A module's name from its path: without directory and ".ko", ".ko.xz" or the like.
fn module_name(path: &str) -> Option<&str> {
    path.rsplit('/').next()?.split(".ko").next()
}

fn resolve<'a>(names: &[&str], dependencies: &'a str, builtin: &str) -> Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for &name in names {
        let line = dependencies.lines().find_map(|line| {
            let (path, needs) = line.split_once(':')?;
            (module_name(path) == Some(name)).then_some((path, needs))
        });
        let Some((path, needs)) = line else {
            builtin
                .lines()
                .find(|path| module_name(path) == Some(name))
                .with_context(|| format!("the kernel has no module {name}"))?;
            continue;
        };
        // modules.dep lists all that is needed, with that first which must be loaded last.
        for path in needs.split_ascii_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let dependencies = "kernel/a.ko: kernel/x/b.ko kernel/c.ko\nkernel/x/b.ko: kernel/c.ko\n\
                            kernel/c.ko:\nkernel/d.ko.xz: kernel/c.ko\nkernel/ab.ko:\n";
        let builtin = "kernel/fs/e.ko\n";
        let order = resolve(&["a", "d", "e"], dependencies, builtin).unwrap();
        assert_eq!(
            order,
            [
                "kernel/c.ko",
                "kernel/x/b.ko",
                "kernel/a.ko",
                "kernel/d.ko.xz"
            ]
        );
        let error = resolve(&["f"], dependencies, builtin).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module f");
    }

    #[test]
    fn releases_are_compared_by_number() {
        let newer = |one, other| version_key(one) > version_key(other);
        assert!(newer("6.12.1-2-cloud-amd64", "6.1.0-56-cloud-amd64"));
        assert!(newer("6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"));
    }
}
