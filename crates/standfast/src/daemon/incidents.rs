//! Tells the log of incidents: one line when an export begins to hold requests, however many fail.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use block::{BlockIoError, Event, EventKind, Observer};

/// See the [module](self).
#[derive(Debug, Default)]
pub struct IncidentLog {
    /// The last incident of each export that was told of.
    told: Mutex<HashMap<String, u64>>,
}

impl IncidentLog {
    /// Whether this is the first failure of its incident.
    fn is_news(&self, error: &BlockIoError) -> bool {
        let Some(incident) = error.incident else {
            return false;
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(error.device.clone(), incident) != Some(incident)
    }
}

impl Observer for IncidentLog {
    fn event(&self, event: &Event) -> bool {
        match &event.kind {
            EventKind::BlockIoError(error) if self.is_news(error) => tracing::warn!(
                "export '{}' holds requests: {} of {} bytes at offset {} on node '{}': {} \
                 ({}); 'cont' tries again",
                error.device,
                error.operation,
                error.bytes,
                error.offset,
                error.node_name,
                error.cause.reason(),
                error.cause.kind.name()
            ),
            EventKind::Stop => tracing::warn!("stopped: no request is started until 'cont'"),
            EventKind::Resume => tracing::info!("running again"),
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{Action, Cause, Direction, Operation, Status};

    fn error(device: &str, incident: Option<u64>) -> BlockIoError {
        BlockIoError {
            device: device.to_owned(),
            node_name: "disk0".to_owned(),
            direction: Direction::Write,
            action: Action::Stop,
            status_enabled: true,
            io_status: Status::Nospace,
            cause: Cause::of_errno(libc::ENOSPC),
            operation: Operation::Write,
            offset: 0,
            bytes: 512,
            incident,
        }
    }

    #[test]
    fn one_line_for_each_incident_of_each_export() {
        let log = IncidentLog::default();
        let news = [
            (error("vda", Some(1)), true),
            (error("vda", Some(1)), false),
            (error("vdb", Some(1)), true),
            (error("vda", None), false),
            (error("vda", Some(2)), true),
        ];
        for (error, expected) in news {
            assert_eq!(log.is_news(&error), expected, "{error:?}");
        }
    }
}
