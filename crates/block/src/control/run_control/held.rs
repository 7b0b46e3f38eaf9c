//! What run control knows of what a backend holds, and the incident that it belongs to.
//!
//! It is a copy, for queries and to know when an incident ends: the truth is in the gates
//! ([`crate::gate`]), and the copy follows by the messages of the backend's parts.

use std::collections::BTreeMap;

use crate::words::ids::LocalId;
use crate::words::incident::{HeldRecord, Incident};

use super::message::{Failed, Restored};

/// A part of the backend, and the arrival number there.
type Place = (LocalId, u64);

/// A request that has been held and has not ended.
#[derive(Debug)]
struct Known {
    record: HeldRecord,
    /// It waits for a `cont`; no longer once it has been released.
    waits: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Held {
    known: BTreeMap<Place, Known>,
    /// Of `known`, those that wait for a `cont`.
    waiting: usize,
    /// A former daemon held something of this backend, and its client has not been heard of since:
    /// what it may hand back counts as held.
    awaited: bool,
    incident: Option<Incident>,
    incidents: u64,
}

impl Held {
    /// As a former daemon has left it: the incident that went on, and how many there had been.
    pub(super) fn saved(incident: Option<Incident>, incidents: u64) -> Self {
        Self {
            awaited: incident.is_some(),
            incident,
            incidents,
            ..Self::default()
        }
    }

    /// What is held (also what is being tried again), by part, oldest first.
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &HeldRecord> {
        self.known.values().map(|known| &known.record)
    }

    /// The incident that goes on.
    pub(super) fn incident(&self) -> Option<&Incident> {
        self.incident.as_ref()
    }

    /// Number of incidents so far.
    pub(super) fn incidents(&self) -> u64 {
        self.incidents
    }

    /// Whether something is held, or may be handed back that a former daemon held.
    pub(super) fn is_any(&self) -> bool {
        self.awaited || !self.known.is_empty()
    }

    /// Whether something waits for a `cont`.
    pub(super) fn is_waiting(&self) -> bool {
        self.awaited || self.waiting > 0
    }

    /// A request is held: the first one begins an incident.
    pub(super) fn failed(&mut self, failed: &Failed) {
        if self.incident.is_none() {
            self.incidents += 1;
            self.incident = Some(Incident {
                number: self.incidents,
                since: failed.at,
                cause: Some(failed.cause),
                node: failed.node.clone(),
            });
        }
        let place = (failed.local, failed.order);
        let known = self.known.entry(place).or_insert(Known {
            record: HeldRecord {
                request: failed.request,
                cause: None,
                node: None,
                since: failed.at,
                attempts: 0,
            },
            waits: false,
        });
        known.record.cause = Some(failed.cause);
        known.record.node.clone_from(&failed.node);
        known.record.attempts += 1;
        self.waiting += usize::from(!std::mem::replace(&mut known.waits, true));
    }

    /// A client of a former daemon has handed a request back.
    pub(super) fn restored(&mut self, restored: &Restored) {
        let known = Known {
            record: HeldRecord {
                request: restored.request,
                cause: None,
                node: None,
                since: restored.at,
                attempts: 0,
            },
            waits: self.awaited,
        };
        self.waiting += usize::from(known.waits);
        self.known.insert((restored.local, restored.order), known);
    }

    /// Of what a former daemon held, nothing more comes.
    pub(super) fn handed_back(&mut self) {
        self.awaited = false;
    }

    /// A request has ended. What a former daemon held may still come, though nothing is known now: the
    /// rings of a client start one after the other ([`Self::handed_back`]).
    pub(super) fn resolved(&mut self, place: Place) {
        // What has been dropped by a reset is not known any more.
        if let Some(known) = self.known.remove(&place) {
            self.waiting -= usize::from(known.waits);
        }
    }

    /// All goes on. What a former daemon held is no longer waited for: whoever comes back finds it
    /// released.
    pub(super) fn release(&mut self) {
        if self.waiting > 0 {
            for known in self.known.values_mut() {
                known.waits = false;
            }
        }
        self.waiting = 0;
        self.awaited = false;
    }

    /// All is dropped.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.waiting = 0;
        self.awaited = false;
    }

    /// A part has ended, with all that it held.
    pub(super) fn remove_local(&mut self, local: LocalId) {
        self.known.retain(|&(of, _), _| of != local);
        self.waiting = self.known.values().filter(|known| known.waits).count();
    }

    /// Takes the incident, if nothing is held any more. Only for the door through which all of them
    /// go ([`super::incidents`]).
    pub(super) fn take_ended_incident(&mut self) -> Option<Incident> {
        if self.is_any() {
            return None;
        }
        self.incident.take()
    }
}
