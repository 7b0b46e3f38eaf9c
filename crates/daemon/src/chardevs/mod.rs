//! `--chardev` and `--monitor`, `chardev-add` and its like: where QMP sessions come from.
//!
//! A character device is made from its options ([`source`], with [`socket`], [`pty`], [`ring`],
//! [`mod@file`]), and waits until a monitor takes it; what it needs to be served is then in [`serve`].

mod file;
mod pty;
mod ring;
mod serve;
mod socket;
mod source;

pub use self::source::say_on_stdout;

use std::sync::Arc;

use assembly::{SetupError, tidy_up};
use block::BoxFuture;
use monitor::{ChardevObject, Descriptors, Monitor};
use parking_lot::Mutex;
use qapi::QmpError;
use qapi::options::{ChardevBackend, ChardevOptions, MonitorOptions};
use qapi::types::{ChardevInfo, ChardevReturn};
use qapi::wire::Layout;
use tokio::task::JoinSet;

use self::file::FileWriter;
use self::ring::Ring;
use self::serve::Served;
use self::source::{Made, Maker, Shown};

/// How `query-chardev` calls standard input and output.
const STDIO: &str = "stdio";

/// A character device.
#[derive(Debug)]
struct Chardev {
    id: String,
    shown: Shown,
    ring: Option<Arc<Ring>>,
    log: Option<FileWriter>,
    /// What a monitor needs. None: one has taken it.
    served: Option<Served>,
}

/// A monitor that waits for the end of the setup.
#[derive(Debug)]
struct Waiting {
    id: String,
    served: Served,
    layout: Layout,
}

/// All character devices, and the monitors that wait for the end of the setup.
#[derive(Debug)]
pub struct Chardevs {
    maker: Maker,
    all: Mutex<Vec<Chardev>>,
    waiting: Mutex<Vec<Waiting>>,
    /// What is to be said of them when all are there.
    said: Mutex<Vec<String>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Chardevs {
    /// None yet. `in_background`: the daemon has no standard streams. Named descriptors are looked up in
    /// `descriptors`.
    pub fn new(in_background: bool, descriptors: Arc<Descriptors>) -> Self {
        Self {
            maker: Maker::new(in_background, descriptors),
            all: Mutex::default(),
            waiting: Mutex::default(),
            said: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    fn contains(&self, id: &str) -> bool {
        self.all.lock().iter().any(|known| known.id == id)
    }

    /// Executes `--chardev`; `option` is how it was written. With `wait=on` it returns when the first
    /// client has come.
    ///
    /// # Errors
    /// If the id is taken, or it cannot be had.
    pub async fn add_option(
        &self,
        options: ChardevOptions,
        option: &str,
    ) -> Result<(), SetupError> {
        if self.contains(&options.id) {
            return Err(SetupError::duplicate_object(&options.id));
        }
        let made = self.maker.make(options.backend).await?;
        if let Some(pty) = &made.pty {
            let line = format!("char device redirected to {pty} (label {})\n", options.id);
            self.said.lock().push(line);
        }
        let made = made.wait_for_client(option).await?;
        self.enter(options.id, made);
        Ok(())
    }

    fn enter(&self, id: String, made: Made) {
        self.all.lock().push(Chardev {
            id,
            shown: made.shown,
            ring: made.ring,
            log: made.log,
            served: Some(made.served),
        });
    }

    /// Executes `--monitor`. It serves after [`Self::serve`].
    ///
    /// # Errors
    /// If there is no such character device, or another monitor has it.
    pub fn attach(&self, options: &MonitorOptions) -> Result<(), SetupError> {
        let id = &options.chardev;
        let mut all = self.all.lock();
        let chardev = all.iter_mut().find(|known| known.id == *id);
        let chardev =
            chardev.ok_or_else(|| SetupError::new(format!("chardev \"{id}\" not found")))?;
        let served = chardev.served.take();
        let served = served.ok_or_else(|| SetupError::new(format!("Device '{id}' is in use")))?;
        let layout = match options.pretty {
            Some(true) => Layout::Pretty,
            _ => Layout::Compact,
        };
        self.waiting.lock().push(Waiting {
            id: id.clone(),
            served,
            layout,
        });
        Ok(())
    }

    /// Says on standard output which terminals were made, unless that belongs to one of the character devices:
    /// whoever reads QMP there understands nothing else.
    pub fn say_names(&self) {
        let said = std::mem::take(&mut *self.said.lock());
        let is_taken = {
            let all = self.all.lock();
            all.iter().any(|known| known.shown.text() == STDIO)
        };
        if !is_taken {
            said.iter().for_each(|line| say_on_stdout(line));
        }
    }

    /// Starts the monitors, as tasks.
    pub fn serve(&self, monitor: &Monitor) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let mut tasks = self.tasks.lock();
        for Waiting { id, served, layout } in waiting {
            tasks.spawn(served.serve(monitor.clone(), id, layout));
        }
    }

    /// Returns when all sessions have ended, after [`Monitor::close`]. Socket files are gone then.
    pub async fn ended(&self) {
        self.waiting.lock().clear();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
        let all = std::mem::take(&mut *self.all.lock());
        tidy_up("sockets and logs of chardevs are left behind", move || {
            for log in all.iter().filter_map(|chardev| chardev.log.as_ref()) {
                log.finish();
            }
            drop(all);
        })
        .await;
    }

    async fn remove_free(&self, id: &str, busy: &str, missing: &str) -> Result<(), QmpError> {
        let removed = {
            let mut all = self.all.lock();
            let at = all.iter().position(|known| known.id == id);
            let at = at.ok_or_else(|| QmpError::generic(missing))?;
            if all[at].served.is_none() {
                return Err(QmpError::generic(busy));
            }
            all.remove(at)
        };
        tidy_up("a chardev is left behind", move || drop(removed)).await;
        Ok(())
    }

    fn ring(&self, id: &str) -> Result<Arc<Ring>, QmpError> {
        let all = self.all.lock();
        let known = all.iter().find(|known| known.id == id);
        let known = known.ok_or_else(|| QmpError::generic(format!("Device '{id}' not found")))?;
        let ring = known.ring.clone();
        ring.ok_or_else(|| QmpError::generic(format!("{id} is not a ringbuf device")))
    }

    async fn make_and_enter(
        &self,
        id: String,
        backend: ChardevBackend,
    ) -> Result<ChardevReturn, QmpError> {
        let made = self.maker.make(backend).await.map_err(|error| {
            QmpError::generic(format!("Failed to add chardev '{id}': {}", error.desc))
        })?;
        // Somebody else may have been faster.
        if self.contains(&id) {
            return Err(exists(&id));
        }
        let pty = made.pty.clone();
        self.enter(id, made);
        Ok(ChardevReturn { pty })
    }
}

fn exists(id: &str) -> QmpError {
    QmpError::generic(format!("Chardev with id '{id}' already exists"))
}

impl monitor::Chardevs for Chardevs {
    fn add(&self, options: ChardevOptions) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        let ChardevOptions { id, backend } = options;
        Box::pin(async move {
            match self.contains(&id) {
                true => Err(exists(&id)),
                false => self.make_and_enter(id, backend).await,
            }
        })
    }

    fn change(
        &self,
        id: String,
        backend: ChardevBackend,
    ) -> BoxFuture<'_, Result<ChardevReturn, QmpError>> {
        Box::pin(async move {
            let missing = format!("Chardev '{id}' does not exist");
            let busy = "Chardev user does not support chardev hotswap";
            {
                let all = self.all.lock();
                let known = all.iter().find(|known| known.id == id);
                let known = known.ok_or_else(|| QmpError::generic(&*missing))?;
                if known.served.is_none() {
                    return Err(QmpError::generic(busy));
                }
            }
            let made = self.maker.make(backend).await?;
            self.remove_free(&id, busy, &missing).await?;
            let pty = made.pty.clone();
            self.enter(id, made);
            Ok(ChardevReturn { pty })
        })
    }

    fn remove(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move {
            let busy = format!("Chardev '{id}' is busy");
            let missing = format!("Chardev '{id}' not found");
            self.remove_free(&id, &busy, &missing).await
        })
    }

    fn query(&self) -> Vec<ChardevInfo> {
        let all = self.all.lock();
        let infos = all.iter().map(|chardev| ChardevInfo {
            label: chardev.id.clone(),
            filename: chardev.shown.text(),
            frontend_open: chardev.served.is_none(),
        });
        infos.collect()
    }

    fn objects(&self) -> Vec<ChardevObject> {
        let all = self.all.lock();
        let objects = all.iter().filter_map(|it| it.shown.object(&it.id));
        objects.collect()
    }

    fn ringbuf_write(&self, id: &str, data: &[u8]) -> Result<(), QmpError> {
        self.ring(id)?.write(data);
        Ok(())
    }

    fn ringbuf_read(&self, id: &str, bytes_max: usize) -> Result<Vec<u8>, QmpError> {
        Ok(self.ring(id)?.read(bytes_max))
    }
}
