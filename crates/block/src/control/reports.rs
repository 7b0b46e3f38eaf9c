//! What a part of a backend tells run control of failures that policy reported or ignored.
//!
//! A disk that fails at once does so a million times a second, and each time the guest may ask
//! again. So there is one message under way at most: what has failed until it is received is kept
//! here, the first and the last of it, and counted.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::control::run_control::Reported;

/// Failures that have not been received yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The first one.
    pub first: Reported,
    /// The last one, if there are several.
    pub last: Option<Reported>,
    /// How many there were in between.
    pub left_out: u64,
}

/// Where they are kept: `Message::Reported` is the word that something is there.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Mutex<Option<Batch>>>);

impl Reports {
    /// Adds one. True: there was none.
    pub(crate) fn add(&self, reported: Reported) -> bool {
        let mut place = self.0.lock();
        let Some(batch) = &mut *place else {
            *place = Some(Batch {
                first: reported,
                last: None,
                left_out: 0,
            });
            return true;
        };
        batch.left_out += u64::from(batch.last.replace(reported).is_some());
        false
    }

    /// Takes them all.
    pub fn take(&self) -> Option<Batch> {
        self.0.lock().take()
    }
}
