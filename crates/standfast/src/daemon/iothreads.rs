//! Iothreads: those of `--object iothread`, and the daemon's own for exports that name none.

use iothread::{Config, Handle, IoThread};
use qapi::options::{BlockExportIothreads, IothreadOptions, ObjectOptions, ObjectVariant};

use super::setup_error::SetupError;

/// The name of the daemon's own iothread; no object can have it.
const OWN: &str = "#iothread";

/// All iothreads of the daemon; they end when this is dropped.
#[derive(Debug, Default)]
pub struct Iothreads {
    own: Option<IoThread>,
    named: Vec<(String, IoThread)>,
}

impl Iothreads {
    /// Executes `--object`.
    ///
    /// # Errors
    /// If the id is taken, or the kernel has no io_uring for us.
    pub fn add(&mut self, options: &ObjectOptions) -> Result<(), SetupError> {
        let id = &options.base.id;
        if self.named.iter().any(|(known, _)| known == id) {
            return Err(SetupError::duplicate_object(id));
        }
        let ObjectVariant::Iothread(iothread) = &options.variant;
        let thread = spawn(config(id, iothread))?;
        self.named.push((id.clone(), thread));
        Ok(())
    }

    /// The iothreads of an export, at least one.
    ///
    /// # Errors
    /// If there is none of such a name, or the daemon's own cannot be started.
    pub fn get(
        &mut self,
        wanted: Option<&BlockExportIothreads>,
    ) -> Result<Vec<Handle>, SetupError> {
        let Some(wanted) = wanted else {
            return Ok(vec![self.own()?]);
        };
        let names = wanted.names().iter();
        names.map(|name| self.named(name)).collect()
    }

    fn named(&self, name: &str) -> Result<Handle, SetupError> {
        match self.named.iter().find(|(id, _)| id == name) {
            Some((_, thread)) => Ok(thread.handle()),
            None => Err(SetupError::new(format!("iothread \"{name}\" not found"))),
        }
    }

    /// The daemon's own iothread, which is started if it is not running.
    ///
    /// # Errors
    /// If the kernel has no io_uring for us.
    pub fn own(&mut self) -> Result<Handle, SetupError> {
        if let Some(own) = &self.own {
            return Ok(own.handle());
        }
        let own = spawn(config(OWN, &IothreadOptions::default()))?;
        Ok(self.own.insert(own).handle())
    }
}

fn spawn(config: Config) -> Result<IoThread, SetupError> {
    IoThread::spawn(config).map_err(|error| SetupError::new(error.to_string()))
}

fn config(name: &str, options: &IothreadOptions) -> Config {
    let default = Config::default();
    // Options are checked: never negative. More than fits means as much as there is.
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let factor = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
    Config {
        name: name.to_owned(),
        poll_max_ns: options.poll_max_ns.map_or(default.poll_max_ns, number),
        poll_grow: options.poll_grow.map_or(default.poll_grow, factor),
        poll_shrink: options.poll_shrink.map_or(default.poll_shrink, factor),
        ..default
    }
}
