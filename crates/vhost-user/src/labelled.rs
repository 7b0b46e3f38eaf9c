//! The region of the client there is, for whoever labels it anew.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::inflight::Region;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Labelled(Mutex<Option<Arc<Region>>>);

impl Labelled {
    /// The client has handed this one in.
    pub fn is(&self, region: &Arc<Region>) {
        *self.0.lock() = Some(Arc::clone(region));
    }

    /// The client is gone.
    pub fn none(&self) {
        self.0.lock().take();
    }

    /// Labels it.
    pub fn set(&self, label: &[u8]) {
        if let Some(region) = &*self.0.lock() {
            region.set_label(label);
        }
    }
}
