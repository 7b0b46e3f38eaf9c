//! Tells what happens: log, journal, metrics, and the one who has to be woken.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use journal::Journal;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};

use crate::core::record::Record;
use crate::history::words;
use crate::settings::Program;

use super::figures::Figures;
use super::program;

/// Alert programs at a time, and such that wait for their turn.
const ALERTS_AT_ONCE: usize = 4;
const ALERTS_MAX: usize = 64;

/// What waits to be on the disk is waited for so long.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);

/// Tells what happens.
#[derive(Debug)]
pub struct Teller {
    /// When the watcher began: makes the numbers of incidents unique.
    run: i64,
    journal: Option<Arc<Journal>>,
    flush: Arc<Notify>,
    figures: Figures,
    alert: Mutex<Option<Program>>,
    alerts: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Whether it is printed, too.
    prints: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    run: i64,
    #[serde(flatten)]
    record: &'a Record,
}

impl Teller {
    /// Must be called where tasks can be spawned.
    pub fn new(
        journal: Option<Journal>,
        figures: Figures,
        alert: Option<Program>,
        prints: bool,
    ) -> Self {
        let journal = journal.map(Arc::new);
        let flush = Arc::new(Notify::new());
        if let Some(journal) = journal.clone() {
            tokio::spawn(keep_flushed(journal, Arc::clone(&flush)));
        }
        Self {
            run: jiff::Timestamp::now().as_millisecond(),
            journal,
            flush,
            figures,
            alert: Mutex::new(alert),
            alerts: Arc::new(Semaphore::new(ALERTS_AT_ONCE)),
            waiting: Arc::new(Semaphore::new(ALERTS_MAX)),
            prints,
        }
    }

    /// Another program is in force.
    pub fn set_alert(&self, alert: Option<Program>) {
        *self.alert.lock() = alert;
    }

    /// Takes over how the machines are.
    pub fn refresh(&self) {
        self.figures.refresh();
    }

    /// Tells it.
    pub fn tell(&self, record: &Record) {
        self.figures.count(record);
        let line = Line {
            run: self.run,
            record,
        };
        if let Some(journal) = &self.journal {
            journal.append(&line);
            // To the disk, beside: storage that fails here must not keep a machine from its own.
            self.flush.notify_one();
        }
        let value = serde_json::to_value(&line).unwrap_or_default();
        let text = words(&value);
        let about = match (record.machine.as_str(), &record.disk) {
            ("", _) => String::new(),
            (machine, None) => format!("{machine}: "),
            (machine, Some(disk)) => format!("{machine}: {disk}: "),
        };
        if self.prints {
            // Whoever has closed it does not want it.
            let _ = writeln!(std::io::stdout(), "{about}{text}");
        }
        // By this floods are told apart.
        let device = about.trim_end_matches(": ");
        match record.alert {
            true => tracing::warn!(device, "{text}"),
            false => tracing::info!(device, "{text}"),
        }
        if record.alert {
            self.wake(record, value.to_string());
        }
    }

    /// Runs the alert hook.
    fn wake(&self, record: &Record, json: String) {
        let Some(program) = self.alert.lock().clone() else {
            return;
        };
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            tracing::warn!("{ALERTS_MAX} alerts wait already; this one is not sent");
            return;
        };
        let alerts = Arc::clone(&self.alerts);
        let environment = [
            ("STANDFAST_MACHINE", record.machine.replace('\0', "")),
            (
                "STANDFAST_DISK",
                record.disk.clone().unwrap_or_default().replace('\0', ""),
            ),
        ];
        tokio::spawn(async move {
            let _place = place;
            let Ok(_turn) = alerts.acquire().await else {
                return;
            };
            match program::run(&program, format!("{json}\n").into_bytes(), &environment).await {
                Ok(ended) if ended.status.success() => {}
                Ok(ended) => tracing::warn!("the alert command has failed: {}", ended.words()),
                Err(why) => tracing::warn!("the alert command: {why}"),
            }
        });
    }

    /// Waits until the journal is on the disk, as far as that is possible.
    pub async fn finish(&self) {
        if let Some(journal) = self.journal.clone() {
            let _ =
                tokio::task::spawn_blocking(move || journal.flush(Duration::from_secs(2))).await;
        }
    }
}

/// Flushes whenever something was told since the last time.
async fn keep_flushed(journal: Arc<Journal>, flush: Arc<Notify>) {
    let mut fails = false;
    loop {
        flush.notified().await;
        let journal = Arc::clone(&journal);
        let flushed = tokio::task::spawn_blocking(move || journal.flush(FLUSH_LIMIT)).await;
        match flushed {
            Ok(Err(error)) if !std::mem::replace(&mut fails, true) => {
                tracing::warn!("the journal is not on the disk: {error}");
            }
            Ok(Ok(())) => fails = false,
            _ => {}
        }
    }
}
