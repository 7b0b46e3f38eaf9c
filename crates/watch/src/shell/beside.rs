//! What a machine's task has done beside, while it listens on: one thing for a disk at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use crate::core::machine::{RoomAnswer, RoomOrder};
use crate::core::room::Measure;

use super::context::Context;
use super::desk::Who;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Work {
    /// Room is to be made.
    Room(Box<RoomOrder>),
    /// Is the storage healthy?
    Health(Box<RoomOrder>),
    /// How much is there?
    Measure(Box<RoomOrder>),
    /// Room is to be made before it is full.
    Early(Box<RoomOrder>),
}

impl Work {
    fn order(&self) -> &RoomOrder {
        let (Self::Room(order) | Self::Health(order) | Self::Measure(order) | Self::Early(order)) =
            self;
        order
    }
}

/// What has been done, for which disk and incident.
#[derive(Debug)]
pub enum Done {
    /// Room, or none.
    Room(String, u64, RoomAnswer),
    /// Whether the storage is healthy.
    Health(String, u64, Result<(), String>),
    /// How much there is.
    Measured(String, Result<Measure, String>),
    /// Room, or none, before it was full.
    Early(String, RoomAnswer),
}

impl Done {
    fn disk(&self) -> &str {
        let (Self::Room(disk, ..)
        | Self::Health(disk, ..)
        | Self::Measured(disk, _)
        | Self::Early(disk, _)) = self;
        disk
    }
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
        let disk = &work.order().disk.name;
        if let Some(next) = self.busy.get_mut(disk) {
            *next = Some(work);
            return;
        }
        self.busy.insert(disk.clone(), None);
        let context = Arc::clone(context);
        let begin = Instant::now();
        self.tasks.spawn(async move {
            match work {
                Work::Room(order) => {
                    let answer = context.desk.make_room(&who, &order, begin).await;
                    Done::Room(order.disk.name, order.incident, answer)
                }
                Work::Early(order) => {
                    let answer = context.desk.make_room(&who, &order, begin).await;
                    Done::Early(order.disk.name, answer)
                }
                Work::Measure(order) => {
                    let measured = context.desk.how_much(&who, &order).await;
                    Done::Measured(order.disk.name, measured)
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
                    let next = self.busy.remove(done.disk()).flatten();
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
