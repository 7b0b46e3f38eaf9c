//! The thread that writes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::LINE_BYTES_MAX;
use crate::error::JournalError;
use crate::queue::{Item, Queue};
use crate::store::Store;
use crate::trouble::{Say, Trouble};

/// How long storage that fails is left alone, unless somebody flushes.
const RETRY: Duration = Duration::from_secs(1);

/// Writes what comes, until the end; what cannot be written by then is lost, and that is said.
/// `failed` is what was tried before.
pub fn run(queue: &Queue, mut store: Store, path: &Path, failed: Option<JournalError>) {
    let (mut trouble, mut syncs) = (Trouble::default(), Trouble::default());
    let mut pending = VecDeque::new();
    if let Some(error) = failed {
        let error = Arc::new(error);
        queue.written(0, 0, Some(&error));
        tell(&mut trouble, queue, path, Some(&error), 0);
    }
    loop {
        let retry = trouble.fails().then_some(RETRY);
        let ended = queue.wait(&mut pending, LINE_BYTES_MAX, retry);
        let (entries, bytes) = (pending.len(), bytes(&pending));
        let result = match store.write(&mut pending) {
            Ok(()) if trouble.fails() => store.ready(),
            result => result,
        };
        let result = result.map_err(Arc::new);
        let failing = result.as_ref().err();
        let left = pending.len();
        queue.written(
            (entries - left) as u64,
            bytes - self::bytes(&pending),
            failing,
        );
        tell(&mut trouble, queue, path, failing, left);
        let flushes = queue.due_flushes(failing.is_some());
        if !flushes.is_empty() {
            let synced = result.and_then(|()| {
                let synced = store.sync();
                let said = syncs.tried(synced.is_ok(), Instant::now());
                synced.map_err(|error| {
                    if said == Say::Fails {
                        tracing::warn!("{error}; lines since the last sync may be lost");
                    }
                    Arc::new(error)
                })
            });
            queue.answer(flushes, &synced);
        }
        if ended && (trouble.fails() || (pending.is_empty() && queue.is_empty())) {
            break;
        }
    }
    if !pending.is_empty() || !queue.is_empty() {
        tracing::warn!(
            "journal {}: ends with entries that cannot be written",
            path.display()
        );
    }
    // The lock goes before anybody hears of the end.
    drop(store);
    queue.gone();
}

fn bytes(pending: &VecDeque<Item>) -> usize {
    pending.iter().map(Item::bytes).sum()
}

fn tell(
    trouble: &mut Trouble,
    queue: &Queue,
    path: &Path,
    failing: Option<&Arc<JournalError>>,
    left: usize,
) {
    let dropped = || queue.counts().dropped;
    match (trouble.tried(failing.is_none(), Instant::now()), failing) {
        (Say::Fails, Some(error)) => tracing::warn!(
            left,
            "{error}; entries wait until it can be written again, and what finds no room is dropped"
        ),
        (Say::Well, _) => tracing::info!(
            dropped = dropped(),
            "journal {}: can be written again",
            path.display()
        ),
        _ => {}
    }
}
