//! Iothreads: objects, and the daemon's own for exports that name none.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use block::Export;
use iothread::{Config, Handle, IoThread, PollParams, Unavailable};
use qapi::options::{BlockExportIothreads, IothreadOptions};

use crate::setup_error::SetupError;

/// The name of the daemon's own iothread; no object can have it.
const OWN: &str = "#iothread";

#[derive(Debug)]
struct Named {
    id: String,
    thread: IoThread,
    /// The exports that were put on it; those that are gone do not count.
    users: Vec<Weak<dyn Export>>,
    /// Shared with those who are making an export on it.
    lent: Arc<()>,
}

/// Iothreads for an export that is being made: they stay as long as this exists.
#[derive(Debug)]
pub struct Lent {
    /// At least one.
    pub handles: Vec<Handle>,
    #[expect(dead_code, reason = "held for its drop")]
    kept: Vec<Arc<()>>,
}

/// All iothreads of the daemon; they end when this is dropped.
#[derive(Debug, Default)]
pub struct Iothreads {
    own: Option<IoThread>,
    named: Vec<Named>,
    /// Where exports that name no iothread are, by the name of their node.
    homes: BTreeMap<String, String>,
    /// Why there is no io_uring: what the log has been told.
    told: Vec<Unavailable>,
}

impl Iothreads {
    /// Whether there is one of that name.
    pub fn contains(&self, id: &str) -> bool {
        self.named.iter().any(|named| named.id == id)
    }

    /// That of an object.
    pub fn handle(&self, id: &str) -> Option<Handle> {
        let named = self.named.iter().find(|named| named.id == id);
        named.map(|named| named.thread.handle())
    }

    /// Starts one, whose name is not taken.
    ///
    /// # Errors
    /// If the system has no thread for us.
    pub fn add(&mut self, id: &str, options: &IothreadOptions) -> Result<(), SetupError> {
        let thread = self.spawn(config(id, options))?;
        self.named.push(Named {
            id: id.to_owned(),
            thread,
            users: Vec::new(),
            lent: Arc::default(),
        });
        Ok(())
    }

    /// Takes one out that no export uses.
    ///
    /// # Errors
    /// If there is none of such a name, or an export uses it.
    pub fn remove(&mut self, id: &str) -> Result<IoThread, SetupError> {
        let at = self.named.iter().position(|named| named.id == id);
        let at = at.ok_or_else(|| SetupError::no_object(id))?;
        let named = &self.named[at];
        let mut users = named.users.iter();
        if users.any(|user| user.strong_count() > 0) || Arc::strong_count(&named.lent) > 1 {
            return Err(SetupError::object_in_use(id));
        }
        self.homes.retain(|_, home| home != id);
        Ok(self.named.swap_remove(at).thread)
    }

    /// Exports of `node` that name no iothread are on this one from now on, which there is; none: on the
    /// daemon's own.
    pub fn set_home(&mut self, node: &str, iothread: Option<&str>) {
        match iothread {
            Some(iothread) => self.homes.insert(node.to_owned(), iothread.to_owned()),
            None => self.homes.remove(node),
        };
    }

    /// Where exports of `node` are that name no iothread; none: on the daemon's own.
    pub fn home_of(&self, node: &str) -> Option<BlockExportIothreads> {
        let home = self.homes.get(node).cloned();
        home.map(BlockExportIothreads::Single)
    }

    /// Forgets all nodes but those that `is_there` knows.
    pub fn retain_homes(&mut self, is_there: impl Fn(&str) -> bool) {
        self.homes.retain(|node, _| is_there(node));
    }

    /// Whether `export` is on this iothread and on no other; none: on the daemon's own.
    pub fn serves_alone(&self, iothread: Option<&str>, export: &Arc<dyn Export>) -> bool {
        let is_user = |known: &Weak<dyn Export>| {
            known
                .upgrade()
                .is_some_and(|known| Arc::ptr_eq(&known, export))
        };
        let served = self
            .named
            .iter()
            .filter(|named| named.users.iter().any(is_user));
        served.map(|named| named.id.as_str()).eq(iothread)
    }

    /// `export` was put on the iothreads that it `wanted`.
    pub fn use_by(&mut self, wanted: Option<&BlockExportIothreads>, export: &Arc<dyn Export>) {
        let wanted = wanted.map_or(&[][..], BlockExportIothreads::names);
        for named in &mut self.named {
            if wanted.contains(&named.id) {
                named.users.retain(|user| user.strong_count() > 0);
                named.users.push(Arc::downgrade(export));
            }
        }
    }

    /// The iothreads of an export that is about to be made.
    ///
    /// # Errors
    /// If there is none of such a name, or the daemon's own cannot be started.
    pub fn lend(&mut self, wanted: Option<&BlockExportIothreads>) -> Result<Lent, SetupError> {
        let Some(wanted) = wanted else {
            let handles = vec![self.own()?];
            return Ok(Lent {
                handles,
                kept: Vec::new(),
            });
        };
        let names = wanted.names().iter();
        let named: Vec<_> = names
            .map(|name| self.named(name))
            .collect::<Result<_, _>>()?;
        Ok(Lent {
            handles: named.iter().map(|named| named.thread.handle()).collect(),
            kept: named.iter().map(|named| Arc::clone(&named.lent)).collect(),
        })
    }

    fn named(&self, name: &str) -> Result<&Named, SetupError> {
        let found = self.named.iter().find(|named| named.id == name);
        found.ok_or_else(|| SetupError::new(format!("iothread \"{name}\" not found")))
    }

    /// The daemon's own iothread, which is started if it is not running.
    ///
    /// # Errors
    /// If the system has no thread for us.
    pub fn own(&mut self) -> Result<Handle, SetupError> {
        if let Some(own) = &self.own {
            return Ok(own.handle());
        }
        let own = self.spawn(config(OWN, &IothreadOptions::default()))?;
        Ok(self.own.insert(own).handle())
    }

    /// Starts one, with io_uring if that is to be had.
    fn spawn(&mut self, config: Config) -> Result<IoThread, SetupError> {
        let thread = IoThread::spawn(config).map_err(|error| SetupError::new(error.to_string()))?;
        let handle = thread.handle();
        if let Some(why) = handle.fallback()
            && is_news(&mut self.told, why)
        {
            tracing::warn!(
                "iothread '{}': {why}: threads do the I/O instead",
                handle.name()
            );
        }
        Ok(thread)
    }
}

/// Whether the log is to be told of `why`. What forbids io_uring does so for all iothreads, and is told once;
/// memory is short for one and not for the other.
fn is_news(told: &mut Vec<Unavailable>, why: Unavailable) -> bool {
    if matches!(why, Unavailable::Memory { .. }) {
        return true;
    }
    let news = !told.contains(&why);
    if news {
        told.push(why);
    }
    news
}

/// Has a thread go by what its options say now.
pub fn apply(thread: &Handle, options: &IothreadOptions) {
    let config = config(thread.name(), options);
    thread.set_poll_params(PollParams {
        max_ns: config.poll_max_ns,
        grow: config.poll_grow,
        shrink: config.poll_shrink,
    });
    thread.set_aio_max_batch(config.aio_max_batch);
    // A thread that has ended needs no workers.
    let _ = thread.set_pool_size(config.thread_pool_min, config.thread_pool_max);
}

fn config(name: &str, options: &IothreadOptions) -> Config {
    let default = Config::default();
    // Options are checked: never negative. More than fits means as much as there is.
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let small = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
    Config {
        name: name.to_owned(),
        poll_max_ns: options.poll_max_ns.map_or(default.poll_max_ns, number),
        poll_grow: options.poll_grow.map_or(default.poll_grow, small),
        poll_shrink: options.poll_shrink.map_or(default.poll_shrink, small),
        thread_pool_min: options
            .thread_pool_min
            .map_or(default.thread_pool_min, small),
        thread_pool_max: options
            .thread_pool_max
            .map_or(default.thread_pool_max, small),
        aio_max_batch: (options.aio_max_batch).map_or(default.aio_max_batch, small),
        ..default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_a_lack_of_memory_each_time() {
        let told = &mut Vec::new();
        assert!(is_news(told, Unavailable::Forbidden));
        assert!(!is_news(told, Unavailable::Forbidden));
        for _ in 0..2 {
            assert!(is_news(told, Unavailable::Memory { entries: 256 }));
        }
        assert!(is_news(told, Unavailable::NotSupported));
        assert!(!is_news(told, Unavailable::Forbidden));
    }
}
