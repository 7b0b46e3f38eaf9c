//! A clock that wakes the control task: it runs on any executor, so it has a thread for that, which
//! begins when it is needed for the first time.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

#[derive(Debug, Default)]
struct AlarmState {
    at: Option<Instant>,
    rung: bool,
    waker: Option<Waker>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<AlarmState>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, AlarmState> {
        self.state.lock()
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            match state.at {
                None => self.changed.wait(&mut state),
                Some(at) if at > now => {
                    self.changed.wait_for(&mut state, at - now);
                }
                Some(_) => {
                    state.at = None;
                    state.rung = true;
                    let waker = state.waker.take();
                    drop(state);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                    state = self.lock();
                }
            }
        }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Alarm {
    shared: Arc<Shared>,
    started: bool,
}

impl Alarm {
    /// It rings at `at`, instead of when it was to ring before.
    pub fn set(&mut self, at: Option<Instant>) {
        if at.is_some() && !self.started {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("alarm".to_owned());
            // If there can be no thread now, it is tried again the next time.
            self.started = thread.spawn(move || shared.run()).is_ok();
        }
        let mut state = self.shared.lock();
        if state.at != at {
            state.at = at;
            self.shared.changed.notify_one();
        }
    }

    /// Whether it has rung since it was asked the last time. If not, whoever asks is woken then.
    pub fn has_rung(&self, cx: &Context<'_>) -> bool {
        let mut state = self.shared.lock();
        let rung = std::mem::take(&mut state.rung);
        if !rung {
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            }
        }
        rung
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}
