//! What only some drivers can do: small traits, handed out by those that implement them.
//!
//! [`crate::Driver`] is about storage alone. A driver that can do one of these says so by
//! [`crate::Driver::capabilities`]; all others know nothing of it. [`crate::Node`] asks for them, so that
//! nobody has to look whether they are there. Everything here is called on control threads, unless it says
//! something else.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::driver::corruption::Corruption;
use crate::driver::fault::FaultPlan;
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::driver::loss::Loss;
use crate::driver::threshold::WriteThreshold;
use crate::words::error::Result;
use crate::words::image::Image;
use crate::words::permissions::Access;

/// What a driver can do beside its storage. It is the same for the whole life of the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities<'a> {
    /// It can lose what was written, and knows that it has.
    pub flush_latch: Option<&'a dyn FlushLatch>,
    /// It may have to refuse `cont`.
    pub cont_blocker: Option<&'a dyn ContBlocker>,
    /// Its length can be changed.
    pub resize: Option<&'a dyn Resize>,
    /// It can be opened anew while it is in use.
    pub reopen: Option<&'a dyn Reopen>,
    /// It becomes longer by what is written beyond its end.
    pub grow: Option<&'a dyn Grow>,
    /// It limits how many bytes are allocated.
    pub quota: Option<&'a dyn AllocationLimit>,
    /// It compares what it counts itself with the write threshold, and not where writes end.
    pub write_threshold: Option<&'a WriteThreshold>,
    /// It can find its image corrupt.
    pub corruption: Option<&'a Corruption>,
    /// It knows which image it is.
    pub identify: Option<&'a dyn Identify>,
    /// It injects errors.
    pub fault_plan: Option<&'a dyn FaultPlan>,
    /// Other processes see by locks who uses it.
    pub image_locks: Option<&'a dyn ImageLocks>,
    /// It remembers something of what is stored.
    pub activate: Option<&'a dyn Activate>,
    /// It counts discards.
    pub discard_counters: Option<&'a dyn DiscardCounters>,
    /// It keeps something on each iothread that sends requests to it.
    pub per_thread: Option<&'a dyn PerThread>,
    /// It does I/O with no request behind it.
    pub own_io: Option<&'a dyn OwnIo>,
    /// It writes to its child where its users only read.
    pub copies: Option<&'a Copies>,
}

/// Whether a driver writes to its child what its users only read: until an overlay has come in above it, from when on nothing
/// below is written.
#[derive(Debug, Default)]
pub struct Copies(AtomicBool);

impl Copies {
    /// It does so no more. Called while nothing is in flight.
    pub fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it does so no more. Called on any iothread: whoever sends a request after a drain sees what was said in it.
    pub fn have_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// I/O of the driver's own: what it has acknowledged, or has to remember, and has not written yet (metadata
/// that is written back). No request of a client waits for it or fails by it, but a flush: **a flush writes
/// it back first**, and fails with it.
pub trait OwnIo: fmt::Debug {
    /// Writes it back and makes it durable. What cannot be written stays as it was, and is tried again at
    /// the next occasion. Called on an iothread that the driver is attached to, never twice at once, when
    /// the client's requests there have ended. Those on other iothreads may go on beside it; when nobody
    /// waits for it (after a `cont`, or where it took too long), those on its own, too.
    fn write_back(&self) -> IoFuture<'_>;

    /// What is not on disk. Asks nobody.
    fn unwritten(&self) -> Option<Unwritten>;
}

/// What a driver has not written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// How much it is.
    pub bytes: u64,
    /// What it is, for people: `allocation table`.
    pub what: String,
}

/// What a driver has on each iothread that uses it: a connection, a cache, a budget
/// ([`crate::driver::threads::ThreadState`] keeps it). Called on that iothread, where nothing may block.
pub trait PerThread: fmt::Debug {
    /// This iothread is going to send requests. The nodes below are attached already.
    fn attach(&self);

    /// This iothread has nothing in flight here, and sends no more. The nodes below are still attached.
    fn detach(&self);
}

/// A flush failure that stays: the storage would not tell again. While it is there, requests that make
/// data durable fail for everybody for whom it counts ([`crate::Io::losses_accepted`]).
pub trait FlushLatch: fmt::Debug {
    /// The failure that is latched.
    fn latched(&self) -> Option<Loss>;

    /// A former daemon had latched this failure. Called before the first request.
    fn latch(&self, loss: Loss);

    /// Clears it for everybody, unless its number is greater than `upto`. False if there was none.
    fn accept_loss(&self, upto: u32) -> bool;
}

/// A precondition of `cont`.
pub trait ContBlocker: fmt::Debug {
    /// Why `cont` has to be refused, if it has to: a complete sentence that names the remedy.
    fn cont_blocker(&self) -> Option<String>;
}

/// A length that can be changed from outside.
pub trait Resize: fmt::Debug {
    /// The length in bytes that [`Self::resize`] to `length` would give the node: not every length is
    /// possible. May ask the storage.
    ///
    /// # Errors
    /// As [`Self::resize`], as far as it is known before.
    fn resized_length(&self, length: u64) -> Result<u64>;

    /// Changes the length in bytes. Called drained.
    ///
    /// # Errors
    /// If the storage refuses, or cannot be that long; the length is what it was then.
    fn resize(&self, length: u64) -> Result<()>;
}

/// Storage that can be opened anew while it is in use, with other options, or because something else is to
/// be found under its name by now.
pub trait Reopen: fmt::Debug {
    /// Another opening takes this one's place, of the same image or of another one: nothing is written by
    /// this one any more. Makes durable what it has acknowledged; what may be lost is latched, and the other
    /// one is told. Called drained. If whoever has called it gives up, this one goes on being used beside.
    /// May block.
    ///
    /// # Errors
    /// What may not be durable, to be told: the other one takes its place all the same, as nothing here
    /// could do better. A driver that keeps nothing has none.
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }
}

/// A length that follows what is written. Called on iothreads, several at once.
pub trait Grow: fmt::Debug {
    /// Starts a write or write-zeroes that ends beyond [`crate::Driver::length`], for a parent with the
    /// permission to resize. When it has succeeded, the node reaches to its end at least, and what nobody
    /// has written before it reads as zeroes. If it fails, the length is what others have made of it.
    /// Exports that see another length then hear of it from [`crate::Node`].
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a>;

    /// Makes the node reach to `end`, which lies beyond its length, and as far behind that as is good for it: with zeroes
    /// that have their space, so that writes need not make it longer one by one. Whoever may resize it calls this; what
    /// fails is tried again by the write. None: there is nothing to be gained.
    fn reserve(&self, _end: u64) -> Option<IoFuture<'_>> {
        None
    }
}

/// Storage that is told from other storage, whatever it contains. Of a driver that has none of its own the first
/// child counts.
pub trait Identify: fmt::Debug {
    /// What the guest sees. Asks nobody.
    fn image(&self) -> Image;
}

/// A limit of the bytes that are allocated.
pub trait AllocationLimit: fmt::Debug {
    /// Sets the number of bytes that may be allocated. Returns the number allocated now.
    ///
    /// # Errors
    /// If the limit cannot be set.
    fn set_quota(&self, limit: u64) -> Result<u64>;

    /// Bytes allowed and bytes allocated.
    fn quota(&self) -> (u64, u64);
}

/// Locks on what is stored, which other processes see. They are as strong as the uses of the node are: a
/// node that nobody uses is in nobody's way.
pub trait ImageLocks: fmt::Debug {
    /// The users of the node are about to have `access` together: takes what that needs and is not there.
    /// What is there stays. May block.
    ///
    /// # Errors
    /// Another process is in the way, or there cannot be locks; no more is locked than before then.
    fn lock(&self, access: Access) -> std::result::Result<(), LockError>;

    /// They have `access` now: gives back what that does not need. May block.
    fn settle(&self, access: Access);

    /// As [`Self::lock`], where another opening of the same image ([`Self::image`]), by us, has all the
    /// locks that `access` needs, and keeps them meanwhile: takes the same, and asks nobody. Called
    /// drained. May block.
    ///
    /// # Errors
    /// There cannot be locks; no more is locked than before then.
    fn lock_beside(&self, access: Access) -> std::result::Result<(), LockError>;

    /// What is open. Asks nobody.
    fn image(&self) -> ImageId;

    /// What is locked while the users of the node have `access`: more or less than that, by the options.
    fn needs(&self, access: Access) -> Access;
}

/// An image, whatever it is called: two openings of the same one have the same. Locks lie on it, and not on
/// its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageId {
    /// The number of the file system, or of the device that it lies on (`st_dev`).
    pub device: u64,
    /// The number of the file there (`st_ino`).
    pub inode: u64,
}

/// Why there is no lock, in QEMU's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct LockError {
    /// The (positive) errno; EAGAIN: somebody else has a lock, and may yet let go.
    pub errno: i32,
    /// What a monitor shows.
    pub desc: String,
    /// A line that a command line shows after it.
    pub hint: Option<String>,
}

impl LockError {
    /// Whether another process has the lock.
    pub const fn is_locked(&self) -> bool {
        self.errno == libc::EAGAIN
    }
}

/// What is remembered of what is stored, and may have changed.
pub trait Activate: fmt::Debug {
    /// Another node is below, or others may have changed what is there until now that it comes into use: looks
    /// again. What its users have together from now on is `above`: the locks for it are taken. Called drained. May
    /// block.
    ///
    /// # Errors
    /// If the storage does not say.
    fn activate(&self, above: Access) -> Result<()>;
}

/// Counters of discards (`driver-specific` of `query-blockstats`).
pub trait DiscardCounters: fmt::Debug {
    /// The counters now.
    fn discard_stats(&self) -> DiscardStats;

    /// They go on from these. Called before the first request.
    fn go_on_from(&self, before: DiscardStats);
}

/// Discard counters of a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardStats {
    /// Successful discards.
    pub nb_ok: u64,
    /// Failed discards.
    pub nb_failed: u64,
    /// Bytes discarded.
    pub bytes_ok: u64,
}
