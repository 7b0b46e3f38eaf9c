//! What a machine's task has done beside, while it listens on: one thing for a disk at a time.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::core::machine::{RoomAnswer, RoomOrder};

use super::context::Context;
use super::desk::Who;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Work {
    /// Room is to be made.
    Room(Box<RoomOrder>),
    /// Is the storage healthy?
    Health(Box<RoomOrder>),
}

/// What has been done, for which disk and incident.
#[derive(Debug)]
pub enum Done {
    /// Room, or none.
    Room(String, u64, RoomAnswer),
    /// Whether the storage is healthy.
    Health(String, u64, Result<(), String>),
}

/// What goes on.
#[derive(Debug, Default)]
pub struct Beside {
    tasks: JoinSet<Done>,
    /// The disks for which something goes on, and what comes next for them: a machine that comes and goes
    /// can make it no more.
    busy: HashMap<String, Option<Work>>,
}

impl Beside {
    /// Whether nothing goes on.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Begins it, or when what goes on for that disk has ended. What was to come next before is not done:
    /// its incident has ended.
    pub fn begin(&mut self, context: &Arc<Context>, who: Who, work: Work) {
        let (Work::Room(order) | Work::Health(order)) = &work;
        if let Some(next) = self.busy.get_mut(&order.disk.name) {
            *next = Some(work);
            return;
        }
        self.busy.insert(order.disk.name.clone(), None);
        let context = Arc::clone(context);
        self.tasks.spawn(async move {
            match work {
                Work::Room(order) => {
                    let answer = context.desk.make_room(&who, &order).await;
                    Done::Room(order.disk.name, order.incident, answer)
                }
                Work::Health(order) => {
                    let result = context.desk.health(&who, &order).await;
                    Done::Health(order.disk.name, order.incident, result)
                }
            }
        });
    }

    /// Waits for the next end, and says what comes next for that disk. None: nothing goes on.
    pub async fn next(&mut self) -> Option<(Done, Option<Work>)> {
        loop {
            match self.tasks.join_next().await? {
                Ok(done) => {
                    let (Done::Room(disk, ..) | Done::Health(disk, ..)) = &done;
                    let next = self.busy.remove(disk).flatten();
                    return Some((done, next));
                }
                Err(error) => {
                    tracing::error!("a task has failed: {error}");
                    // Nobody knows which.
                    self.busy.clear();
                }
            }
        }
    }

    /// Nothing that has not begun is done.
    pub fn forget_next(&mut self) {
        self.busy.values_mut().for_each(|next| *next = None);
    }
}
