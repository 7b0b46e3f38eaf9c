//! What makes a device out of rings: the seam between the transport and the classes of devices.
//!
//! What a part does to a queue, in turn, is [`Requests`]. A class has three sides, each where it is needed:
//!
//! - [`Format`]: how the requests of a queue are read and answered; pure;
//! - [`Part`]: the data plane, one on each iothread, to which requests are handed one by one;
//! - [`Class`]: the control plane, on the thread that talks with the client: features, configuration
//!   space, and the life of the device.

use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use libc::iovec;

use crate::chain::{GuestBytes, Table};
use crate::inflight::Region;
use crate::memory::NotMapped;
use crate::populate::Access;
use crate::protocol::message::ConfigRange;
use crate::record::Record;
use crate::view::View;

/// What all classes say of a device in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What the device is called in messages.
    pub id: String,
    /// How many queues there are, 1 to 256: some messages have 8 bits for the number of a queue.
    pub queues: u16,
    /// Descriptors of the largest queue that a client may set up: a power of two, at most 32768.
    pub queue_size_max: u16,
    /// Whether the client may tell changes of its memory instead of all of it.
    pub configure_mem_slots: bool,
}

/// How the requests of one queue are read and answered. Queues of one device may have different ones
/// ([`Part::format`]), which are then values of one type.
pub trait Format: Copy + 'static {
    /// What is remembered about a request from the moment it is taken to its end, in guest addresses;
    /// the buffers of its chain among it. It is kept and used again for the next one.
    type Taken: AsRef<Record> + Default;
    /// A request that was read: what is to be done about it.
    type Parsed: Copy + fmt::Debug;
    /// How a request has ended, to be told to the driver.
    type Outcome: Copy + fmt::Debug + PartialEq;
    /// A chain to which no answer is possible: the queue cannot be trusted any more.
    type Malformed: std::error::Error + Send + Sync + 'static;

    /// Reads the request whose chain begins at `head`. Total: any chain in any memory.
    ///
    /// # Errors
    /// The queue is broken. What can be answered is no error.
    fn parse<M: GuestBytes>(
        self,
        memory: &M,
        table: Table,
        head: u16,
        taken: &mut Self::Taken,
    ) -> Result<Self::Parsed, Self::Malformed>;

    /// Whether the request is to be executed. If not, it may be because memory was missing that the
    /// client is about to give back, and it is read again then.
    fn is_executed(parsed: &Self::Parsed) -> bool;

    /// How much there is to transfer, in bytes: what is taken in one go is bounded by that.
    fn bytes(parsed: &Self::Parsed) -> u64;

    /// Writes the answer to where the driver looks for it. Returns the number of bytes that the device
    /// may have written to the whole chain.
    ///
    /// # Errors
    /// If that place is in no memory; the request cannot be completed then.
    fn answer(taken: &Self::Taken, outcome: Self::Outcome, memory: &View)
    -> Result<u32, NotMapped>;
}

/// Why buffers cannot be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// They are not in the client's memory.
    Gone,
    /// The client has taken memory away and may be about to give it back.
    Moving,
}

/// The requests that were taken from one queue, by their heads, as its part sees them.
pub trait Requests<F: Format>: 'static {
    /// Takes everything that is available, as far as that is allowed, and shows the driver what of it
    /// has ended at once. True if there was something.
    fn process(&self) -> bool;

    /// Appends the addresses in this process of what there is to load or to store, and keeps them
    /// mapped until [`Requests::unmap`] or [`Requests::end`]. Without data (none) nothing is appended.
    ///
    /// # Errors
    /// [`Unmapped`], also without data if the ring does not run.
    fn map(&self, head: u16, access: Option<Access>, iov: &mut Vec<iovec>) -> Result<(), Unmapped>;

    /// Whether the buffers of a request, which are mapped, are not there any more.
    fn has_lost(&self, head: u16, access: Access, iov: &[iovec]) -> bool;

    /// Nothing accesses the buffers of a request any more.
    fn unmap(&self, head: u16);

    /// Writes to the beginning of what the device may write, as much as there is room for.
    ///
    /// # Errors
    /// If it is in no memory, or the ring does not run.
    fn store(&self, head: u16, bytes: &[u8]) -> Result<(), NotMapped>;

    /// A request has ended; the driver learns of it at the end of the round, or when the ring is
    /// started again.
    fn complete(&self, head: u16, outcome: F::Outcome);

    /// [`Requests::unmap`] and [`Requests::complete`] in one.
    fn end(&self, head: u16, outcome: F::Outcome);

    /// A request will never be completed.
    fn forget(&self, head: u16);
}

/// The device is at its end: an iothread is gone, or it has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the export is closed")]
pub struct Closed;

/// The data plane of a device on one iothread: what becomes of the requests of some of its queues.
/// Clones are the same part.
///
/// A request that was handed to it by [`Part::act`] is *taken* until it is ended by
/// [`Requests::complete`], [`Requests::end`] or [`Requests::forget`]. Of those that are taken, some are
/// *in flight*: their buffers may be accessed at any moment, and whoever stops the ring has to wait for
/// them. All others just wait, be they held, parked or, as those of an event queue, without anything
/// to tell.
pub trait Part: Clone + 'static {
    /// See [`Format`].
    type Format: Format;
    /// What a part is made of; the same for all parts of a device.
    type Config: Clone + Send + 'static;

    /// Makes the part. `queues` are those of the device by their numbers, as far as they are on this
    /// iothread; none of their rings runs. None if whatever it needs has ended.
    fn open<Q: Requests<Self::Format>>(
        config: &Self::Config,
        queues: Vec<Option<Rc<Q>>>,
    ) -> impl Future<Output = Option<Self>>;

    /// How the requests of a queue are read.
    fn format(config: &Self::Config, queue: u16) -> Self::Format;

    /// A queue is not served any more until its ring is started anew, for this reason.
    fn queue_broken(config: &Self::Config, queue: u16, reason: String);

    /// A queue is served, but what is taken from it is in no inflight region: it is lost with this
    /// process.
    fn unrecorded(config: &Self::Config);

    /// A ring starts, and so many requests may be taken at the same time that could not before.
    fn expect(&self, more: usize);

    /// Whether requests may be taken from a queue now.
    fn may_take(&self, queue: u16) -> bool;

    /// Does what a request wants, which was just taken from the queue `index` or, at the start of its
    /// ring, is taken up again. It may end at once.
    fn act<Q: Requests<Self::Format>>(
        &self,
        index: u16,
        queue: &Q,
        head: u16,
        parsed: <Self::Format as Format>::Parsed,
    );

    /// Requests may be taken from a queue from now on. Whatever forbids it yet calls
    /// [`Requests::process`] once it does not.
    fn start_queue(&self, queue: u16);

    /// Nothing may be taken from a queue, nor be started that was.
    fn suspend_queue(&self, queue: u16);

    /// Waits for what is in flight of a queue; it ends by itself.
    fn settle_queue(&self, queue: u16) -> impl Future<Output = ()>;

    /// Drops what waits of a queue, unless `keep` says of its head that its ring knows it.
    fn retain(&self, queue: u16, keep: impl FnMut(u16) -> bool);

    /// The client has removed memory that a request needs: nothing is started before
    /// [`Part::memory_settled`].
    fn memory_moves(&self);

    /// The memory has changed: what could not be reached before is tried again.
    fn memory_settled(&self);

    /// Ends it. All rings are stopped.
    fn close(self) -> impl Future<Output = ()>;
}

/// What a class is told of the driver, and where it may note something.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    pub(crate) features: u64,
    pub(crate) region: Option<&'a Arc<Region>>,
}

impl Guest<'_> {
    /// The negotiated virtio features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Notes a byte in the client's inflight region, for whoever serves the device next; false if
    /// there is no place for it.
    pub fn note(&self, note: u8) -> bool {
        self.region.is_some_and(|region| region.set_note(note))
    }
}

/// The control plane of a device. Methods are called on the thread that talks with the client, and may
/// wait for what ends by itself only.
pub trait Class: Send + 'static {
    /// The data plane.
    type Part: Part;

    /// What a driver calls such a device.
    const NAME: &'static str;

    /// The virtio features of the class that are offered, besides those of the transport.
    fn features(&self) -> u64;

    /// The driver has negotiated features, or begins anew.
    ///
    /// # Errors
    /// [`Closed`], as for all that follows: the device is at its end.
    fn negotiated(&mut self, guest: Guest<'_>) -> Result<(), Closed>;

    /// The part of the configuration space that the client asks for, as long as it has asked for.
    fn read_config(&mut self, range: ConfigRange) -> Vec<u8>;

    /// The client writes to the configuration space. False if it cannot be done.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn write_config(
        &mut self,
        range: ConfigRange,
        bytes: &[u8],
        guest: Guest<'_>,
    ) -> Result<bool, Closed>;

    /// Whether the configuration space has changed since the client has read it.
    fn has_changed(&self) -> bool;

    /// A client begins the first life of the device on its connection: what waited is dropped.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn attach(&mut self) -> Result<(), Closed>;

    /// A client that stays begins another life of the device: what waited is dropped.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn reset(&mut self) -> Result<(), Closed>;

    /// The first client of this process goes on with what another process has served.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn reattach(&mut self) -> Result<(), Closed>;

    /// The client has started every queue of which its region had anything marked when it was handed
    /// in; none if nothing was. What another process has left has been taken up, and nothing more
    /// comes of it.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn handed_back(&mut self) -> Result<(), Closed>;

    /// What waits is dropped: nobody can hand it back any more.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn abandon(&mut self) -> Result<(), Closed>;

    /// The client keeps a record of what is taken: it survives this process and the connection.
    fn recorded(&mut self);

    /// Whether [`Class::recorded`] is the last that was said, and not [`Part::unrecorded`], since
    /// [`Class::attach`].
    fn is_recorded(&self) -> bool;

    /// Whether something waits that a client which leaves for good would leave behind.
    fn holds(&self) -> bool;

    /// What a fresh inflight region is to have noted.
    fn note(&self) -> u8;

    /// What an inflight region is labelled with: what the device is, to whoever serves it next. At most 1022
    /// bytes; none: nothing.
    fn label(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The client hands an inflight region in that is labelled so.
    ///
    /// # Errors
    /// Why this is not the device that it has used: it is disconnected then.
    fn check_label(&self, _label: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The client hands an inflight region in that has this noted; 0: nothing.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn found(&mut self, note: u8, guest: Guest<'_>) -> Result<(), Closed>;

    /// A ring is about to be started.
    ///
    /// # Errors
    /// See [`Class::negotiated`].
    fn starts_ring(&mut self, guest: Guest<'_>) -> Result<(), Closed>;

    /// The connection is gone.
    fn end(&mut self);
}
