//! The task of one machine: its connection, for as long as its socket is there.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use qapi::types::Timestamp;
use qapi::{Object, Value};
use qmp_client::{Answer, ClientError, Connection, GREETING_TIMEOUT, Incoming, Wire, connect_unix};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::Section;
use crate::core::machine::{Machine, Order};
use crate::core::notice::Notice;
use crate::core::record::{Record, What};
use crate::core::view::{Disk, RunState};

use super::beside::{Beside, Done, Work};
use super::context::Context;
use super::desk::Who;
use super::fleet::MachineStatus;
use super::link::{Call, Link};
use super::lock::{Lock, LockError};
use super::shows;

/// An answer that takes longer does not come.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A monitor that another client has is waited for so long; then the connection is made anew.
const TAKEN_LIMIT: Duration = Duration::from_secs(600);
/// Between attempts to connect: at first, and at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// So many messages of a machine, then the others have their turn.
const MESSAGES_IN_TURN: u32 = 16;

/// How a task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its socket has gone, or nobody wants it any more.
    Gone,
    /// It was looked at, and nothing is left to do.
    Well,
    /// It was looked at, and something is left to somebody else; or it could not be reached.
    Open,
}

/// Why there is no connection.
enum End {
    Lost(String),
    Taken(String),
    Gone,
    Settled,
}

/// What an answer is for, and until when it must have come.
struct Want {
    of: Of,
    by: Instant,
}

enum Of {
    LookState,
    LookDisks,
    LookStats,
    Stats,
    Arm(String, u64),
    Status(u64),
    Cont,
    ContExport(String, u64),
    Call(oneshot::Sender<Result<Value, String>>),
}

/// The task of one machine.
#[derive(Debug)]
pub struct Session {
    context: Arc<Context>,
    socket: PathBuf,
    name: String,
    machine: Machine,
    section: watch::Receiver<Option<Arc<Section>>>,
    link: Link,
    calls: mpsc::Receiver<Call>,
    beside: Beside,
    /// Whether a `standfastd` that is linked with the VMM behind this socket keeps the VM from running.
    held_by_other: watch::Receiver<bool>,
    /// Whether it has a link to a VMM itself.
    linked: bool,
    /// The disks of an [`Order::Look`] whose second answer is to come.
    look_disks: Vec<Disk>,
    told: Option<String>,
}

impl Session {
    /// A task for the machine behind `socket`; `section` says what is wanted, none: nothing any more.
    pub fn new(
        context: Arc<Context>,
        socket: PathBuf,
        section: watch::Receiver<Option<Arc<Section>>>,
    ) -> Option<Self> {
        let rules = section.borrow().clone()?;
        let name = rules.name_of(&socket);
        let (link, calls) = Link::new();
        let numbers = Arc::clone(&context.numbers);
        // Addresses of the heap differ from run to run, and machines from each other.
        let seed = jiff::Timestamp::now().as_nanosecond().unsigned_abs() ^ name.len() as u128;
        let seed = u64::try_from(seed & u128::from(u64::MAX)).unwrap_or(0);
        let machine = Machine::new(&name, rules, context.dry_run, numbers, seed);
        let held_by_other = context.pairs.listen(&socket);
        Some(Self {
            context,
            socket,
            name,
            machine,
            section,
            link,
            calls,
            beside: Beside::default(),
            held_by_other,
            linked: false,
            look_disks: Vec::new(),
            told: None,
        })
    }

    /// Runs until the socket has gone.
    pub async fn run(mut self) -> Outcome {
        let mut retry = RETRY;
        let outcome = loop {
            let end = self.attempt(&mut retry).await;
            let (why, state) = match end {
                End::Gone => break Outcome::Gone,
                End::Settled => {
                    let open = self
                        .machine
                        .disks()
                        .iter()
                        .any(|disk| disk.incident.is_some());
                    break if open { Outcome::Open } else { Outcome::Well };
                }
                End::Lost(why) => (why, "unreachable"),
                End::Taken(why) => (why, "taken"),
            };
            self.machine.disconnected(self.now());
            self.tell_pair(false);
            self.beside.forget_next();
            self.tell_orders();
            self.tell_lost(&why, state);
            if self.context.once {
                break Outcome::Open;
            }
            if !self.socket.exists() {
                break Outcome::Gone;
            }
            let pause = sleep(retry);
            retry = (retry * 2).min(RETRY_MAX);
            if self.meanwhile(pause).await.is_none() {
                break Outcome::Gone;
            }
        };
        self.tell_pair(false);
        // What it has begun is not cut off; who asks for the connection is told that there is none.
        self.calls.close();
        while self.calls.recv().await.is_some() {}
        self.beside.forget_next();
        while self.beside.next().await.is_some() {}
        self.context.fleet.remove(&self.socket);
        self.context.teller.refresh();
        outcome
    }

    fn now(&self) -> Duration {
        self.context.began.elapsed()
    }

    /// Waits for something that needs no connection. None: nobody wants the machine any more.
    async fn meanwhile<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        loop {
            let section = self.section.borrow_and_update().clone()?;
            self.machine.reconfigure(self.now(), section);
            tokio::select! {
                done = &mut wait => return Some(done),
                // Dropped: there is no connection.
                Some(_) = self.calls.recv() => {}
                Some(_) = self.beside.next(), if !self.beside.is_empty() => {}
                changed = self.section.changed() => changed.ok()?,
            }
        }
    }

    async fn attempt(&mut self, retry: &mut Duration) -> End {
        // Who only looks is in nobody's way.
        let locked = (!self.context.dry_run)
            .then(|| Lock::take(&self.context.runtime_directory, &self.socket));
        let _lock = match locked.transpose() {
            Ok(lock) => lock,
            Err(error @ LockError::Taken(_)) => return End::Taken(error.to_string()),
            Err(error) => return End::Lost(error.to_string()),
        };
        let socket = self.socket.clone();
        let connected = async move { connect_unix(&socket, GREETING_TIMEOUT).await };
        let stream = match self.meanwhile(connected).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return End::Lost(format!("cannot connect: {error}")),
            None => return End::Gone,
        };
        let mut opening = Box::pin(Connection::open(Wire::new(stream), TAKEN_LIMIT));
        // QEMU lets one client in, and the next when that one goes: to wait is all that helps.
        let soon = self
            .meanwhile(tokio::time::timeout(GREETING_TIMEOUT, &mut opening))
            .await;
        let opened = match soon {
            Some(Ok(opened)) => Some(opened),
            Some(Err(_)) if self.context.once => {
                return End::Lost(
                    "it does not greet: another client may hold its monitor".to_owned(),
                );
            }
            Some(Err(_)) => {
                let why = "it does not greet: another client may hold its monitor; waiting";
                self.tell_lost(why, "unreachable");
                self.meanwhile(opening).await
            }
            None => None,
        };
        let connection = match opened {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return End::Lost(error.to_string()),
            None => return End::Gone,
        };
        *retry = RETRY;
        self.serve(connection).await
    }

    async fn serve(&mut self, mut connection: Connection<UnixStream>) -> End {
        let mut wants = HashMap::new();
        self.look_disks.clear();
        self.linked = false;
        let held = *self.held_by_other.borrow_and_update();
        self.machine.hold(self.now(), held);
        self.machine.connected();
        let (mut greeted, mut messages) = (false, 0_u32);
        loop {
            // Who is told without end lets others have their turn.
            messages = messages.wrapping_add(1);
            if messages.is_multiple_of(MESSAGES_IN_TURN) {
                tokio::task::yield_now().await;
            }
            if let Err(error) = self.carry_out(&mut connection, &mut wants) {
                return End::Lost(error.to_string());
            }
            if !greeted && let Some(state) = self.machine.state() {
                greeted = true;
                self.told = None;
                let state = state.name().to_owned();
                self.tell(What::MachineConnected { state });
            }
            if greeted {
                self.show();
                self.tell_pair(self.linked && self.machine.is_held());
            }
            if self.context.once && self.machine.is_settled() && self.beside.is_empty() {
                return End::Settled;
            }
            let wake = self.machine.wake_at().map(|at| self.context.began + at);
            let by = wants.values().map(|want: &Want| want.by).min();
            let never = Instant::now() + ANSWER_LIMIT;
            tokio::select! {
                incoming = connection.next() => match incoming {
                    Err(error) => return End::Lost(error.to_string()),
                    Ok(Incoming::Event(event)) => {
                        if let Some(mut notice) = Notice::parse(event.name(), event.data()) {
                            if let Notice::Threshold { age, .. } = &mut notice {
                                *age = event.timestamp().map_or(Duration::ZERO, old);
                            }
                            self.machine.notice(self.now(), notice);
                        }
                    }
                    Ok(Incoming::Answer(answer)) => {
                        if let Some(want) = wants.remove(&answer.id)
                            && let Err(why) = self.answered(want.of, answer)
                        {
                            return End::Lost(why);
                        }
                    }
                },
                Some((done, next)) = self.beside.next(), if !self.beside.is_empty() => {
                    let now = self.now();
                    match done {
                        Done::Room(disk, number, answer) => self.machine.room(now, &disk, number, answer),
                        Done::Health(disk, number, result) => {
                            self.machine.health(now, &disk, number, result);
                        }
                        Done::Measured(disk, result) => self.machine.measured(now, &disk, result),
                        Done::Early(disk, answer) => self.machine.early(now, &disk, answer),
                    }
                    if let Some(work) = next {
                        self.beside.begin(&self.context, self.who(), work);
                    }
                }
                Some(call) = self.calls.recv() => {
                    match connection.send(call.command, &call.arguments) {
                        Ok(id) => drop(wants.insert(id, want(Of::Call(call.reply)))),
                        Err(error) => return End::Lost(error.to_string()),
                    }
                }
                () = sleep_until(wake.unwrap_or(never)), if wake.is_some() => {
                    self.machine.tick(self.now());
                }
                () = sleep_until(by.unwrap_or(never)), if by.is_some() => {
                    return End::Lost(format!("it has not answered within {} s", ANSWER_LIMIT.as_secs()));
                }
                Ok(()) = self.held_by_other.changed() => {
                    let held = *self.held_by_other.borrow_and_update();
                    self.machine.hold(self.now(), held);
                }
                changed = self.section.changed() => {
                    let section = self.section.borrow_and_update().clone();
                    match section.filter(|_| changed.is_ok()) {
                        Some(section) => self.machine.reconfigure(self.now(), section),
                        None => return End::Gone,
                    }
                }
            }
        }
    }

    /// What a command has brought.
    ///
    /// # Errors
    /// It is no machine that can be watched.
    fn answered(&mut self, of: Of, answer: Answer) -> Result<(), String> {
        let now = self.now();
        let result = answer.result;
        match of {
            Of::LookDisks => {
                let disks = result.map_err(|error| format!("it refuses 'query-block': {error}"))?;
                self.look_disks = Disk::parse_all(&disks);
            }
            Of::LookState => {
                // qemu-storage-daemon has no run state.
                let state = self.run_state(result.ok());
                let disks = std::mem::take(&mut self.look_disks);
                self.machine.looked(now, state, disks);
            }
            Of::LookStats => {
                if let Ok(stats) = result {
                    Disk::take_stats(&mut self.look_disks, &stats);
                }
            }
            Of::Stats => {
                if let Ok(stats) = result {
                    let known = self.machine.disks().iter();
                    let mut disks: Vec<_> = known.map(|known| known.disk.clone()).collect();
                    Disk::take_stats(&mut disks, &stats);
                    self.machine.stats(now, &disks);
                }
            }
            Of::Arm(disk, threshold) => self.machine.armed(now, &disk, threshold, plain(result)),
            Of::Status(number) => {
                let state = self.run_state(result.ok());
                self.machine.status(now, number, state);
            }
            Of::Cont => self.machine.continued(now, plain(result)),
            Of::ContExport(disk, number) => {
                self.machine
                    .export_continued(now, &disk, number, plain(result));
            }
            Of::Call(reply) => {
                let result = result.map_err(|error| error.to_string());
                let refused = |why| format!("'{}' is refused: {why}", answer.command);
                // Whoever has asked may have gone.
                let _ = reply.send(result.map_err(refused));
            }
        }
        Ok(())
    }

    /// The run state, and whether there is a link.
    fn run_state(&mut self, answer: Option<Value>) -> Option<RunState> {
        let answer = answer?;
        self.linked = answer.get("x-vmm").is_some_and(Value::is_object);
        RunState::parse(&answer)
    }

    /// Tells the machine behind the VMM's socket whether this one keeps the VM from running.
    fn tell_pair(&self, held: bool) {
        let vmm = self
            .section
            .borrow()
            .as_ref()
            .and_then(|section| section.vmm_of(&self.socket));
        if let Some(vmm) = vmm {
            self.context.pairs.set(&vmm, held);
        }
    }

    /// Carries out what the machine orders.
    fn carry_out(
        &mut self,
        connection: &mut Connection<UnixStream>,
        wants: &mut HashMap<u64, Want>,
    ) -> Result<(), ClientError> {
        for order in self.machine.take_orders() {
            let mut send = |command: &str, arguments: Object, of: Of| {
                let id = connection.send(command, &arguments)?;
                wants.insert(id, want(of));
                Ok::<_, ClientError>(())
            };
            match order {
                Order::Look => {
                    send("query-block", Object::new(), Of::LookDisks)?;
                    send("query-blockstats", Object::new(), Of::LookStats)?;
                    send("query-status", Object::new(), Of::LookState)?;
                }
                Order::Stats => send("query-blockstats", Object::new(), Of::Stats)?,
                // Nobody would be there to hear of it.
                Order::Arm { .. } if self.context.once => {}
                Order::Arm {
                    disk,
                    node,
                    threshold,
                } => {
                    let arguments = Object::from_iter([
                        ("node-name".to_owned(), node.into()),
                        ("write-threshold".to_owned(), threshold.into()),
                    ]);
                    let of = Of::Arm(disk, threshold);
                    send("block-set-write-threshold", arguments, of)?;
                }
                Order::Measure(order) => {
                    let who = self.who();
                    self.beside.begin(&self.context, who, Work::Measure(order));
                }
                Order::Early(order) => {
                    let who = self.who();
                    self.beside.begin(&self.context, who, Work::Early(order));
                }
                Order::Status(number) => send("query-status", Object::new(), Of::Status(number))?,
                Order::Cont => send("cont", Object::new(), Of::Cont)?,
                Order::ContExport { disk, incident } => {
                    let id = Object::from_iter([("id".to_owned(), disk.clone().into())]);
                    send("x-block-export-cont", id, Of::ContExport(disk, incident))?;
                }
                Order::Room(order) => {
                    let who = self.who();
                    self.beside.begin(&self.context, who, Work::Room(order));
                }
                Order::Health(order) => {
                    let who = self.who();
                    self.beside.begin(&self.context, who, Work::Health(order));
                }
                Order::Tell(record) => self.context.teller.tell(&record),
            }
        }
        Ok(())
    }

    fn who(&self) -> Who {
        Who {
            machine: self.name.clone(),
            socket: self.socket.clone(),
            link: self.link.clone(),
        }
    }

    /// What is still to be told when there is no connection to do anything else.
    fn tell_orders(&mut self) {
        for order in self.machine.take_orders() {
            if let Order::Tell(record) = order {
                self.context.teller.tell(&record);
            }
        }
    }

    fn tell(&self, what: What) {
        self.context.teller.tell(&Record {
            machine: self.name.clone(),
            disk: None,
            incident: None,
            what,
            alert: false,
        });
    }

    fn tell_lost(&mut self, why: &str, state: &'static str) {
        // Once for each reason.
        if self.told.as_deref() != Some(why) {
            self.told = Some(why.to_owned());
            self.tell(What::MachineLost {
                why: why.to_owned(),
            });
        }
        self.context.fleet.set(MachineStatus {
            machine: self.name.clone(),
            socket: self.socket.clone(),
            state: state.to_owned(),
            why: Some(why.to_owned()),
            ..MachineStatus::default()
        });
        self.context.teller.refresh();
    }

    /// Shows how it is to whoever asks.
    fn show(&self) {
        let status = shows::status(&self.machine, &self.name, &self.socket);
        if self.context.fleet.set(status) {
            self.context.teller.refresh();
        }
    }
}

/// How long ago that was. A clock that was set, or a server that lies, makes it 0.
fn old(timestamp: Timestamp) -> Duration {
    let micros = u64::try_from(timestamp.seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000))
        .zip(u64::try_from(timestamp.microseconds).ok());
    let then = micros.and_then(|(seconds, micros)| {
        std::time::UNIX_EPOCH.checked_add(Duration::from_micros(seconds.checked_add(micros)?))
    });
    let age = then.and_then(|then| std::time::SystemTime::now().duration_since(then).ok());
    age.filter(|age| *age < ANSWER_LIMIT).unwrap_or_default()
}

fn want(of: Of) -> Want {
    Want {
        of,
        by: Instant::now() + ANSWER_LIMIT,
    }
}

fn plain(result: Result<Value, qapi::QmpError>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}
