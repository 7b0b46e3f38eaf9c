//! The run control task: one owner of [`RunControl`], one message at a time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Instant, SystemTime};

use iothread::mailbox::{self, Receiver, Sender};

use crate::alarm::Alarm;
use crate::changes::Changes;
use crate::event::{Event, EventKind, Observer};
use crate::ids::{BackendId, LocalId};
use crate::loss::Loss;
use crate::node::Node;
use crate::reports::Reports;
use crate::request::Request;
use crate::run_control::{Effects, Failed, GateMessage, Refusal, Resolved, Restored, RunControl};
use crate::vm_link::{VmLink, VmOrder, VmPause};

/// A command: it runs as one message of run control.
pub type Command = Box<dyn FnOnce(&mut RunControl, &mut Wiring) + Send>;

/// What run control receives: failures from iothreads, commands from everywhere else.
pub enum Message {
    /// A request is held.
    Failed(Failed),
    /// Requests were reported or ignored.
    Reported(Reports),
    /// A request was handed back by a client of a former daemon.
    Restored(Restored),
    /// A request is no longer held.
    Resolved(Resolved),
    /// A command.
    Command(Command),
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failed) => failed.fmt(f),
            Self::Reported(reports) => reports.fmt(f),
            Self::Restored(restored) => restored.fmt(f),
            Self::Resolved(resolved) => resolved.fmt(f),
            Self::Command(_) => f.write_str("Command"),
        }
    }
}

/// What a backend's part on an iothread receives.
#[derive(Debug)]
pub enum LocalMessage {
    /// From run control.
    Gate(GateMessage),
    /// Start nothing any more; `done` is dropped when nothing is in flight.
    DrainBegin {
        /// Gets the held or waiting request that ends last, if there is one; dropped when drained.
        done: Sender<Request>,
    },
    /// Ends one `DrainBegin`.
    DrainEnd,
    /// What was held on another iothread has ended: requests that waited behind it may start. Sent
    /// once until it is heard.
    Recheck,
}

/// What a backend uses.
struct Root {
    node: Arc<Node>,
    losses_accepted: Arc<AtomicU32>,
}

/// Whom run control's effects reach.
#[derive(Default)]
pub struct Wiring {
    locals: HashMap<LocalId, Sender<LocalMessage>>,
    backends: HashMap<BackendId, Root>,
    observers: Vec<Arc<dyn Observer>>,
    saver: Option<Changes>,
    link: Option<Arc<dyn VmLink>>,
}

impl Wiring {
    /// From now on `link` is told what becomes of the VM; none: nobody is.
    pub fn set_link(&mut self, link: Option<Arc<dyn VmLink>>) {
        self.link = link;
    }

    /// From now on `saver` is told of every change that it is to save.
    pub fn save_by(&mut self, saver: Changes) {
        self.saver = Some(saver);
    }

    /// Who saves, if anybody does.
    pub fn saver(&self) -> Option<&Changes> {
        self.saver.as_ref()
    }

    /// Makes a part of a backend reachable.
    pub fn add_local(&mut self, local: LocalId, sender: Sender<LocalMessage>) {
        self.locals.insert(local, sender);
    }

    /// Forgets it: its receiver ends.
    pub fn remove_local(&mut self, local: LocalId) {
        self.locals.remove(&local);
    }

    /// Names the root node of a backend, and up to which number losses are void for it.
    pub fn add_backend(
        &mut self,
        backend: BackendId,
        node: Arc<Node>,
        losses_accepted: Arc<AtomicU32>,
    ) {
        let root = Root {
            node,
            losses_accepted,
        };
        self.backends.insert(backend, root);
    }

    /// Forgets it.
    pub fn remove_backend(&mut self, backend: BackendId) {
        self.backends.remove(&backend);
    }

    /// From now on `observer` gets every event.
    pub fn observe(&mut self, observer: Arc<dyn Observer>) {
        self.observers.push(observer);
    }

    /// Why a node refuses `cont`, for the nodes of one backend or of all.
    pub fn cont_blocker(&self, backend: Option<BackendId>) -> Option<String> {
        let mut ids: Vec<_> = self.backends.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter(|&id| backend.is_none_or(|only| only == id))
            .find_map(|id| {
                let root = &self.backends[&id];
                let accepted = root.losses_accepted.load(Ordering::SeqCst);
                let counts = |node: &Node| {
                    let loss = node.driver().latched();
                    loss.is_none_or(|loss| loss.counts_for(accepted))
                };
                let nodes = root.node.subtree();
                nodes
                    .iter()
                    .filter(|node| counts(node))
                    .find_map(|node| node.driver().cont_blocker())
            })
    }

    /// Whether a loss of `node` counts for a backend; also if no backend uses it.
    pub fn is_loss_open(&self, node: &Arc<Node>, loss: Loss) -> bool {
        let mut above = (self.backends.values())
            .filter(|root| {
                root.node
                    .subtree()
                    .iter()
                    .any(|below| Arc::ptr_eq(below, node))
            })
            .map(|root| root.losses_accepted.load(Ordering::SeqCst))
            .peekable();
        above.peek().is_none() || above.any(|accepted| loss.counts_for(accepted))
    }

    /// Clears what no client could have lost.
    pub fn clear_void_losses(&self) {
        for node in self.backends.values().flat_map(|root| root.node.subtree()) {
            if let Some(loss) = node.driver().latched()
                && !self.is_loss_open(&node, loss)
            {
                node.driver().accept_loss(loss.number);
            }
        }
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring")
            .field("locals", &self.locals.len())
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}

impl Effects for Wiring {
    fn event(&mut self, event: Event) {
        self.observers.retain(|observer| observer.event(&event));
    }

    fn post(&mut self, local: LocalId, message: GateMessage) {
        if let Some(sender) = self.locals.get(&local) {
            // An error means that the part has just ended: it holds nothing any more.
            let _ = sender.send(LocalMessage::Gate(message));
        }
    }

    fn vm(&mut self, order: VmOrder) {
        if let Some(link) = &self.link {
            link.order(order);
        }
    }
}

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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (state.revision(), state.next_tick());
        match message {
            None => state.tick(Instant::now(), &mut self.wiring),
            Some(Message::Failed(failed)) => state.failed(&failed, &mut self.wiring),
            Some(Message::Reported(reports)) => reported(&mut state, &reports, &mut self.wiring),
            Some(Message::Restored(restored)) => state.restored(&restored),
            Some(Message::Resolved(resolved)) => state.resolved(resolved, &mut self.wiring),
            Some(Message::Command(command)) => command(&mut state, &mut self.wiring),
        }
        let after = (state.revision(), state.next_tick());
        drop(state);
        if before.0 != after.0
            && let Some(saver) = &self.wiring.saver
        {
            saver.changed();
        }
        if before.1 != after.1 {
            self.alarm.set(after.1);
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
        f(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
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
        let command: Command = Box::new(move |state, _| state.note_vm_pause(by));
        // Nobody receives any more: the daemon ends.
        let _ = self.sender.send(Message::Command(command));
    }

    /// An event for every observer, from wherever something happens: waits for nothing.
    pub fn announce(&self, kind: EventKind) {
        let at = SystemTime::now();
        let command: Command = Box::new(move |_, wiring| wiring.event(Event { at, kind }));
        // Nobody receives any more: the daemon ends.
        let _ = self.sender.send(Message::Command(command));
    }

    /// Where iothreads post failures.
    pub(crate) fn sender(&self) -> &Sender<Message> {
        &self.sender
    }

    pub(crate) fn fresh_local(&self) -> LocalId {
        LocalId(self.last_local.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on the calling thread, which sleeps while it waits.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::park();
    }
}
