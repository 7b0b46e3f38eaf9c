//! Where room is made: one storage after the other, whoever asks, so that one extension is for all that
//! wait for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use qapi::Object;
use serde_json::json;
use tokio::sync::{Mutex as Turn, Semaphore};

use crate::core::ledger::{Ledger, Limits};
use crate::core::machine::{RoomAnswer, RoomOrder, RoomResult};
use crate::core::room::{Kind, Measure, Plan, plan, verify};
use crate::core::view::quota_of;
use crate::settings::{OnFailed, Program, Strategy};

use super::link::Link;
use super::measure::{Found, Measurer};
use super::program::{self, Ended};

/// What has been extended may show it a little later.
const SHOWS_WITHIN_MS: [u64; 4] = [0, 100, 400, 1000];

/// Who asks.
#[derive(Clone, Debug)]
pub struct Who {
    /// The machine.
    pub machine: String,
    /// Its socket.
    pub socket: PathBuf,
    /// Its connection.
    pub link: Link,
}

/// Where room is made.
#[derive(Debug)]
pub struct Desk {
    began: Instant,
    measurer: Measurer,
    limits: Mutex<Limits>,
    ledger: Mutex<Ledger>,
    /// How many extensions may go on.
    permits: Semaphore,
    /// Whose turn it is, for each storage that somebody waits for.
    turns: Mutex<HashMap<String, Weak<Turn<()>>>>,
}

/// What is seen on the way.
#[derive(Debug, Default)]
struct Course {
    before: Option<Measure>,
    measure: Option<Measure>,
    /// When the extension itself began, and when it ended.
    started: Option<Instant>,
    ended: Option<Instant>,
}

/// What is measured for a disk.
#[derive(Debug)]
enum Place {
    /// The account of a node.
    Quota(String),
    /// What a path lies on.
    Path(PathBuf),
}

impl Desk {
    /// With so many extensions at a time.
    pub fn new(parallel: u32, limits: Limits) -> Self {
        Self {
            began: Instant::now(),
            measurer: Measurer::default(),
            limits: Mutex::new(limits),
            ledger: Mutex::default(),
            permits: Semaphore::new(usize::try_from(parallel).unwrap_or(usize::MAX >> 3)),
            turns: Mutex::default(),
        }
    }

    /// Other limits are in force.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock() = limits;
    }

    /// Makes room for a disk, or says why not.
    /// It was asked for at `begin`.
    pub async fn make_room(&self, who: &Who, order: &RoomOrder, begin: Instant) -> RoomAnswer {
        let mut course = Course::default();
        let (result, detail) = match self.try_room(who, order, &mut course).await {
            Ok((result, detail)) => (result, detail),
            Err(why) => (RoomResult::Refused, why),
        };
        let since = |at: Option<Instant>, from: Instant| {
            at.map_or(Duration::ZERO, |at| at.saturating_duration_since(from))
        };
        RoomAnswer {
            result,
            measure: course.measure,
            before: course.before,
            took: begin.elapsed(),
            to_start: since(course.started, begin),
            running: course
                .started
                .map_or(Duration::ZERO, |started| since(course.ended, started)),
            detail,
        }
    }

    /// How much there is for a disk.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub async fn how_much(&self, who: &Who, order: &RoomOrder) -> Result<Measure, String> {
        self.measure(who, order).await.map(|(_, measure)| measure)
    }

    async fn try_room(
        &self,
        who: &Who,
        order: &RoomOrder,
        course: &mut Course,
    ) -> Result<(RoomResult, String), String> {
        let none = String::new;
        let (key, _) = self.measure(who, order).await?;
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        // Whoever was before may have made room for all.
        let (_, found) = self.measure(who, order).await?;
        (course.before, course.measure) = (Some(found), Some(found));
        let pool_free = match (found.kind, path(order)) {
            (Kind::Quota, Ok(path)) => self
                .measurer
                .measure(path)
                .await
                .ok()
                .and_then(|(_, pool)| pool.free),
            _ => None,
        };
        let (by, to) = match plan(&order.disk, &order.settings, found, pool_free, order.ask) {
            Plan::Enough => return Ok((RoomResult::Enough, none())),
            Plan::NotAtEnd => return Ok((RoomResult::NotAtEnd, none())),
            Plan::Full => return Ok((RoomResult::Full, none())),
            Plan::AtCap(why) => return Ok((RoomResult::AtCap, why)),
            Plan::Refuse(why) => return Ok((RoomResult::Refused, why)),
            Plan::Extend { by, to } => (by, to),
        };
        let Ok(_permit) = self.permits.acquire().await else {
            return Err("the watcher ends".to_owned());
        };
        let limits = *self.limits.lock();
        let now = self.began.elapsed();
        let begun = self.ledger.lock().begin(now, by, limits);
        begun.map_err(|error| error.to_string())?;
        course.started = Some(Instant::now());
        let done = match &order.settings.strategy {
            Strategy::Command(program) => {
                let ended = run_for(who, order, program, found, by, to).await;
                ended.map(|ended| ended.words())
            }
            Strategy::Quota(_) => self.set_quota(who, order, to).await,
            Strategy::Wait | Strategy::Leave => Err("nothing extends it".to_owned()),
        };
        course.ended = Some(Instant::now());
        // Neither success nor failure is believed: the size says it.
        let mut shown = Err("it could not be measured".to_owned());
        for wait in SHOWS_WITHIN_MS {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            shown = match self.measure(who, order).await {
                Ok((_, after)) => {
                    course.measure = Some(after);
                    verify(found, after, by)
                }
                Err(why) => Err(why),
            };
            if shown.is_ok() || done.is_err() {
                break;
            }
        }
        let detail = done.unwrap_or_else(|why| why);
        Ok(match shown {
            Ok(grown) => (RoomResult::Grown { by, grown }, detail),
            Err(why) if detail.is_empty() => (RoomResult::Failed { by }, why),
            Err(why) => (RoomResult::Failed { by }, format!("{why} ({detail})")),
        })
    }

    /// Whether the storage of a disk that has failed is healthy.
    ///
    /// # Errors
    /// Why not.
    pub async fn health(&self, who: &Who, order: &RoomOrder) -> Result<(), String> {
        let (_, measure) = self.measure(who, order).await?;
        match &order.settings.on_failed {
            OnFailed::WhenHealthy(program) => {
                let ended = run_for(who, order, program, measure, 0, measure.size).await?;
                match ended.status.success() {
                    true => Ok(()),
                    false => Err(ended.words()),
                }
            }
            OnFailed::After(_) | OnFailed::Leave => Ok(()),
        }
    }

    fn turn(&self, key: &str) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock();
        turns.retain(|_, turn| turn.strong_count() > 0);
        match turns.get(key).and_then(Weak::upgrade) {
            Some(turn) => turn,
            None => {
                let turn = Arc::new(Turn::new(()));
                turns.insert(key.to_owned(), Arc::downgrade(&turn));
                turn
            }
        }
    }

    async fn measure(&self, who: &Who, order: &RoomOrder) -> Result<Found, String> {
        let by_quota = match (&order.settings.strategy, order.disk.quota) {
            (Strategy::Quota(_), _) => true,
            // Who else makes room is to see what is at its end: the account, or what lies below.
            (_, Some(quota)) => {
                quota.limit.saturating_sub(quota.used) < order.settings.enough.max(order.ask.needs)
            }
            _ => false,
        };
        let place = match by_quota {
            true => Place::Quota(quota_node(order)?.to_owned()),
            false => Place::Path(path(order)?.to_owned()),
        };
        match place {
            Place::Path(path) => self.measurer.measure(&path).await,
            Place::Quota(node) => {
                let nodes = who.link.execute("query-named-block-nodes", Object::new());
                let answer = nodes.await?;
                let quota = quota_of(&answer, &node).ok_or_else(|| {
                    format!("node '{node}' has no quota: name the node that has (quota-node)")
                })?;
                let measure = Measure {
                    kind: Kind::Quota,
                    size: quota.limit,
                    free: Some(quota.limit.saturating_sub(quota.used)),
                };
                Ok((format!("quota {} {node}", who.socket.display()), measure))
            }
        }
    }

    async fn set_quota(&self, who: &Who, order: &RoomOrder, to: u64) -> Result<String, String> {
        let node = quota_node(order)?;
        let arguments = Object::from_iter([
            ("node-name".to_owned(), node.into()),
            ("limit".to_owned(), to.into()),
        ]);
        who.link.execute("x-quota-set", arguments).await?;
        Ok(String::new())
    }
}

fn quota_node(order: &RoomOrder) -> Result<&str, String> {
    let named = match &order.settings.strategy {
        Strategy::Quota(Some(node)) => Some(node),
        _ => None,
    };
    let node = named.or(order.disk.node.as_ref());
    node.map(String::as_str)
        .ok_or_else(|| "the disk has no node with a name".to_owned())
}

/// Where the data of a disk is.
fn path(order: &RoomOrder) -> Result<&Path, String> {
    if let Some(path) = &order.settings.path {
        return Ok(path);
    }
    let file = order.disk.file.as_deref().unwrap_or_default();
    match file.starts_with('/') {
        true => Ok(Path::new(file)),
        false => Err(format!(
            "the machine says that its data is at '{file}', which is no absolute path: say where (path)"
        )),
    }
}

/// Runs a program for a disk. What it needs to know is in its environment, and as JSON on its input.
async fn run_for(
    who: &Who,
    order: &RoomOrder,
    program: &Program,
    found: Measure,
    by: u64,
    to: u64,
) -> Result<Ended, String> {
    let disk = &order.disk;
    let path = path(order)
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let node = disk.node.clone().unwrap_or_default();
    let input = json!({
        "version": 1,
        "machine": who.machine,
        "socket": who.socket,
        "disk": disk.name,
        "device": disk.device,
        "qdev": disk.qdev,
        "node-name": disk.node,
        "driver": disk.driver,
        "virtual-size": disk.virtual_size,
        "path": path,
        "storage": found,
        "extend-by": by,
        "new-size": to,
        "incident": order.incident,
    });
    let environment = [
        ("STANDFAST_MACHINE", who.machine.clone()),
        ("STANDFAST_SOCKET", who.socket.display().to_string()),
        ("STANDFAST_DISK", disk.name.clone()),
        ("STANDFAST_NODE", node),
        ("STANDFAST_PATH", path),
        ("STANDFAST_EXTEND_BY", by.to_string()),
        ("STANDFAST_NEW_SIZE", to.to_string()),
    ];
    // A NUL would end what no server has any reason to say.
    let environment = environment.map(|(name, value)| (name, value.replace('\0', "")));
    program::run(program, format!("{input}\n").into_bytes(), &environment).await
}
