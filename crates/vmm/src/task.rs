//! Runs the machine of a link: one task, which speaks to the VMM and to run control.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use block::run_control::RunControl;
use block::{
    BoxFuture, Control, EventKind, LinkStatus, Refusal, RunState, VmLink, VmOrder, VmPending,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::machine::{Action, Machine, Output};
use crate::report::Report;
use crate::vmm::Vmm;
use crate::{LinkConfig, StartError};

/// A link to a VMM.
pub struct Link {
    config: LinkConfig,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Somebody who wants to know what came of a reset.
type Waiting = oneshot::Sender<Result<(), String>>;

/// What the task shares with whoever holds the link. No lock is held across a wait.
#[derive(Debug)]
struct Shared {
    machine: Mutex<Machine>,
    /// Who waits for the reset button to be pressed; none when the task has ended.
    resets: Mutex<Option<Vec<Waiting>>>,
    /// The machine has got something new.
    wake: Notify,
    stop: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Link {
    /// Starts a link, with a task on the current tokio runtime. It does nothing to the VM against
    /// the run state that run control has until its first order comes. `inherited`: run control's
    /// stopped state comes from a former daemon, so that a VM found paused was paused by that
    /// daemon's link, unless it has noted somebody else.
    ///
    /// # Errors
    /// If the configuration can lead to nothing, or outside a runtime.
    pub fn start(
        config: LinkConfig,
        control: Control,
        inherited: bool,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_with_clients(config, control, inherited, || true)
    }

    /// As [`Self::start`]. If the state is `inherited`, the VM is not resumed before `clients_are_back`
    /// says that the disks' clients have come back to this daemon, or [`CLIENTS_TIME`] is over:
    /// QEMU 7.2 loses a vhost-user disk if it resumes the VM before its connection is back.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_clients(
        config: LinkConfig,
        control: Control,
        inherited: bool,
        clients_are_back: impl Fn() -> bool + Send + 'static,
    ) -> Result<Arc<Self>, StartError> {
        config.check()?;
        let runtime =
            Handle::try_current().map_err(|_| StartError::NoRuntime(config.id.clone()))?;
        let vmm = Vmm::new(&config.peer);
        let saved = control.read(RunControl::vm_pause);
        let shared = Arc::new(Shared {
            machine: Mutex::new(Machine::new(vmm.traits(), saved, inherited)),
            resets: Mutex::new(Some(Vec::new())),
            wake: Notify::new(),
            stop: Notify::new(),
        });
        let task = Task {
            id: config.id.clone(),
            type_name: config.peer.type_name(),
            shared: Arc::clone(&shared),
            control,
            epoch: Instant::now(),
            returning: (inherited && config.peer.reconnects_while_paused()).then(|| Returning {
                are_back: Box::new(clients_are_back),
                resume_at: None,
            }),
        };
        let task = runtime.spawn(task.run(vmm));
        Ok(Arc::new(Self {
            config,
            shared,
            task: Mutex::new(Some(task)),
        }))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl VmLink for Link {
    fn id(&self) -> &str {
        &self.config.id
    }

    fn type_name(&self) -> &'static str {
        self.config.peer.type_name()
    }

    fn order(&self, order: VmOrder) {
        lock(&self.shared.machine).order(order);
        self.shared.wake.notify_one();
    }

    fn status(&self) -> LinkStatus {
        lock(&self.shared.machine).status()
    }

    fn reset(&self) -> BoxFuture<'_, Result<(), String>> {
        let (answer, result) = oneshot::channel();
        if let Some(resets) = &mut *lock(&self.shared.resets) {
            // Those whose clients have left.
            resets.retain(|waiting| !waiting.is_closed());
            resets.push(answer);
        }
        lock(&self.shared.machine).reset();
        self.shared.wake.notify_one();
        Box::pin(async move {
            result.await.unwrap_or_else(|_| {
                Err(format!(
                    "Object '{}' is being removed: the VM was not reset",
                    self.config.id
                ))
            })
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.stop.notify_one();
            let task = lock(&self.task).take();
            if let Some(task) = task {
                // An error means that it has panicked or was aborted: it has ended.
                let _ = task.await;
            }
        })
    }
}

/// The clients of a former daemon.
struct Returning {
    are_back: Box<dyn Fn() -> bool + Send>,
    /// They are, or are not waited for any longer: when the VM may be resumed.
    resume_at: Option<Duration>,
}

/// How long they are waited for, from the start of the link on. Clients that are gone for good cost
/// the VM that time, once.
pub const CLIENTS_TIME: Duration = Duration::from_secs(15);
/// They are asked for that often. The VMM may hear of a connection that long after we do.
const CLIENTS_POLL: Duration = Duration::from_millis(100);

type Cont = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

struct Task {
    id: String,
    type_name: &'static str,
    shared: Arc<Shared>,
    control: Control,
    epoch: Instant,
    /// None: they are back, or nobody has to come back.
    returning: Option<Returning>,
}

impl Drop for Task {
    fn drop(&mut self) {
        // Whoever waits for a reset, or asks for one from now on, is told that there is none.
        *lock(&self.shared.resets) = None;
    }
}

impl Task {
    async fn run(mut self, vmm: Vmm) {
        let (actions, todo) = mpsc::channel(1);
        let (said, mut reports) = mpsc::channel(64);
        let mut served = pin!(vmm.serve(todo, said));
        let mut cont: Option<Cont> = None;
        loop {
            let (action, wake_at) = self.step(&mut cont);
            if let Some(action) = action {
                // There is room: the former one was answered.
                let _ = actions.try_send(action);
            }
            let alarm = async {
                match wake_at {
                    Some(at) => sleep_until(self.epoch + at).await,
                    None => std::future::pending().await,
                }
            };
            let conted = async {
                match &mut cont {
                    Some(cont) => cont.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.stop.notified() => break,
                () = &mut served => break,
                Some(report) = reports.recv() => self.report(report),
                result = conted => {
                    cont = None;
                    self.conted(result);
                }
                () = self.shared.wake.notified() => {}
                () = alarm => {}
            }
        }
    }

    /// Whether the VM would lose a disk if it were resumed now.
    fn waits_for_clients(&mut self) -> bool {
        let now = self.now();
        let Some(returning) = &mut self.returning else {
            return false;
        };
        if let Some(at) = returning.resume_at {
            if now >= at {
                self.returning = None;
            }
            return now < at;
        }
        let back = (returning.are_back)();
        if back || now >= CLIENTS_TIME {
            // The VMM has to hear of it, too.
            returning.resume_at = Some(now + CLIENTS_POLL);
        }
        if !back && now >= CLIENTS_TIME {
            tracing::warn!(
                link = %self.id,
                "not all disks of the VM have come back to this daemon within {} s; it is resumed \
                 all the same",
                CLIENTS_TIME.as_secs()
            );
        }
        true
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Lets the machine decide and tells others what it says.
    fn step(&mut self, cont: &mut Option<Cont>) -> (Option<Action>, Option<Duration>) {
        // Before the lock: orders come while run control's own is held.
        let state: RunState = self.control.read(RunControl::state);
        let resume = lock(&self.shared.machine).status().pending == Some(VmPending::Resume);
        let held_back = if resume {
            self.waits_for_clients()
        } else {
            self.returning.is_some()
        };
        let (action, mut wake_at, outputs) = {
            let mut machine = lock(&self.shared.machine);
            machine.assume(state);
            machine.hold_back(held_back);
            let action = machine.next(self.now());
            (action, machine.wake_at(), machine.outputs())
        };
        if resume && held_back {
            let again = self.now() + CLIENTS_POLL;
            wake_at = Some(wake_at.map_or(again, |at| at.min(again)));
        }
        for output in outputs {
            match output {
                Output::Cont => {
                    tracing::info!(link = %self.id, "VM was resumed by somebody else: cont");
                    let control = self.control.clone();
                    *cont = Some(Box::pin(async move { control.cont(false).await }));
                }
                Output::Note(by) => self.control.note_vm_pause(by),
                Output::Announce(status) => self.announce(status),
                Output::Reset(result) => {
                    let waiting = lock(&self.shared.resets).as_mut().map(std::mem::take);
                    for waiting in waiting.into_iter().flatten() {
                        // Whoever has stopped waiting needs no answer.
                        let _ = waiting.send(result.clone());
                    }
                }
            }
        }
        (action, wake_at)
    }

    fn announce(&self, status: LinkStatus) {
        match (&status.error, status.state) {
            (Some(error), _) => tracing::warn!(link = %self.id, "{error}"),
            (None, state) => {
                tracing::info!(link = %self.id, vm = status.vm.name(), "link to the VMM is {}", state.name());
            }
        }
        self.control.announce(EventKind::VmLink {
            id: self.id.clone(),
            type_name: self.type_name,
            status: Box::new(status),
        });
    }

    fn report(&self, report: Report) {
        let now = self.now();
        let mut machine = lock(&self.shared.machine);
        match report {
            Report::Event(vm) => machine.event(vm),
            Report::Changed => machine.changed(),
            Report::Lost(text) => machine.lost(text, now),
            Report::Done(result) => machine.done(result, now),
        }
    }

    fn conted(&self, result: Result<(), Refusal>) {
        if let Err(refusal) = result {
            tracing::warn!(
                link = %self.id,
                "VM was resumed by somebody else, but its storage cannot go on; it is paused again: {refusal}"
            );
        }
        lock(&self.shared.machine).cont_done();
    }
}
