//! How all ends: an orderly restart, if another daemon follows. What is held stays as it is, is saved,
//! and is told about.

use std::pin::pin;
use std::time::{Duration, Instant};

use block::{Drained, Export, Registry};
use tokio::time::timeout;

/// After this long the log says what is waited for.
const QUIET_TIME_MAX: Duration = Duration::from_secs(5);

/// How long an iothread may take to say what it has in flight: one that is stuck does not.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Nothing is in flight any more, as long as this exists.
#[derive(Debug)]
pub struct Settled {
    #[expect(dead_code, reason = "held for its drop")]
    drained: Vec<Drained>,
    is_whole: bool,
}

impl Settled {
    /// Whether nodes have written back all that they had. The log names those that have not.
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }
}

/// Freezes all, ends the link to the VMM, and waits for what is in flight.
pub(crate) async fn settle(registry: &Registry, reason: &'static str) -> Settled {
    registry.jobs().give_up();
    let control = registry.control();
    control
        .call(move |state, wiring| state.shutdown(reason, wiring))
        .await;
    // The VM stays as it is: it runs on, or waits for the next daemon.
    registry.close_link().await;
    // What is in flight may still fail and be held.
    let mut draining = pin!(async {
        let mut drained = Vec::new();
        for export in registry.exports() {
            let drain = export.backend().drain().await;
            drained.push((export, drain));
        }
        drained
    });
    let quick = timeout(QUIET_TIME_MAX, &mut draining).await;
    let drained = match quick {
        Ok(drained) => drained,
        Err(_) => {
            for what in in_flight(registry).await {
                tracing::warn!(
                    "{what}: still waiting for the storage; a second signal ends the daemon without"
                );
            }
            draining.await
        }
    };
    // An answer means that run control has heard of all of it.
    control.call(|_, _| ()).await;
    for (export, drained) in &drained {
        warn_of_held(&**export, drained);
    }
    let mut is_whole = true;
    for node in registry.nodes() {
        if let Some(left) = node.left_unwritten() {
            is_whole = false;
            tracing::error!("{left}; the daemon ends without it");
        }
    }
    Settled {
        drained: drained.into_iter().map(|(_, drained)| drained).collect(),
        is_whole,
    }
}

/// What the exports have in flight, for the log: one line each of those that have something.
pub(crate) async fn in_flight(registry: &Registry) -> Vec<String> {
    let mut lines = Vec::new();
    for export in registry.exports() {
        let (mut requests, mut oldest) = (0, None::<Instant>);
        let mut answers = export.backend().busy(1);
        while let Ok(Some(part)) = timeout(ANSWER_TIME_MAX, answers.recv()).await {
            requests += part.in_flight;
            let first = part.oldest.first().map(|request| request.started);
            oldest = [oldest, first].into_iter().flatten().min();
        }
        let Some(oldest) = oldest else { continue };
        lines.push(format!(
            "export '{}': {requests} requests are in flight, the first for {} s",
            export.id(),
            oldest.elapsed().as_secs()
        ));
    }
    lines
}

fn warn_of_held(export: &dyn Export, drained: &Drained) {
    let backend = export.backend();
    let held = backend.control().read(|state| {
        let state = state.backend(backend.id());
        state.map_or(0, |state| state.held().len())
    });
    let requests = match held {
        0 if drained.furthest().is_none() => return,
        0 => "requests that wait are".to_owned(),
        1 => "1 held request is".to_owned(),
        _ => format!("{held} held requests are"),
    };
    let future = if backend.is_remembered() {
        "the client remembers them for the next daemon"
    } else {
        "the client has no inflight region, so they are lost when the daemon is started again"
    };
    tracing::warn!(
        "export '{}': {requests} neither completed nor failed; {future}",
        export.id()
    );
}
