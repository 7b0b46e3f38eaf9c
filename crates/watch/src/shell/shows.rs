//! How a machine is, for whoever asks.

use std::path::Path;

use crate::core::early;
use crate::core::incident::{DiskState, Stage};
use crate::core::machine::Machine;
use crate::core::view::RunState;

use super::fleet::{EarlyStatus, IncidentStatus, MachineStatus};

/// How the machine of that name behind that socket is.
pub fn status(machine: &Machine, name: &str, socket: &Path) -> MachineStatus {
    let incidents = machine.disks().iter().filter_map(|disk| {
        let incident = disk.incident.as_ref()?;
        Some(IncidentStatus {
            disk: disk.disk.name.clone(),
            incident: incident.number,
            stage: stage(&incident.stage).to_owned(),
            seconds: 0,
            began: incident.began,
        })
    });
    let incidents: Vec<_> = incidents.collect();
    // Not asked for since its STOP.
    let unknown = if incidents.is_empty() {
        "paused"
    } else {
        "io-error"
    };
    let state = machine.state().map_or(unknown, RunState::name);
    let watched = machine
        .disks()
        .iter()
        .filter(|disk| disk.settings.early.is_some() && disk.early.stage != early::Stage::Off);
    MachineStatus {
        machine: name.to_owned(),
        socket: socket.to_owned(),
        state: state.to_owned(),
        why: None,
        incidents,
        disks: machine.disks().len(),
        early: watched.map(of_early).collect(),
    }
}

fn of_early(disk: &DiskState) -> EarlyStatus {
    EarlyStatus {
        disk: disk.disk.name.clone(),
        head_room: disk.early.head_room,
        bytes_per_second: disk.early.pace.rate(),
        extension_milliseconds: disk.early.pace.took().as_millis().try_into().unwrap_or(0),
    }
}

fn stage(stage: &Stage) -> &'static str {
    match stage {
        Stage::AwaitStop { .. } => "waiting for the machine to stop",
        Stage::Room => "making room",
        Stage::Health => "asking whether the storage is healthy",
        Stage::Wait { .. } => "waiting before the next attempt",
        Stage::Ready => "ready to go on",
        Stage::Continuing => "going on",
        Stage::Left => "left to somebody else",
        Stage::GaveUp { .. } => "given up",
    }
}
