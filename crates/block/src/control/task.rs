//! The run control task: one owner of [`RunControl`], one message at a time.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use iothread::mailbox::{self, Receiver, Sender};
use parking_lot::Mutex;

use crate::control::alarm::Alarm;
use crate::control::inbox::{Command, Message};
use crate::control::listeners::Observer;
use crate::control::reports::Reports;
use crate::control::run_control::{Effects, Refusal, RunControl};
use crate::control::wiring::Wiring;
use crate::driver::beside::beside;
use crate::persist::changes::Saved;
use crate::words::event::{Event, EventKind};
use crate::words::ids::LocalId;
use crate::words::vm::VmPause;
use pollster::block_on;

/// Access to run control from any thread.
#[derive(Clone, Debug)]
pub struct Control {
    sender: Sender<Message>,
    state: Arc<Mutex<RunControl>>,
    last_local: Arc<AtomicU64>,
}

/// The task; run it on the control plane's executor.
#[derive(Debug)]
pub struct ControlTask {
    receiver: Receiver<Message>,
    state: Arc<Mutex<RunControl>>,
    wiring: Wiring,
    alarm: Alarm,
}

/// How many messages are taken before others have their turn: what shares the thread with run
/// control are the monitors, signals and the watchdog, and its mailbox may never be empty.
const MESSAGES_AT_ONCE: u32 = 8;

/// Run control and the task that serves it.
pub fn control() -> (Control, ControlTask) {
    let (sender, receiver) = mailbox::channel();
    let state = Arc::new(Mutex::new(RunControl::new()));
    (
        Control {
            sender,
            state: Arc::clone(&state),
            last_local: Arc::default(),
        },
        ControlTask {
            receiver,
            state,
            wiring: Wiring::default(),
            alarm: Alarm::default(),
        },
    )
}

impl ControlTask {
    /// Serves until every [`Control`] is gone.
    pub async fn run(mut self) {
        let mut taken = 0;
        while let Some(woken) = self.next().await {
            self.apply(woken);
            taken += 1;
            if taken == MESSAGES_AT_ONCE {
                taken = 0;
                let_others_run().await;
            }
        }
    }

    /// The next message; inside it none if the alarm has rung.
    async fn next(&mut self) -> Option<Option<Message>> {
        poll_fn(|cx| {
            // First: it must not wait for the mailbox to be empty.
            if self.alarm.has_rung(cx) {
                return Poll::Ready(Some(None));
            }
            self.receiver.poll_recv(cx).map(|message| message.map(Some))
        })
        .await
    }

    fn apply(&mut self, message: Option<Message>) {
        let mut state = self.state.lock();
        let before = state.revision();
        let mut errand = None;
        match message {
            None => state.wake(Instant::now(), &mut self.wiring),
            Some(Message::Failed(failed)) => state.failed(&failed, &mut self.wiring),
            Some(Message::Reported(reports)) => reported(&mut state, &reports, &mut self.wiring),
            Some(Message::Restored(restored)) => state.restored(&restored),
            Some(Message::Resolved(resolved)) => state.resolved(resolved, &mut self.wiring),
            Some(Message::Command(command)) => command(&mut state, &mut self.wiring),
            Some(Message::Errand(todo)) => errand = Some(todo),
        }
        let (after, wake_at) = (state.revision(), state.wake_at());
        drop(state);
        if before != after
            && let Some(saver) = self.wiring.saver()
        {
            saver.changed();
        }
        // Each time: one that has rung rings no more, and its time may be due again.
        self.alarm.set(wake_at);
        if let Some(errand) = errand {
            errand();
        }
    }
}

fn reported(state: &mut RunControl, reports: &Reports, wiring: &mut Wiring) {
    let Some(batch) = reports.take() else { return };
    let now = Instant::now();
    state.left_out(batch.first.backend, batch.left_out);
    for reported in std::iter::once(&batch.first).chain(&batch.last) {
        state.reported(reported, now, wiring);
    }
}

/// Ends this turn of the task and asks for another one.
async fn let_others_run() {
    let mut asked = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Control {
    /// Reads the state between two messages. `f` must be short and must not call run control.
    pub fn read<R>(&self, f: impl FnOnce(&RunControl) -> R) -> R {
        f(&self.state.lock())
    }

    /// Runs `f` as one message of run control. None: the task has ended.
    pub async fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut RunControl, &mut Wiring) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, mut answer) = mailbox::channel();
        let command = Box::new(move |state: &mut RunControl, wiring: &mut Wiring| {
            // Whoever has stopped waiting needs no answer.
            let _ = reply.send(f(state, wiring));
        });
        self.sender.send(Message::Command(command)).ok()?;
        answer.recv().await
    }

    /// As [`Self::call`], for threads without an executor. Never call it on the thread that runs
    /// the task: it would wait for itself.
    pub fn call_blocking<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut RunControl, &mut Wiring) -> R + Send + 'static,
    ) -> Option<R> {
        block_on(self.call(f))
    }

    /// `stop`.
    ///
    /// # Errors
    /// If the daemon ends.
    pub async fn stop(&self) -> Result<(), Refusal> {
        self.call(|state, wiring| state.stop(wiring))
            .await
            .unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// Has the state saved, as it is by now, where there is a state file; waits for that at most `limit`.
    pub async fn save(&self, limit: Duration) -> Saved {
        let saver = self.call(|_, wiring| wiring.saver().cloned()).await;
        let Some(Some(changes)) = saver else {
            return Saved::Nowhere;
        };
        let saved = beside(move || changes.save_within(limit)).await;
        saved.unwrap_or(Saved::No)
    }

    /// `cont`. `force`: the VM is resumed even if somebody else has paused it.
    ///
    /// # Errors
    /// If a node refuses (nothing has changed then), or if the daemon ends.
    pub async fn cont(&self, force: bool) -> Result<(), Refusal> {
        self.call(move |state, wiring| {
            let blocker = wiring.cont_blocker(None);
            state.cont(blocker, force, wiring)
        })
        .await
        .unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// `x-block-export-cont`.
    ///
    /// # Errors
    /// As [`Self::cont`], and if there is no such export or its hold scope is `vm`.
    pub async fn cont_backend(&self, device: String) -> Result<(), Refusal> {
        self.call(move |state, wiring| {
            let blocker = state
                .find(&device)
                .and_then(|id| wiring.cont_blocker(Some(id)));
            state.cont_backend(&device, blocker, wiring)
        })
        .await
        .unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// From now on `observer` gets every event.
    pub async fn observe(&self, observer: Arc<dyn Observer>) {
        self.call(|_, wiring| wiring.observe(observer)).await;
    }

    /// Sends `event` to every observer.
    pub async fn emit(&self, event: Event) {
        self.call(|_, wiring| wiring.event(event)).await;
    }

    /// The link to the VMM has found out who has paused it: saved for the next daemon. Waits for
    /// nothing.
    pub fn note_vm_pause(&self, by: VmPause) {
        self.tell(move |state, _| state.note_vm_pause(by));
    }

    /// An event for every observer, from wherever something happens: waits for nothing.
    pub fn announce(&self, kind: EventKind) {
        let at = SystemTime::now();
        self.tell(move |_, wiring| wiring.event(Event { at, kind }));
    }

    /// Runs `f` as one message of run control, and waits for nothing.
    pub(crate) fn tell(&self, f: impl FnOnce(&mut RunControl, &mut Wiring) + Send + 'static) {
        let command: Command = Box::new(f);
        // Nobody receives any more: the daemon ends.
        let _ = self.sender.send(Message::Command(command));
    }

    /// Runs `f` on the thread of run control between two of its messages, and waits for nothing. `f` must
    /// not wait either, but may ask run control.
    pub(crate) fn later(&self, f: impl FnOnce() + Send + 'static) {
        // Nobody receives any more: the daemon ends.
        let _ = self.sender.send(Message::Errand(Box::new(f)));
    }

    /// Where iothreads post failures.
    pub(crate) fn sender(&self) -> &Sender<Message> {
        &self.sender
    }

    pub(crate) fn fresh_local(&self) -> LocalId {
        LocalId(self.last_local.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
