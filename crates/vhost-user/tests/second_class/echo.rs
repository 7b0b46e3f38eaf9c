//! A class of device that is no disk: request queues and, last, an event queue. A request has a code and
//! an argument; its answer is a value and a status, first in what the device may write.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use standfast_vhost_user::chain::{ChainError, GuestBytes, Table};
use standfast_vhost_user::protocol::message::ConfigRange;
use standfast_vhost_user::{
    Access, Class, Closed, DeviceHandle, Format, Guest, NotMapped, Part, Record, Requests, View,
};

pub const QUEUES: u16 = 3;
pub const EVENTS: u16 = QUEUES - 1;

/// Codes of requests.
pub const INVERT: u64 = 1;
/// The sum of the bytes behind the header.
pub const SUM: u64 = 2;
/// Takes a while, in which it is in flight.
pub const SLOW: u64 = 3;
/// Waits until the device is told to go on.
pub const HOLD: u64 = 4;
/// Answered at once; the argument is told by an event.
pub const EMIT: u64 = 5;

pub const OK: u64 = 0;
pub const UNKNOWN: u64 = 7;
const ANSWER_BYTES: u32 = 16;

/// What a test sees of the device, and does to it.
#[derive(Debug, Default)]
pub struct Told {
    pub life: Mutex<Vec<String>>,
    pub held: Mutex<usize>,
    /// How many slow requests were taken.
    pub slow: Mutex<usize>,
}

impl Told {
    fn say(&self, what: impl Into<String>) {
        self.life.lock().unwrap().push(what.into());
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Request,
    Event,
}

#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    Request {
        code: u64,
        argument: u64,
    },
    /// A buffer for an event.
    Room,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    value: u64,
    status: u64,
}

#[derive(Debug, Default)]
pub struct Taken(Record);

impl AsRef<Record> for Taken {
    fn as_ref(&self) -> &Record {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("no room for an answer")]
    NoRoom,
    #[error("an event has nothing to read")]
    Readable,
}

impl Format for Kind {
    type Taken = Taken;
    type Parsed = Parsed;
    type Outcome = Outcome;
    type Malformed = Malformed;

    fn parse<M: GuestBytes>(
        self,
        memory: &M,
        table: Table,
        head: u16,
        taken: &mut Taken,
    ) -> Result<Parsed, Malformed> {
        let totals = taken.0.read_chain(memory, table, head)?;
        if totals.writable < ANSWER_BYTES.into() {
            return Err(Malformed::NoRoom);
        }
        match self {
            Self::Event if totals.readable > 0 => Err(Malformed::Readable),
            Self::Event => Ok(Parsed::Room),
            Self::Request => {
                let [code, argument] = taken.0.take_front(memory).unwrap_or_default();
                Ok(Parsed::Request { code, argument })
            }
        }
    }

    fn is_executed(parsed: &Parsed) -> bool {
        matches!(parsed, Parsed::Request { code: 1.., .. })
    }

    fn bytes(_parsed: &Parsed) -> u64 {
        0
    }

    fn answer(taken: &Taken, outcome: Outcome, memory: &View) -> Result<u32, NotMapped> {
        let bytes = [outcome.value, outcome.status].map(u64::to_le_bytes);
        let mut left = bytes.as_flattened();
        for buffer in taken.0.writable() {
            let (now, later) = left.split_at(left.len().min(buffer.len as usize));
            memory.store_all(buffer.address, now)?;
            left = later;
        }
        Ok(ANSWER_BYTES)
    }
}

struct Inner {
    queues: Vec<Option<Rc<dyn Requests<Kind>>>>,
    suspended: RefCell<BTreeSet<u16>>,
    /// Heads of buffers for events, oldest first.
    room: RefCell<VecDeque<u16>>,
    /// Events that nobody has room for.
    events: RefCell<VecDeque<u64>>,
    held: RefCell<Vec<(u16, u16, u64)>>,
    in_flight: Cell<usize>,
    told: Arc<Told>,
}

#[derive(Clone)]
pub struct EchoPart(Rc<Inner>);

impl EchoPart {
    fn end(&self, queue: u16, head: u16, value: u64, status: u64) {
        if let Some(Some(queue)) = self.0.queues.get(usize::from(queue)) {
            queue.complete(head, Outcome { value, status });
        }
    }

    fn deliver(&self) {
        if self.0.suspended.borrow().contains(&EVENTS) {
            return;
        }
        let (mut room, mut events) = (self.0.room.borrow_mut(), self.0.events.borrow_mut());
        while !room.is_empty()
            && let Some(event) = events.pop_front()
            && let Some(head) = room.pop_front()
        {
            self.end(EVENTS, head, event, OK);
        }
    }

    /// What is held is done.
    pub fn go_on(&self) {
        for (queue, head, argument) in self.0.held.take() {
            self.end(queue, head, argument, OK);
        }
        *self.0.told.held.lock().unwrap() = 0;
    }

    /// Another life of the device.
    fn drop_all(&self) {
        self.0.room.borrow_mut().clear();
        self.0.events.borrow_mut().clear();
        self.0.held.borrow_mut().clear();
        *self.0.told.held.lock().unwrap() = 0;
    }

    fn sum(&self, queue: &impl Requests<Kind>, head: u16) -> Option<u64> {
        let mut iov = Vec::new();
        queue.map(head, Some(Access::Load), &mut iov).ok()?;
        assert!(!queue.has_lost(head, Access::Load, &iov));
        let sum = iov.iter().flat_map(|one| {
            let base = one.iov_base.cast::<u8>();
            // SAFETY: `map` vouches for so many bytes until `unmap`; they may change at any time.
            (0..one.iov_len).map(move |at| u64::from(unsafe { base.add(at).read_volatile() }))
        });
        let sum = sum.sum();
        queue.unmap(head);
        Some(sum)
    }
}

impl Part for EchoPart {
    type Format = Kind;
    type Config = Arc<Told>;

    async fn open<Q: Requests<Kind>>(told: &Arc<Told>, queues: Vec<Option<Rc<Q>>>) -> Option<Self> {
        let erased = |queue: Rc<Q>| queue as Rc<dyn Requests<Kind>>;
        Some(Self(Rc::new(Inner {
            suspended: RefCell::new((0..QUEUES).collect()),
            queues: queues.into_iter().map(|queue| queue.map(erased)).collect(),
            room: RefCell::default(),
            events: RefCell::default(),
            held: RefCell::default(),
            in_flight: Cell::new(0),
            told: Arc::clone(told),
        })))
    }

    fn format(_told: &Arc<Told>, queue: u16) -> Kind {
        match queue {
            EVENTS => Kind::Event,
            _ => Kind::Request,
        }
    }

    fn queue_broken(told: &Arc<Told>, queue: u16, reason: String) {
        told.say(format!("queue {queue} broken: {reason}"));
    }

    fn unrecorded(told: &Arc<Told>) {
        told.say("unrecorded");
    }

    fn expect(&self, _more: usize) {}

    fn may_take(&self, queue: u16) -> bool {
        !self.0.suspended.borrow().contains(&queue)
    }

    fn act<Q: Requests<Kind>>(&self, index: u16, queue: &Q, head: u16, parsed: Parsed) {
        let end = |value, status| queue.complete(head, Outcome { value, status });
        match parsed {
            Parsed::Room => {
                self.0.room.borrow_mut().push_back(head);
                self.deliver();
            }
            Parsed::Request { code, argument } => match code {
                INVERT => end(!argument, OK),
                SUM => match self.sum(queue, head) {
                    Some(sum) => end(sum, OK),
                    None => end(0, UNKNOWN),
                },
                SLOW => {
                    self.0.in_flight.update(|count| count + 1);
                    *self.0.told.slow.lock().unwrap() += 1;
                    let this = self.clone();
                    let task = iothread::spawn_local(async move {
                        iothread::time::sleep(Duration::from_millis(argument)).await;
                        this.0.in_flight.update(|count| count - 1);
                        this.end(index, head, argument, OK);
                    });
                    task.detach();
                }
                HOLD => {
                    self.0.held.borrow_mut().push((index, head, argument));
                    *self.0.told.held.lock().unwrap() += 1;
                }
                EMIT => {
                    self.0.events.borrow_mut().push_back(argument);
                    end(0, OK);
                    self.deliver();
                }
                _ => end(0, UNKNOWN),
            },
        }
    }

    fn start_queue(&self, queue: u16) {
        self.0.suspended.borrow_mut().remove(&queue);
        if let Some(Some(queue)) = self.0.queues.get(usize::from(queue)) {
            queue.process();
        }
        self.deliver();
    }

    fn suspend_queue(&self, queue: u16) {
        self.0.suspended.borrow_mut().insert(queue);
    }

    async fn settle_queue(&self, _queue: u16) {
        while self.0.in_flight.get() > 0 {
            iothread::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn retain(&self, queue: u16, mut keep: impl FnMut(u16) -> bool) {
        let Some(Some(requests)) = self.0.queues.get(usize::from(queue)) else {
            return;
        };
        let mut keep = |head: u16| keep(head) || (requests.forget(head), false).1;
        if queue == EVENTS {
            self.0.room.borrow_mut().retain(|head| keep(*head));
        }
        let of_others = |(other, _, _): &(u16, u16, u64)| *other != queue;
        let mut held = self.0.held.borrow_mut();
        held.retain(|one| of_others(one) || keep(one.1));
        *self.0.told.held.lock().unwrap() = held.len();
    }

    fn memory_moves(&self) {}

    fn memory_settled(&self) {}

    async fn close(self) {
        self.drop_all();
    }
}

/// The control plane. Its configuration space is one byte, which a client may set to anything but 0.
pub struct Echo {
    pub device: DeviceHandle<EchoPart>,
    pub told: Arc<Told>,
    pub recorded: bool,
    pub byte: u8,
}

impl Echo {
    fn begin(&mut self, how: &str) -> Result<(), Closed> {
        self.told.say(how);
        self.recorded = false;
        self.device.on_parts(EchoPart::drop_all)
    }
}

impl Class for Echo {
    type Part = EchoPart;

    const NAME: &'static str = "echo";

    fn features(&self) -> u64 {
        1
    }

    fn negotiated(&mut self, _guest: Guest<'_>) -> Result<(), Closed> {
        Ok(())
    }

    fn read_config(&mut self, range: ConfigRange) -> Vec<u8> {
        vec![self.byte; range.len as usize]
    }

    fn write_config(
        &mut self,
        _range: ConfigRange,
        bytes: &[u8],
        guest: Guest<'_>,
    ) -> Result<bool, Closed> {
        let byte = bytes.first().copied().filter(|byte| *byte != 0);
        if let Some(byte) = byte {
            self.byte = byte;
            guest.note(byte);
        }
        Ok(byte.is_some())
    }

    fn has_changed(&self) -> bool {
        false
    }

    fn attach(&mut self) -> Result<(), Closed> {
        self.begin("attach")
    }

    fn reset(&mut self) -> Result<(), Closed> {
        self.begin("reset")
    }

    fn reattach(&mut self) -> Result<(), Closed> {
        self.told.say("reattach");
        Ok(())
    }

    fn handed_back(&mut self) -> Result<(), Closed> {
        let held = *self.told.held.lock().unwrap();
        self.told.say(if held > 0 {
            "handed back"
        } else {
            "nothing came"
        });
        Ok(())
    }

    fn abandon(&mut self) -> Result<(), Closed> {
        self.begin("abandon")
    }

    fn recorded(&mut self) {
        self.recorded = true;
    }

    fn is_recorded(&self) -> bool {
        self.recorded
    }

    fn holds(&self) -> bool {
        *self.told.held.lock().unwrap() > 0
    }

    fn note(&self) -> u8 {
        self.byte
    }

    fn found(&mut self, note: u8, _guest: Guest<'_>) -> Result<(), Closed> {
        self.byte = note;
        Ok(())
    }

    fn starts_ring(&mut self, _guest: Guest<'_>) -> Result<(), Closed> {
        Ok(())
    }

    fn end(&mut self) {}
}
