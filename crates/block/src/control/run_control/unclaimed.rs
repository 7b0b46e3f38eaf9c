//! What a former daemon has saved of exports that do not exist: kept, and saved again, until an export of
//! that id on that node is added.

use crate::persist::saved::SavedBackend;
use crate::words::image::Image;
use crate::words::incident::Incident;

/// Of how many exports state is kept beyond the start of a daemon that does not make them: who gives
/// exports new names at each restart must not fill the state file.
pub const UNCLAIMED_MAX: usize = 64;

/// What was unclaimed when the start of the daemon had ended.
#[derive(Debug, Default)]
pub struct LeftOver {
    /// Kept for exports that are added later.
    pub kept: Vec<SavedBackend>,
    /// The oldest, of which there were more than [`UNCLAIMED_MAX`]: forgotten.
    pub dropped: Vec<SavedBackend>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Unclaimed {
    /// What the latest daemon had exports for comes first, as that is how it is saved.
    saved: Vec<SavedBackend>,
    /// The start of the daemon goes on: any of them may come, and what it held counts.
    starting: bool,
    /// Meanwhile a client has come that would have ended `io-error`, but for that.
    fresh_client: bool,
}

impl Unclaimed {
    /// From the state file, before the first export is added.
    pub(super) fn restored(saved: Vec<SavedBackend>) -> Self {
        Self {
            saved,
            starting: true,
            fresh_client: false,
        }
    }

    /// All of it, as it is to be saved.
    pub(super) fn all(&self) -> &[SavedBackend] {
        &self.saved
    }

    /// What is known of an export on its node; it is known no more.
    pub(super) fn claim(&mut self, device: &str, node: &str) -> Option<SavedBackend> {
        let same = |saved: &SavedBackend| saved.device == device && saved.node == node;
        let index = self.saved.iter().position(same)?;
        Some(self.saved.remove(index))
    }

    /// What [`super::RunControl::image_left`] says.
    pub(super) fn image_left(&self, device: &str) -> Option<&Image> {
        // The latest: another node may have been there before.
        let saved = self.saved.iter().find(|saved| saved.device == device)?;
        let image = saved.image.as_ref();
        image.filter(|_| saved.connected || saved.incident.is_some())
    }

    /// The export that has claimed it was not made.
    pub(super) fn give_back(&mut self, saved: SavedBackend) {
        self.saved.insert(0, saved);
    }

    /// A client with a fresh life of its device has come, and no export that exists holds anything.
    /// Whether one may be about to be made that does; it is asked again when the start ends.
    pub(super) fn may_hold(&mut self) -> bool {
        let holds = |saved: &SavedBackend| saved.incident.is_some();
        let may = self.starting && self.saved.iter().any(holds);
        self.fresh_client |= may;
        may
    }

    /// All exports of the command line exist. Returns what is too much, and whether a client has waited
    /// for this.
    pub(super) fn start_ended(&mut self) -> (Vec<SavedBackend>, bool) {
        self.starting = false;
        let dropped = self.saved.drain(self.saved.len().min(UNCLAIMED_MAX)..);
        (dropped.collect(), std::mem::take(&mut self.fresh_client))
    }

    /// `cont`: every status is reset, and nothing is awaited any more. Returns the incidents that end by
    /// that, each with its export's id.
    pub(super) fn release(&mut self) -> Vec<(String, Incident)> {
        let release = |saved: &mut SavedBackend| {
            saved.io_status.reset();
            saved.first_error = None;
            let incident = saved.incident.take()?;
            Some((saved.device.clone(), incident))
        };
        self.saved.iter_mut().filter_map(release).collect()
    }
}
