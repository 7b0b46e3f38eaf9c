//! The two iothreads of a run: where requests are submitted and polled.
//!
//! A driver knows on which thread it is by what it keeps there ([`block::ThreadState`], stocks of buffers, slots of
//! counters): thread-locals, and nothing else. So there are two ways. *Here*, both iothreads are the calling thread:
//! quick, and enough for everything that is decided by the order of polls and completions. *Iothreads*: two real
//! ones, of which one runs at a time, while whoever has told it to poll waits; thread-locals, `attach` and `detach`, and
//! timers are then as in the daemon, and the order is still decided by the seed. What two threads do at the very
//! same time is not seen by either: for that there are loom, Miri and the tests under load.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use block::{Attachment, Io, Node, OwnedBuffer};
use iothread::{Config, Handle, IoThread};
use parking_lot::{Condvar, Mutex};

use crate::event::{Ask, Request};
use crate::look;
use crate::sector::{SECTOR, Value, bytes_of, fill, index, value_of};

/// How many iothreads there are.
pub const HANDS: usize = 2;

/// What a hand is to do in one of its places.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// A request of the guest, and the stamp that it writes.
    Request(Request, u32),
    /// What the driver has not written yet.
    WriteBack,
}

/// How it has ended.
#[derive(Debug, Default)]
pub struct Done {
    /// The errno, if it has failed.
    pub failed: Option<i32>,
    /// What a read has found.
    pub seen: Vec<Result<Value, String>>,
}

/// Places whose futures want to be polled.
#[derive(Debug, Default)]
pub struct Woken {
    places: Mutex<BTreeSet<usize>>,
    changed: Condvar,
}

impl Woken {
    /// Those there are.
    pub fn places(&self) -> Vec<usize> {
        self.places.lock().iter().copied().collect()
    }

    /// This one is polled now.
    pub fn take(&self, place: usize) {
        self.places.lock().remove(&place);
    }

    /// Waits until there is one. False: for too long.
    pub fn wait(&self, longest: Duration) -> bool {
        let mut places = self.places.lock();
        if places.is_empty() {
            self.changed.wait_for(&mut places, longest);
        }
        !places.is_empty()
    }
}

struct PlaceWaker(usize, Arc<Woken>);

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.1.places.lock().insert(self.0);
        self.1.changed.notify_all();
    }
}

type Task = Pin<Box<dyn Future<Output = Done>>>;

/// What one iothread has.
#[derive(Default)]
struct Hand {
    tasks: BTreeMap<usize, Task>,
    attachment: Option<Attachment>,
}

impl Hand {
    fn poll(&mut self, place: usize, woken: &Arc<Woken>) -> Option<Done> {
        let waker = Waker::from(Arc::new(PlaceWaker(place, Arc::clone(woken))));
        let task = self.tasks.get_mut(&place)?;
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(done) => {
                self.tasks.remove(&place);
                Some(done)
            }
        }
    }
}

async fn perform(node: Arc<Node>, work: Work) -> Done {
    let Work::Request(request, stamp) = work else {
        look::write_back(&node).await;
        return Done::default();
    };
    let (offset, bytes) = (bytes_of(request.first), bytes_of(request.sectors));
    let mut seen = Vec::new();
    let mut moved = index(bytes);
    if !matches!(request.ask, Ask::Read | Ask::Write) {
        moved = 0;
    }
    let Ok(mut buffer) = OwnedBuffer::new(moved) else {
        return Done {
            failed: Some(libc::ENOMEM),
            seen,
        };
    };
    // What nobody has read into must not look like what was there before.
    buffer.fill(0xa5);
    let io = match request.ask {
        Ask::Read => Io::read(offset, buffer.lend()),
        Ask::Write => {
            fill(&mut buffer, stamp, request.first);
            Io::write(offset, buffer.lend())
        }
        Ask::Zeroes { unmap } => Io::write_zeroes(offset, bytes, unmap),
        Ask::Discard => Io::discard(offset, bytes),
        Ask::Flush => Io::flush(),
    };
    let fua = request.fua && io.op.modifies();
    let ended = node.submit(Io { fua, ..io }).await;
    if request.ask == Ask::Read && ended.is_ok() {
        let sectors = (request.first..).zip(buffer.chunks(SECTOR));
        seen = sectors
            .map(|(sector, content)| value_of(content, sector))
            .collect();
    }
    let failed = ended.err().map(|error| error.errno());
    Done { failed, seen }
}

thread_local! {
    static HAND: RefCell<Hand> = RefCell::default();
}

/// See the [module](self).
pub struct Hands(Where);

enum Where {
    Here([Hand; HANDS]),
    Iothreads {
        handles: Vec<Handle>,
        /// Held for their drop.
        _threads: Vec<IoThread>,
    },
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Where::Here(_) => "here",
            Where::Iothreads { .. } => "iothreads",
        })
    }
}

impl Hands {
    /// Both are the calling thread.
    pub fn here() -> Self {
        Self(Where::Here(Default::default()))
    }

    /// Two real iothreads.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn iothreads() -> Result<Self, iothread::StartError> {
        let start = |number| {
            IoThread::spawn(Config {
                name: format!("sweep{number}"),
                ..Config::default()
            })
        };
        let threads = (0..HANDS).map(start).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(Where::Iothreads {
            handles: threads.iter().map(IoThread::handle).collect(),
            _threads: threads,
        }))
    }

    /// Whether a waker may be called by something that is not the schedule.
    pub fn may_be_late(&self) -> bool {
        matches!(self.0, Where::Iothreads { .. })
    }

    fn at<R: Send + 'static>(
        &mut self,
        hand: usize,
        act: impl FnOnce(&mut Hand) -> R + Send + 'static,
    ) -> Option<R> {
        match &mut self.0 {
            Where::Here(hands) => hands.get_mut(hand).map(act),
            Where::Iothreads { handles, .. } => {
                let run = move || std::future::ready(HAND.with_borrow_mut(act));
                handles.get(hand)?.run_blocking(run).ok()
            }
        }
    }

    /// Both attach `node`.
    pub fn attach(&mut self, node: &Arc<Node>) {
        for hand in 0..HANDS {
            let node = Arc::clone(node);
            self.at(hand, move |hand| {
                hand.attachment = Some(Attachment::new(&node))
            });
        }
    }

    /// Both drop what they have in flight, and detach.
    pub fn let_go(&mut self) {
        for hand in 0..HANDS {
            self.at(hand, |hand| hand.tasks.clear());
        }
        for hand in 0..HANDS {
            self.at(hand, |hand| hand.attachment = None);
        }
    }

    /// `work` begins at a place; [`Self::poll`] has to be called next.
    pub fn start(&mut self, hand: usize, place: usize, node: &Arc<Node>, work: Work) {
        let node = Arc::clone(node);
        self.at(hand, move |hand| {
            hand.tasks.insert(place, Box::pin(perform(node, work)));
        });
    }

    /// Polls what is at a place. None: it has not ended.
    pub fn poll(&mut self, hand: usize, place: usize, woken: &Arc<Woken>) -> Option<Done> {
        woken.take(place);
        let woken = Arc::clone(woken);
        self.at(hand, move |hand| hand.poll(place, &woken))
            .flatten()
    }
}
