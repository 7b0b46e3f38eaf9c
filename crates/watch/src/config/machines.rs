//! A section of machines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::core::machine::Rules;
use crate::core::view::Disk;
use crate::pattern::Pattern;
use crate::settings::{Selector, Settings};

use super::error::ConfigError;
use super::raw::{RawDisk, RawMachine};
use super::wishes::Wishes;

/// Machines, by where they are, and what is wanted for their disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What the machine is called; none: as its socket.
    pub name: Option<String>,
    /// Where they are: paths with patterns.
    pub sockets: Vec<Pattern>,
    /// Where the VMM is with which the machine is linked, if that is watched, too: a path, in which `*` is the socket's
    /// name up to its last point.
    pub vmm: Option<String>,
    /// What is wanted for all disks that no selector names.
    pub settings: Arc<Settings>,
    /// What is wanted for others; the first that matches counts.
    pub disks: Vec<(Selector, Arc<Settings>)>,
}

impl Section {
    /// The section number `at`, on what is wished in all.
    pub(super) fn new(at: usize, raw: RawMachine, defaults: &Wishes) -> Result<Self, ConfigError> {
        let own = raw.wishes();
        let first = raw.sockets.first().map(String::as_str).unwrap_or_default();
        let called = format!("machines[{at}] ({})", raw.name.as_deref().unwrap_or(first));
        let wrong = |why: &str| Err(ConfigError::new(format!("{called}: {why}")));
        if raw.sockets.is_empty() {
            return wrong("sockets: name one, as sockets = [\"/path/of/qmp.sock\"]");
        }
        if let Some(relative) = raw.sockets.iter().find(|socket| !socket.starts_with('/')) {
            return wrong(&format!("sockets: '{relative}' is not an absolute path"));
        }
        let plain = raw.sockets.iter().all(|socket| Pattern::is_plain(socket));
        if raw.name.is_some() && (raw.sockets.len() > 1 || !plain) {
            return wrong("name: several machines cannot have one name");
        }
        if let Some(vmm) = &raw.vmm {
            let several = raw.sockets.len() > 1 || !plain;
            if !vmm.starts_with('/') || vmm.matches('*').count() > 1 {
                return wrong(&format!(
                    "vmm: '{vmm}' is not an absolute path in which '*' stands for a socket's name"
                ));
            }
            if several && !vmm.contains('*') {
                return wrong(
                    "vmm: several machines cannot have one VMM; '*' stands for a socket's name up to its last point",
                );
            }
        }
        let wishes = own.clone().over(defaults);
        let settings = Arc::new(wishes.settings(&called, &own)?);
        let disks = raw.disks.into_iter().enumerate();
        let disks = disks
            .map(|(number, disk)| Self::disk(&format!("{called}: disks[{number}]"), disk, &wishes));
        Ok(Self {
            name: raw.name,
            vmm: raw.vmm,
            sockets: raw
                .sockets
                .iter()
                .map(|socket| Pattern::new(socket))
                .collect(),
            settings,
            disks: disks.collect::<Result<_, _>>()?,
        })
    }

    fn disk(
        called: &str,
        raw: RawDisk,
        above: &Wishes,
    ) -> Result<(Selector, Arc<Settings>), ConfigError> {
        let own = raw.wishes();
        let mut settings = own.clone().over(above).settings(called, &own)?;
        let wrong = |why: String| ConfigError::new(format!("{called}: {why}"));
        if raw.node.is_none() && raw.qdev.is_none() && raw.file.is_none() {
            return Err(wrong("say which: by node, qdev or file".to_owned()));
        }
        settings.path = raw.path.map(PathBuf::from);
        if let Some(path) = settings
            .path
            .as_deref()
            .filter(|path| !Path::is_absolute(path))
        {
            return Err(wrong(format!(
                "path: '{}' is not an absolute path",
                path.display()
            )));
        }
        let pattern = |text: Option<String>| text.as_deref().map(Pattern::new);
        let selector = Selector {
            node: pattern(raw.node),
            qdev: pattern(raw.qdev),
            file: pattern(raw.file),
        };
        Ok((selector, Arc::new(settings)))
    }

    /// Whether a socket is one of these.
    pub(super) fn has(&self, socket: &str) -> bool {
        self.sockets.iter().any(|pattern| pattern.matches(socket))
    }

    /// The socket of the VMM that is linked with the machine behind a socket.
    #[must_use]
    pub fn vmm_of(&self, socket: &Path) -> Option<PathBuf> {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy();
        Some(PathBuf::from(self.vmm.as_ref()?.replace('*', &name)))
    }

    /// What the machine behind a socket is called.
    #[must_use]
    pub fn name_of(&self, socket: &Path) -> String {
        let of_path = || socket.display().to_string();
        self.name.clone().unwrap_or_else(of_path)
    }
}

impl Selector {
    /// Whether a disk is meant.
    fn selects(&self, disk: &Disk) -> bool {
        let is = |pattern: &Option<Pattern>, names: &[Option<&str>]| {
            pattern
                .as_ref()
                .is_none_or(|pattern| names.iter().flatten().any(|name| pattern.matches(name)))
        };
        is(&self.node, &[disk.node.as_deref()])
            && is(&self.qdev, &[disk.qdev.as_deref(), Some(&disk.name)])
            && is(&self.file, &[disk.file.as_deref()])
    }
}

impl Rules for Section {
    fn of(&self, disk: &Disk) -> Arc<Settings> {
        let found = self
            .disks
            .iter()
            .find(|(selector, _)| selector.selects(disk));
        Arc::clone(found.map_or(&self.settings, |(_, settings)| settings))
    }
}
