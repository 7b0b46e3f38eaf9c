//! Exports whose clients see another image from now on.
//!
//! Two keep for the next daemon what the guest has seen: the client's memory, and the state file. A daemon that is
//! killed between the two must not leave both images refused. So the file first says of none, then the client is told,
//! then the file: at any instant one of the two images is served, and nothing of the guest's goes to the new one before
//! both say so.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::export::Export;

/// How long the state file may take. It warns by itself if it cannot be written.
const SAVE_TIME_MAX: Duration = Duration::from_millis(500);

impl Registry {
    /// Other nodes are below `exports`. Called drained.
    pub(super) async fn tell_images(&self, exports: &[Arc<dyn Export>]) {
        let mut changed = Vec::new();
        for export in exports {
            if export.backend().look_at_image().await {
                changed.push(export);
            }
        }
        if changed.is_empty() {
            return;
        }
        self.control.save(SAVE_TIME_MAX).await;
        for export in &changed {
            export.backend().take_image();
            export.image_changed();
            export.backend().image_settled().await;
        }
        self.control.save(SAVE_TIME_MAX).await;
    }
}
