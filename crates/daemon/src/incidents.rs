//! Tells the log of incidents: one line when an export begins to hold requests, however many fail.
//!
//! Events come while run control's lock is held, and nothing is logged then: a task does it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use block::{BlockIoError, Event, EventKind, Observer};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// What is to be told.
#[derive(Debug)]
enum News {
    Holds(String),
    Stopped,
    Running,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct IncidentLog {
    /// The last incident of each export that was told of.
    told: Mutex<HashMap<String, u64>>,
    news: Mutex<VecDeque<News>>,
    came: Notify,
}

impl IncidentLog {
    /// Whether this is the first failure of its incident.
    fn is_news(&self, error: &BlockIoError) -> bool {
        let Some(incident) = error.incident else {
            return false;
        };
        let mut told = self.told.lock();
        told.insert(error.device.clone(), incident) != Some(incident)
    }

    /// Tells what comes, for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.tell();
            self.came.notified().await;
        }
    }

    /// Tells what has come.
    pub fn tell(&self) {
        loop {
            let next = self.news().pop_front();
            match next {
                None => return,
                Some(News::Holds(text)) => tracing::warn!("{text}"),
                Some(News::Stopped) => {
                    tracing::warn!("stopped: no request is started until 'cont'");
                }
                Some(News::Running) => tracing::info!("running again"),
            }
        }
    }

    fn news(&self) -> MutexGuard<'_, VecDeque<News>> {
        self.news.lock()
    }
}

impl Observer for IncidentLog {
    fn event(&self, event: &Event) -> bool {
        let news = match &event.kind {
            EventKind::BlockIoError(error) if self.is_news(error) => News::Holds(text(error)),
            EventKind::Stop => News::Stopped,
            EventKind::Resume => News::Running,
            _ => return true,
        };
        self.news().push_back(news);
        self.came.notify_one();
        true
    }
}

/// What the log says of it.
fn text(error: &BlockIoError) -> String {
    let below = (error.error_node.as_deref())
        .filter(|&node| node != error.node_name)
        .map_or_else(String::new, |node| format!("node '{node}': "));
    format!(
        "export '{}' holds requests: {} of {} bytes at offset {} on node '{}': {below}{} ({}); \
         'cont' tries again",
        error.device,
        error.operation,
        error.bytes,
        error.offset,
        error.node_name,
        error.cause.reason(),
        error.cause.kind.name()
    )
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
            error_node: None,
            operation: Operation::Write,
            offset: 0,
            bytes: 512,
            incident,
        }
    }

    #[test]
    fn a_node_below_that_is_full_is_named() {
        let mut error = error("vda", Some(1));
        let plain = "export 'vda' holds requests: write of 512 bytes at offset 0 on node 'disk0': No space left on device \
                     (nospace); 'cont' tries again";
        assert_eq!(text(&error), plain);
        error.error_node = Some("disk0".into());
        assert_eq!(text(&error), plain);
        error.error_node = Some("file0".into());
        assert_eq!(
            text(&error),
            plain.replace("No space", "node 'file0': No space")
        );
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
