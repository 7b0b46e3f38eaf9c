//! Where room is made: one storage after the other, whoever asks, so that one extension is for all that
//! wait for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use qapi::Object;
use serde_json::json;
use tokio::sync::{Mutex as Turn, Semaphore, SemaphorePermit};

use crate::core::ledger::{Ledger, Limits};
use crate::core::machine::{RoomAnswer, RoomOrder, RoomResult};
use crate::core::room::{Kind, Measure, Plan, Spare, plan, verify};
use crate::core::view::{Disk, Quota, quota_of};
use crate::settings::{OnFailed, Program, Strategy};

use super::link::Link;
use super::measure::Measurer;
use super::program::{self, Ended};
use super::volumes::{self, Extensible, Place};

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

    /// Makes room for a disk, or says why not. It was asked for at `begin`.
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
        self.measure(who, order).await.map(|place| place.measure)
    }

    async fn try_room(
        &self,
        who: &Who,
        order: &RoomOrder,
        course: &mut Course,
    ) -> Result<(RoomResult, String), String> {
        let none = String::new;
        let key = match (&order.settings.strategy, &*accounts(order)) {
            // That need not be asked for.
            (Strategy::Quota(_), [node]) => quota_key(who, node),
            _ => self.measure(who, order).await?.key,
        };
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        // Whoever was before may have made room for all.
        let mut place = self.measure(who, order).await?;
        course.before = Some(place.measure);
        let metadata = match &place.volume {
            Some(volume) if order.ask.extend => volume.metadata(),
            _ => None,
        };
        if let Some((spare, by)) = metadata {
            let (after, grown) = match self
                .extend_metadata(who, order, course, place, spare, by)
                .await?
            {
                Ok(done) => done,
                Err(why) => return Ok((RoomResult::Failed { by }, why)),
            };
            let plan = plan(
                &order.disk,
                &order.settings,
                after.measure,
                after.below,
                order.ask,
            );
            if matches!(plan, Plan::Enough | Plan::NotAtEnd) {
                return Ok((RoomResult::Grown { by, grown }, "metadata".to_owned()));
            }
            place = after;
        }
        let found = place.measure;
        course.measure = Some(found);
        let (by, to) = match plan(&order.disk, &order.settings, found, place.below, order.ask) {
            Plan::Enough => return Ok((RoomResult::Enough, none())),
            Plan::NotAtEnd => return Ok((RoomResult::NotAtEnd, none())),
            Plan::Full => return Ok((RoomResult::Full, none())),
            Plan::AtCap(why) => return Ok((RoomResult::AtCap, why)),
            Plan::Refuse(why) => return Ok((RoomResult::Refused, why)),
            Plan::Extend { by, to } => (by, to),
        };
        let (by, to) = match &place.volume {
            Some(volume) => {
                volume.check()?;
                let Some(whole) = volume.whole(by) else {
                    let why = format!("{by} bytes are less than can be added to it");
                    return Ok((RoomResult::AtCap, why));
                };
                (whole, found.size.saturating_add(whole))
            }
            None => (by, to),
        };
        let _permit = self.begin(by).await?;
        course.started.get_or_insert_with(Instant::now);
        let done = match &order.settings.strategy {
            Strategy::Command(program) => {
                let ended = run_for(who, order, program, found, by, to).await;
                ended.map(|ended| ended.words())
            }
            Strategy::Quota(_) => set_quota(who, &place, to).await,
            Strategy::Lvm(_) | Strategy::Zfs(_) => match &place.volume {
                Some(volume) => volume.extend(found.size, by).await,
                None => Err("nothing extends it".to_owned()),
            },
            Strategy::Wait | Strategy::Leave => Err("nothing extends it".to_owned()),
        };
        course.ended = Some(Instant::now());
        // Neither success nor failure is believed: the size says it.
        let mut shown = Err("it could not be measured".to_owned());
        for wait in SHOWS_WITHIN_MS {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            shown = match self.measure(who, order).await {
                Ok(after) => {
                    course.measure = Some(after.measure);
                    verify(found, after.measure, by)
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
        let measure = self.measure(who, order).await?.measure;
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

    /// Counts an extension that begins now, and waits until it may.
    async fn begin(&self, by: u64) -> Result<SemaphorePermit<'_>, String> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| "the watcher ends".to_owned())?;
        let limits = *self.limits.lock();
        let now = self.began.elapsed();
        let begun = self.ledger.lock().begin(now, by, limits);
        begun.map_err(|error| error.to_string())?;
        Ok(permit)
    }

    /// Extends the metadata of a pool by `by`, and says what there is then, and by how much it has grown; or why it
    /// has not.
    async fn extend_metadata(
        &self,
        who: &Who,
        order: &RoomOrder,
        course: &mut Course,
        place: Place,
        before: Spare,
        by: u64,
    ) -> Result<Result<(Place, u64), String>, String> {
        let Some(volume) = &place.volume else {
            return Err("it has no metadata".to_owned());
        };
        volume.check()?;
        if place.below.is_none_or(|free| free < by) {
            return Err(format!(
                "{by} bytes are needed for metadata, and are not there"
            ));
        }
        let _permit = self.begin(by).await?;
        course.started = Some(Instant::now());
        let done = volume.extend_metadata(by).await;
        course.ended = Some(Instant::now());
        let after = self.measure(who, order).await?;
        course.measure = Some(after.measure);
        let size = after.volume.as_ref().map_or(0, Extensible::metadata_size);
        let grown = size.saturating_sub(before.size);
        if grown >= by {
            return Ok(Ok((after, grown)));
        }
        let said = done.unwrap_or_else(|why| why);
        Ok(Err(format!(
            "its metadata has grown by {grown} bytes, {by} were asked for ({said})"
        )))
    }

    async fn measure(&self, who: &Who, order: &RoomOrder) -> Result<Place, String> {
        let is_low = |quota: &Quota| {
            quota.limit.saturating_sub(quota.used) < order.settings.enough.max(order.ask.needs)
        };
        let account = match (&order.settings.strategy, order.disk.quota) {
            (Strategy::Lvm(lvm), _) => {
                return volumes::of_lvm(&self.measurer, lvm, path(order)?).await;
            }
            (Strategy::Zfs(zfs), _) => {
                return volumes::of_zfs(&self.measurer, zfs, path(order)).await;
            }
            (Strategy::Quota(_), _) => Some(account(who, order).await?),
            // Who else makes room is to see what is at its end: the account, or what lies below.
            (_, Some(quota)) if is_low(&quota) => Some(account(who, order).await?),
            (_, Some(_)) => None,
            // It may be one below the top.
            (_, None) if accounts(order).len() > 1 => {
                let found = account(who, order).await.ok();
                found.filter(|(_, quota)| is_low(quota))
            }
            (_, None) => None,
        };
        let Some((node, quota)) = account else {
            let (key, measure) = self.measurer.measure(path(order)?).await?;
            return Ok(Place {
                key,
                measure,
                below: None,
                volume: None,
                account: None,
            });
        };
        let pool = match path(order) {
            Ok(path) => self.measurer.measure(path).await.ok(),
            Err(_) => None,
        };
        Ok(Place {
            key: quota_key(who, node),
            measure: Measure {
                kind: Kind::Quota,
                size: quota.limit,
                free: Some(quota.limit.saturating_sub(quota.used)),
                exhausted: false,
            },
            below: pool.and_then(|(_, pool)| pool.free),
            volume: None,
            account: Some(node.to_owned()),
        })
    }
}

/// The node with the account of a disk, and what that says.
async fn account<'a>(who: &Who, order: &'a RoomOrder) -> Result<(&'a str, Quota), String> {
    let nodes = accounts(order);
    // Without what is below each.
    let flat = Object::from_iter([("flat".to_owned(), true.into())]);
    let answer = who.link.execute("query-named-block-nodes", flat).await?;
    let with_quota = |node: &&'a str| Some((*node, quota_of(&answer, node)?));
    nodes
        .iter()
        .find_map(with_quota)
        .ok_or_else(|| match nodes.last() {
            None => "the disk has no node with a name".to_owned(),
            Some(node) => {
                format!("node '{node}' has no quota: name the node that has (quota-node)")
            }
        })
}

async fn set_quota(who: &Who, place: &Place, to: u64) -> Result<String, String> {
    let node = place.account.as_deref().ok_or("it has no quota")?;
    let arguments = Object::from_iter([
        ("node-name".to_owned(), node.into()),
        ("limit".to_owned(), to.into()),
    ]);
    who.link.execute("x-quota-set", arguments).await?;
    Ok(String::new())
}

/// What the account of a node is called here.
fn quota_key(who: &Who, node: &str) -> String {
    format!("quota {} {node}", who.socket.display())
}

/// The nodes whose account it may be, the likeliest first: the one that was named, or else the one that was full, if it has one, and
/// the top node.
fn accounts(order: &RoomOrder) -> Vec<&str> {
    if let Strategy::Quota(Some(node)) = &order.settings.strategy {
        return vec![node];
    }
    let Disk {
        full_node, node, ..
    } = &order.disk;
    let below = full_node
        .as_ref()
        .filter(|full| node.as_ref() != Some(full));
    below.into_iter().chain(node).map(String::as_str).collect()
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
