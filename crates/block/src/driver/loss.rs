//! Data that a node has lost: a flush has failed, and the storage would not tell again.
//!
//! A loss concerns everybody who uses the node, and is void for each of them by itself: whose client
//! has reset its device has nothing there any more that could have been lost. So losses are numbered,
//! in one order for all nodes, and each backend knows up to which number they are void for it. It
//! sends the number with each request ([`crate::Io::losses_accepted`]).

use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers beyond this are not taken from a state file.
pub const LOSS_NUMBER_MAX: u32 = u32::MAX / 2;

static LAST: AtomicU32 = AtomicU32::new(0);

/// A loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its number, from 1; those that come later have greater ones, whatever their node.
    pub number: u32,
    /// Why the flush failed.
    pub errno: i32,
}

impl Loss {
    /// A flush has just failed.
    pub fn new(errno: i32) -> Self {
        let before = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
            last.checked_add(1)
        });
        let number = before.map_or(u32::MAX, |before| before + 1);
        Self { number, errno }
    }

    /// The number of the last one.
    pub fn last() -> u32 {
        LAST.load(Ordering::SeqCst)
    }

    /// A former daemon has counted up to `number`: this one goes on from there.
    pub fn go_on_from(number: u32) {
        LAST.fetch_max(number, Ordering::SeqCst);
    }

    /// Whether it counts for somebody who has accepted all up to the number `accepted`.
    pub const fn counts_for(&self, accepted: u32) -> bool {
        self.number > accepted
    }
}
