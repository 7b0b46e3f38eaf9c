//! Exports go.

use std::sync::Arc;

use super::Registry;
use crate::export::Export;
use crate::registry_error::RegistryError;
use crate::words::event::{Event, EventKind};

impl Registry {
    /// Ends an export; what is in flight ends before. What is held is neither completed nor failed.
    ///
    /// # Errors
    /// If there is none of this id, or it is ending already. Without `force`: if it has a client.
    pub async fn remove_export(&self, id: &str, force: bool) -> Result<(), RegistryError> {
        let export = self.export(id)?;
        if !force && export.has_client() {
            return Err(RegistryError::ExportInUse(id.to_owned()));
        }
        {
            let mut ending = self.ending.lock();
            if ending.iter().any(|known| Arc::ptr_eq(known, &export)) {
                return Err(RegistryError::ExportEnding(id.to_owned()));
            }
            ending.push(Arc::clone(&export));
        }
        self.end_export(&export).await;
        let others = |known: &Arc<dyn Export>| !Arc::ptr_eq(known, &export);
        self.exports.lock().retain(others);
        self.ending.lock().retain(others);
        Ok(())
    }

    /// Whether an export is being removed.
    pub fn is_ending(&self, export: &Arc<dyn Export>) -> bool {
        let ending = self.ending.lock();
        ending.iter().any(|known| Arc::ptr_eq(known, export))
    }

    async fn end_export(&self, export: &Arc<dyn Export>) {
        let before = export.backend().stats().dropped;
        export.close().await;
        // Not before: another one may have come in.
        let node = export.backend().node();
        self.end_use(&node).await;
        let dropped = export.backend().stats().dropped.saturating_sub(before);
        if dropped > 0 {
            tracing::warn!(
                "export '{}' is deleted, and with it {dropped} requests that it held, neither completed \
                 nor failed",
                export.id()
            );
        }
        self.tell_deleted(export, dropped).await;
    }

    /// An export has ended, and `dropped` requests that it held with it.
    pub(super) async fn tell_deleted(&self, export: &Arc<dyn Export>, dropped: u64) {
        let id = export.id().to_owned();
        let kind = EventKind::BlockExportDeleted { id, dropped };
        let at = std::time::SystemTime::now();
        self.control.emit(Event { at, kind }).await;
    }
}
