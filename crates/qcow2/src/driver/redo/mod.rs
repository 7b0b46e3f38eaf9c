//! The redo log: what has been changed of the tables, and acknowledged, and is not on disk yet, outlives the daemon.
//!
//! A first write is acknowledged when its data are written; that its cluster is there is known in memory until the next round. A daemon
//! that is killed takes that along, and a guest that lives on is not told. So each change of an entry is recorded first, in a file
//! that is memory ([`log`]), and the next daemon makes it again ([`replay`]) before it serves anything.
//!
//! * A record is written under the lock under which its entry is changed, so they have one order.
//! * A round makes void what was recorded before it began.
//! * An image says in its header whose log counts: the upper half of the autoclear bits is the *tag* of the log. Whoever
//!   writes the image and does not know them clears them, by the specification: then it is void.
//! * The tag is there before the first record, and goes, when all is on disk and nothing is under way.

mod attach;
mod log;
mod mark;
mod record;
pub mod recorder;
mod replay;
mod ring;

pub use self::attach::{attach, detach, tell_of_record};
pub use self::mark::{changes, close, is_tagged, supply};
pub use self::record::{Change, Record, Which};
pub use self::ring::{Head, Ring, SLOTS as RECORDS_MAX};
