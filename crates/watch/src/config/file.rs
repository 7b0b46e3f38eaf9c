//! The file as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metrics::Address;

use crate::core::ledger::Limits;
use crate::settings::Program;

use super::error::ConfigError;
use super::machines::Section;
use super::raw::Raw;
use super::wishes;

/// How many extensions go on at a time unless said otherwise.
const PARALLEL: u32 = 4;

/// What is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where locks and the control socket are.
    pub runtime_directory: PathBuf,
    /// The journal; none: there is none.
    pub journal: Option<PathBuf>,
    /// Where metrics are served, if they are.
    pub listen: Option<Address>,
    /// What is run when somebody has to be woken.
    pub alert: Option<Program>,
    /// Most extensions at a time.
    pub parallel: u32,
    /// What all machines together may have.
    pub limits: Limits,
    /// The machines, by where they are. The first section that a socket matches is its own.
    pub machines: Vec<Arc<Section>>,
}

/// Where locks and the control socket are unless said otherwise.
pub const RUNTIME_DIRECTORY: &str = "/run/standfast-watch";

/// The journal unless said otherwise.
pub const JOURNAL: &str = "/var/lib/standfast-watch/journal";

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or not be understood.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|error| error.of(path)),
            Err(error) => Err(ConfigError::new(format!("cannot be read: {error}")).of(path)),
        }
    }

    /// From the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, first things first.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::toml(&error))?;
        let defaults = raw.defaults.wishes();
        // They are not all: a machine may add what is missing.
        defaults.check("defaults")?;
        let machines = raw.machines.into_iter().enumerate();
        let machines =
            machines.map(|(at, machine)| Section::new(at, machine, &defaults).map(Arc::new));
        let machines: Vec<_> = machines.collect::<Result<_, _>>()?;
        if machines.is_empty() {
            let why = "there are no machines: add a section [[machines]] with sockets = [\"/path/of/qmp.sock\"]";
            return Err(ConfigError::new(why.to_owned()));
        }
        let listen = raw.listen.map(|address| address.parse()).transpose();
        let listen = listen.map_err(|error| ConfigError::new(format!("listen: {error}")))?;
        let alert = raw.alert_command.map(|argv| {
            wishes::program(
                "alert-command",
                argv,
                raw.alert_time_limit.map(|limit| limit.0),
            )
        });
        let limits = raw.limits;
        let parallel = limits.parallel_extensions.unwrap_or(PARALLEL);
        if parallel == 0 {
            let why =
                "limits.parallel-extensions: 0 would extend nothing; use strategy = \"leave\"";
            return Err(ConfigError::new(why.to_owned()));
        }
        let runtime_directory = absolute(
            "runtime-directory",
            raw.runtime_directory,
            RUNTIME_DIRECTORY,
        )?;
        let journal = match raw.journal.as_deref() {
            Some("") => None,
            _ => Some(absolute("journal", raw.journal, JOURNAL)?),
        };
        Ok(Self {
            runtime_directory,
            journal,
            listen,
            alert: alert.transpose()?,
            parallel,
            limits: Limits {
                per_hour: limits.extensions_per_hour.unwrap_or(60),
                bytes_per_day: limits.bytes_per_day.map_or(10 << 40, |bytes| bytes.0),
            },
            machines,
        })
    }

    /// The section of a socket.
    #[must_use]
    pub fn section(&self, socket: &str) -> Option<&Arc<Section>> {
        self.machines.iter().find(|section| section.has(socket))
    }

    /// Where the running watcher is asked how it is.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_directory.join("control.sock")
    }
}

fn absolute(key: &str, given: Option<String>, default: &str) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(given.unwrap_or_else(|| default.to_owned()));
    match path.is_absolute() {
        true => Ok(path),
        false => Err(ConfigError::new(format!(
            "{key}: '{}' is not an absolute path",
            path.display()
        ))),
    }
}
