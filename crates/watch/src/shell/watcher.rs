//! The process: its configuration, its machines, its signals, its end.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use journal::{Journal, JournalError};
use listener::{Access, SocketError};
use metrics::{Metrics, NameError, Server, ServerError};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::config::{Config, ConfigError, Section};
use crate::core::record::{Record, What};

use super::context::Context;
use super::control;
use super::desk::Desk;
use super::figures::Figures;
use super::fleet::Fleet;
use super::pairs::Pairs;
use super::service;
use super::session::{Outcome, Session};
use super::sockets;
use super::teller::Teller;

/// How often it is looked for new sockets.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A loop that has not come round for so long hangs.
const HANGS_AFTER: u64 = 30;
/// What goes on at the end is waited for so long.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub config: PathBuf,
    /// Decide, say it, and do nothing.
    pub dry_run: bool,
    /// Look at each machine once, do what is to be done, and end.
    pub once: bool,
}

/// Why it is not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The control socket: for one thing, another watcher is there.
    #[error("the control socket: {0}")]
    Control(#[from] SocketError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] ServerError),
    /// A mistake of the code.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What is refused.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// Watches until SIGTERM or SIGINT; [`Options::once`]: until all was looked at. Returns whether all is well.
///
/// # Errors
/// Why it cannot begin.
pub fn run(options: &Options) -> Result<bool, WatchError> {
    let config = Config::read(&options.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(system("an event loop"))?;
    let result = runtime.block_on(watch(config, options));
    // Storage that hangs keeps a thread.
    runtime.shutdown_background();
    result
}

/// The sockets that a configuration means and that are there now.
#[must_use]
pub fn sockets_of(config: &Config) -> Vec<PathBuf> {
    let patterns = config.machines.iter().flat_map(|section| &section.sockets);
    patterns.flat_map(sockets::find).collect()
}

fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> WatchError {
    let what = what.into();
    move |source| WatchError::System {
        what,
        source: source.into(),
    }
}

fn make_directory(path: &Path) -> Result<(), WatchError> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(system(format!("the directory {}", path.display())))
}

async fn watch(config: Config, options: &Options) -> Result<bool, WatchError> {
    make_directory(&config.runtime_directory)?;
    // One for a runtime directory; before the journal, whose error would say less.
    let control = match options.once || options.dry_run {
        true => None,
        false => Some(control::bind(&config.control_socket())?),
    };
    let journal = match &config.journal {
        // A trial leaves nothing behind.
        Some(_) if options.dry_run => None,
        Some(path) => {
            make_directory(path.parent().unwrap_or_else(|| Path::new("/")))?;
            Some(Journal::open(&journal::Options::new(path.clone()))?)
        }
        None => None,
    };
    let registry = Metrics::default();
    let fleet = Arc::new(Fleet::default());
    let figures = Figures::new(&registry, Arc::clone(&fleet))?;
    let prints = options.dry_run || options.once;
    let alert = config.alert.clone();
    let context = Arc::new(Context {
        desk: Desk::new(config.parallel, config.limits),
        teller: Teller::new(journal, figures, alert, prints),
        fleet: Arc::clone(&fleet),
        pairs: Pairs::default(),
        numbers: Arc::default(),
        runtime_directory: config.runtime_directory.clone(),
        dry_run: options.dry_run,
        once: options.once,
        began: Instant::now(),
    });
    let round = Arc::new(AtomicU64::new(0));
    let server = match &config.listen {
        Some(address) if !options.once => {
            let (round, began) = (Arc::clone(&round), context.began);
            registry.health(move || {
                let since = began
                    .elapsed()
                    .as_secs()
                    .saturating_sub(round.load(Ordering::Relaxed));
                match since {
                    HANGS_AFTER.. => Err(format!("the watcher has not come round for {since} s")),
                    _ => Ok(()),
                }
            });
            Some(Server::start(address, Access::default(), registry)?)
        }
        _ => None,
    };
    if let Some(port) = server.as_ref().and_then(Server::port) {
        tracing::info!("metrics at http://{port}/metrics");
    }
    if let Some(control) = control {
        tokio::spawn(control::serve(control, fleet, context.began));
    }
    context.teller.tell(&of_watcher(What::WatcherStarted));
    let mut watcher = Watcher {
        config,
        context,
        sessions: HashMap::new(),
        tasks: JoinSet::new(),
        well: true,
    };
    if options.once {
        watcher.once().await;
    } else {
        watcher.for_ever(&options.config, &round).await?;
    }
    watcher
        .context
        .teller
        .tell(&of_watcher(What::WatcherStopped));
    watcher.context.teller.finish().await;
    Ok(watcher.well)
}

fn of_watcher(what: What) -> Record {
    Record {
        machine: String::new(),
        disk: None,
        incident: None,
        what,
        alert: false,
    }
}

type Wanted = watch::Sender<Option<Arc<Section>>>;

struct Watcher {
    config: Config,
    context: Arc<Context>,
    sessions: HashMap<PathBuf, (Id, Wanted)>,
    tasks: JoinSet<Outcome>,
    well: bool,
}

impl Watcher {
    /// Begins a task for each socket that has none.
    fn look(&mut self) {
        for at in 0..self.config.machines.len() {
            let patterns = self.config.machines[at].sockets.clone();
            for socket in patterns.iter().flat_map(sockets::find) {
                if self.sessions.contains_key(&socket) {
                    continue;
                }
                let section = self.config.section(&socket.to_string_lossy()).cloned();
                let (wanted, section) = watch::channel(section);
                if let Some(session) =
                    Session::new(Arc::clone(&self.context), socket.clone(), section)
                {
                    let task = self.tasks.spawn(session.run());
                    self.sessions.insert(socket, (task.id(), wanted));
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!("the task of a machine has failed: {error}");
                (error.id(), Outcome::Open)
            }
        };
        self.well &= outcome != Outcome::Open;
        self.sessions.retain(|_, (task, _)| *task != id);
    }

    async fn once(&mut self) {
        self.look();
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.ended(ended);
        }
    }

    async fn for_ever(&mut self, path: &Path, round: &AtomicU64) -> Result<(), WatchError> {
        let on = |kind| signal(kind).map_err(system("signals"));
        let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        let mut hup: Signal = on(SignalKind::hangup())?;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let dog = service::interval();
        let mut fed = Instant::now();
        self.look();
        service::tell(NotifyState::Ready).await;
        loop {
            round.store(self.context.began.elapsed().as_secs(), Ordering::Relaxed);
            let feed = fed + dog.unwrap_or_default();
            tokio::select! {
                _ = looks.tick() => self.look(),
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                _ = hup.recv() => self.reload(path).await,
                _ = term.recv() => break,
                _ = int.recv() => break,
                () = sleep_until(feed), if dog.is_some() => {
                    fed = Instant::now();
                    service::tell(NotifyState::Watchdog).await;
                }
            }
        }
        service::tell(NotifyState::Stopping).await;
        // What goes on is not cut off: an extension that is killed half-way is of no use.
        for (_, wanted) in self.sessions.values() {
            wanted.send_replace(None);
        }
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_LIMIT, ending).await.is_err() {
            tracing::warn!(
                "what goes on has not ended within {} s",
                END_LIMIT.as_secs()
            );
        }
        Ok(())
    }

    /// Takes over a changed file. A bad one changes nothing.
    async fn reload(&mut self, path: &Path) {
        let owned = path.to_owned();
        let read = tokio::task::spawn_blocking(move || Config::read(&owned)).await;
        let config = match read {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => {
                return tracing::error!("the configuration stays as it is: {error}");
            }
            Err(error) => return tracing::error!("the configuration stays as it is: {error}"),
        };
        for (key, differs) in [
            (
                "runtime-directory",
                config.runtime_directory != self.config.runtime_directory,
            ),
            ("journal", config.journal != self.config.journal),
            ("listen", config.listen != self.config.listen),
            (
                "limits.parallel-extensions",
                config.parallel != self.config.parallel,
            ),
        ] {
            if differs {
                tracing::warn!("{key} has changed: that needs a restart");
            }
        }
        self.context.desk.set_limits(config.limits);
        self.context.teller.set_alert(config.alert.clone());
        for (socket, (_, wanted)) in &self.sessions {
            wanted.send_replace(config.section(&socket.to_string_lossy()).cloned());
        }
        self.config = config;
        self.look();
        tracing::info!("the configuration was read again");
    }
}
