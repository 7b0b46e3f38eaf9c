//! The one door through which an incident ends, however it does. Whatever is to know of that (the
//! state file today) hangs on it.

use std::sync::Arc;

use crate::persist::saved::SavedBackend;
use crate::words::ids::BackendId;
use crate::words::incident::{EndedIncident, HoldEnd};

use super::RunControl;
use super::clock::Timer;
use super::message::Effects;

impl RunControl {
    /// Something of what `backend` held has gone, and `end` says how. Was it the last, the incident
    /// has ended: it is taken off, its number stays, and deadlines of what was held go with it.
    ///
    /// Called wherever something may have gone; it decides whether it was the last.
    pub(super) fn gone(&mut self, backend: BackendId, end: HoldEnd, fx: &mut impl Effects) {
        let Some(state) = self.backends.get_mut(&backend) else {
            return;
        };
        let Some(incident) = state.held_mut().take_ended_incident() else {
            return;
        };
        let device = Arc::clone(&state.config().device);
        for timer in Timer::OF_HELD {
            self.clock.set(backend, timer, None);
        }
        self.ended(
            EndedIncident {
                backend: Some(backend),
                device,
                incident,
                end,
            },
            fx,
        );
    }

    /// What a former daemon has saved of an export is not kept any longer.
    pub(super) fn forgotten(&mut self, saved: &SavedBackend, fx: &mut impl Effects) {
        if let Some(incident) = &saved.incident {
            let ended = EndedIncident {
                backend: None,
                device: saved.device.as_str().into(),
                incident: incident.clone(),
                end: HoldEnd::Unclaimed,
            };
            self.ended(ended, fx);
        }
    }

    /// `cont`, for what a former daemon has saved of exports that do not exist.
    pub(super) fn release_unclaimed(&mut self, fx: &mut impl Effects) {
        for (device, incident) in self.unclaimed.release() {
            let ended = EndedIncident {
                backend: None,
                device: device.into(),
                incident,
                end: HoldEnd::NotAwaited,
            };
            self.ended(ended, fx);
        }
    }

    fn ended(&mut self, ended: EndedIncident, fx: &mut impl Effects) {
        self.revision += 1;
        fx.incident_ended(&ended);
    }
}
