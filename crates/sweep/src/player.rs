//! Plays a sequence: a deterministic executor, which decides by its seed what comes next: the next step, a task that
//! wants to be polled, or the end of an operation of the storage.

use std::sync::Arc;
use std::time::Duration;

use block::Node;
use testkit::Rng;

use crate::disk::{Disk, Survivors};
use crate::event::{Ask, Event, Guest, Request};
use crate::format::Format;
use crate::hand::{Done, Hands, Woken, Work};
use crate::look;
use crate::sector::{SECTOR, Value, bytes_of, index};
use crate::sequence::Step;
use crate::storage::{Fault, FlushFailure, Settings, Storage};

/// How long a waker may be late that somebody else has to call.
const LATE: Duration = Duration::from_secs(5);
/// So often what has failed is tried again while it may still fail.
const TRIES: u32 = 4;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything that is by chance.
    pub seed: u64,
    /// How long the disk is at first, in sectors.
    pub sectors: u64,
    /// How the storage is.
    pub settings: Settings,
    /// How many requests there may be at a time.
    pub depth: usize,
    /// What is done.
    pub steps: Vec<Step>,
    /// What fails.
    pub fault: Option<Fault>,
    /// So many turns after it has failed all is well again.
    pub mends_after: u64,
}

/// What has happened between two cuts.
#[derive(Debug)]
pub struct Segment {
    /// What was on the disk.
    pub image: Vec<u8>,
    /// What the guest found there; none: what it cannot know.
    pub content: Vec<Option<Value>>,
    /// What has happened.
    pub log: Vec<Event>,
    /// What a cut at its end has left.
    pub cut: Option<(Survivors, Vec<u8>)>,
}

/// A whole run.
#[derive(Debug, Default)]
pub struct Run {
    /// Its parts, one after the other.
    pub segments: Vec<Segment>,
    /// Operations on the storage.
    pub operations: u64,
    /// Requests that have failed.
    pub failed: u64,
    /// Requests that have been tried again.
    pub retried: u64,
    /// What went wrong while it ran.
    pub broken: Option<String>,
}

struct Busy {
    id: u32,
    hand: usize,
    stamp: u32,
    request: Option<Request>,
    tries: u32,
}

struct Held {
    stamp: u32,
    request: Request,
    tries: u32,
}

struct Player<'a> {
    format: &'a dyn Format,
    hands: &'a mut Hands,
    plan: &'a Plan,
    rng: Rng,
    storage: Storage,
    before: u64,
    node: Option<Arc<Node>>,
    woken: Arc<Woken>,
    busy: Vec<Option<Busy>>,
    held: Vec<Held>,
    last_id: u32,
    last_stamp: u32,
    /// Rounds until the storage is mended, once it has failed.
    mends: u64,
    image: Vec<u8>,
    content: Vec<Option<Value>>,
    run: Run,
}

/// Plays `plan`.
pub fn play(format: &dyn Format, hands: &mut Hands, plan: &Plan) -> Run {
    let mut rng = Rng::new(plan.seed ^ 0x70_6c61_7965);
    let image = format.create(plan.sectors);
    let seed = rng.next_u64();
    let mut player = Player {
        format,
        hands,
        plan,
        rng,
        storage: Storage::new(image.clone(), plan.settings, seed),
        before: 0,
        node: None,
        woken: Arc::default(),
        busy: Vec::new(),
        held: Vec::new(),
        last_id: 0,
        last_stamp: 0,
        mends: plan.mends_after,
        image,
        content: format.content(plan.sectors).into_iter().map(Some).collect(),
        run: Run::default(),
    };
    player.busy.resize_with(plan.depth.max(1), || None);
    player.storage.fail(plan.fault);
    let played = player.play();
    player.run.broken = played.err();
    player.hands.let_go();
    player.node = None;
    player.end_segment(None);
    player.run
}

impl Player<'_> {
    fn play(&mut self) -> Result<(), String> {
        self.format.booted();
        self.open()?;
        let plan = self.plan;
        let mut steps = plan.steps.iter();
        let mut next = steps.next();
        loop {
            self.mend_in_time();
            let may_begin = match next {
                Some(Step::Request(_) | Step::WriteBack) => self.is_free(),
                Some(Step::Cut | Step::Kill) => true,
                Some(Step::Settle | Step::Resize(_) | Step::Reopen | Step::Stop) => self.is_idle(),
                None => false,
            };
            match self.chance(may_begin) {
                Some(Turn::Next) => {
                    if let Some(step) = next {
                        self.step(*step)?;
                    }
                    next = steps.next();
                }
                Some(Turn::Poll(place)) => self.poll(place),
                Some(Turn::End) => {
                    self.storage.end_one(&mut self.rng);
                }
                Some(Turn::Retry) => self.retry(),
                None if self.is_idle() && next.is_none() => break,
                None => self.wait()?,
            }
        }
        self.finish()
    }

    /// What comes next, if anything can.
    fn chance(&mut self, may_begin: bool) -> Option<Turn> {
        let woken = self.woken.places();
        let in_flight = self.storage.in_flight() as u64;
        let begin = if may_begin { 3 } else { 0 };
        let poll = 3 * u64::from(!woken.is_empty());
        let end = 3 * u64::from(in_flight > 0);
        let retry = u64::from(!self.held.is_empty() && self.is_free());
        let mut at = self.rng.below(begin + poll + end + retry);
        if begin + poll + end + retry == 0 {
            return None;
        }
        if at < begin {
            return Some(Turn::Next);
        }
        at -= begin;
        if at < poll {
            let at = index(self.rng.below(woken.len() as u64));
            return woken.get(at).copied().map(Turn::Poll);
        }
        Some(if at - poll < end {
            Turn::End
        } else {
            Turn::Retry
        })
    }

    fn is_free(&self) -> bool {
        self.busy.iter().any(Option::is_none)
    }

    fn is_idle(&self) -> bool {
        self.busy.iter().all(Option::is_none)
    }

    fn wait(&self) -> Result<(), String> {
        if self.hands.may_be_late() && self.woken.wait(LATE) {
            return Ok(());
        }
        let hanging: Vec<_> = self.busy.iter().flatten().collect();
        let hanging: Vec<_> = hanging
            .iter()
            .map(|busy| format!("guest {}", busy.id))
            .collect();
        Err(format!("it hangs: {}", hanging.join(", ")))
    }

    fn guest(&self, event: Guest) {
        self.storage.log(Event::Guest(event));
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Request(request) => {
                self.last_stamp += 1;
                let stamp = self.last_stamp;
                self.begin(Held {
                    stamp,
                    request,
                    tries: 0,
                });
            }
            Step::WriteBack => {
                let hand = index(self.rng.below(2));
                self.start(Busy {
                    id: 0,
                    hand,
                    stamp: 0,
                    request: None,
                    tries: 0,
                });
            }
            Step::Settle => {}
            Step::Resize(sectors) => self.resize(sectors),
            Step::Reopen => {
                self.close()?;
                self.open()?;
            }
            Step::Stop => self.stop()?,
            Step::Cut => self.cut()?,
            Step::Kill => self.kill()?,
        }
        Ok(())
    }

    fn begin(&mut self, held: Held) {
        let length = self.node.as_ref().map_or(0, |node| node.driver().length()) / SECTOR as u64;
        let mut request = held.request;
        if request.ask != Ask::Flush {
            if request.first >= length {
                return;
            }
            request.sectors = request.sectors.min(length - request.first);
        }
        self.last_id += 1;
        let id = self.last_id;
        self.guest(Guest::Began {
            id,
            stamp: held.stamp,
            request,
        });
        self.start(Busy {
            id,
            hand: request.hand,
            stamp: held.stamp,
            request: Some(request),
            tries: held.tries,
        });
    }

    fn start(&mut self, busy: Busy) {
        let Some(node) = self.node.clone() else {
            return;
        };
        let Some(place) = self.busy.iter().position(Option::is_none) else {
            return;
        };
        let work = match busy.request {
            Some(request) => Work::Request(request, busy.stamp),
            None => Work::WriteBack,
        };
        self.hands.start(busy.hand, place, &node, work);
        self.busy[place] = Some(busy);
        self.poll(place);
    }

    fn poll(&mut self, place: usize) {
        let Some(hand) = self
            .busy
            .get(place)
            .and_then(Option::as_ref)
            .map(|busy| busy.hand)
        else {
            self.woken.take(place);
            return;
        };
        if let Some(done) = self.hands.poll(hand, place, &self.woken)
            && let Some(busy) = self.busy[place].take()
        {
            self.woken.take(place);
            self.ended(busy, done);
        }
    }

    fn ended(&mut self, busy: Busy, done: Done) {
        let Some(request) = busy.request else { return };
        let Done { failed, seen } = done;
        self.guest(Guest::Ended {
            id: busy.id,
            failed,
            seen,
        });
        if failed.is_none() {
            return;
        }
        self.run.failed += 1;
        // Held and tried again; dropped, or reported, which is the same from here.
        if self.rng.below(4) > 0 {
            self.held.push(Held {
                stamp: busy.stamp,
                request,
                tries: busy.tries + 1,
            });
        }
    }

    fn retry(&mut self) {
        let at = index(self.rng.below(self.held.len() as u64));
        let held = self.held.swap_remove(at);
        self.run.retried += 1;
        if held.tries > TRIES && self.plan.mends_after < u64::MAX && self.rng.below(2) == 0 {
            return self.mend();
        }
        self.begin(held);
    }

    /// After a while what has failed is well again, and `cont` is sent.
    fn mend_in_time(&mut self) {
        if self.storage.has_failed() {
            if self.mends == 0 {
                self.mend();
            }
            self.mends = self.mends.saturating_sub(1);
        }
    }

    fn mend(&mut self) {
        self.storage.heal();
        self.accept_loss();
    }

    fn accept_loss(&self) {
        if self.storage.is_latched() {
            block::FlushLatch::accept_loss(&self.storage, u32::MAX);
            self.guest(Guest::LossAccepted);
        }
    }

    fn open(&mut self) -> Result<(), String> {
        self.storage.at_once(true);
        let opened = look::serve(self.format, &self.storage).or_else(|text| {
            if !self.storage.has_failed() {
                return Err(format!("it cannot be opened: {text}"));
            }
            self.mend();
            let again = look::serve(self.format, &self.storage);
            again.map_err(|text| format!("it cannot be opened when all is well again: {text}"))
        });
        self.storage.at_once(false);
        let node = opened?;
        self.hands.attach(&node);
        self.node = Some(node);
        Ok(())
    }

    fn resize(&mut self, sectors: u64) {
        let Some(node) = &self.node else { return };
        let from = node.driver().length() / SECTOR as u64;
        self.guest(Guest::Resizing { from, to: sectors });
        self.storage.at_once(true);
        let failed = node.resize(bytes_of(sectors)).is_err();
        self.storage.at_once(false);
        self.guest(Guest::Resized {
            from,
            to: sectors,
            failed,
        });
    }

    /// The driver writes back, with nothing else under way.
    fn write_back(&mut self) -> Result<(), String> {
        let hand = index(self.rng.below(2));
        self.start(Busy {
            id: 0,
            hand,
            stamp: 0,
            request: None,
            tries: 0,
        });
        self.settle()
    }

    fn settle(&mut self) -> Result<(), String> {
        while !self.is_idle() {
            match self.chance(false) {
                Some(Turn::Poll(place)) => self.poll(place),
                Some(Turn::End) => {
                    self.storage.end_one(&mut self.rng);
                }
                Some(Turn::Next | Turn::Retry) => {}
                None => self.wait()?,
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        self.write_back()?;
        let Some(node) = &self.node else {
            return Ok(());
        };
        if let Some(left) = look::left_unwritten(node) {
            return match self.storage.has_failed() {
                true => Ok(()),
                false => Err(format!("stopped, but {left}")),
            };
        }
        self.is_complete(false);
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        // What cannot be written is told, and lost with the daemon: that is not what is looked at here.
        self.mend();
        self.write_back()?;
        if self.storage.is_latched() {
            self.accept_loss();
            self.write_back()?;
        }
        let Some(node) = self.node.take() else {
            return Ok(());
        };
        if let Some(left) = look::left_unwritten(&node) {
            return Err(format!("to be closed, but {left}"));
        }
        self.hands.let_go();
        self.storage.at_once(true);
        let closed = self.format.close(&node);
        drop(node);
        self.storage.at_once(false);
        closed.map_err(|text| format!("it cannot be closed: {text}"))?;
        self.is_complete(true);
        Ok(())
    }

    /// What is on the disk now is copied, for the judge.
    fn is_complete(&self, closed: bool) {
        let image = self.storage.image().into();
        self.guest(Guest::Stopped { image, closed });
    }

    fn cut(&mut self) -> Result<(), String> {
        let forgets = self.plan.settings.flush_failure == FlushFailure::Forgets;
        let mut disk = Disk::new(self.image.clone(), forgets);
        self.storage.with_log(|log| {
            for (time, event) in log.iter().enumerate() {
                disk.apply(time, event);
            }
        });
        let nth = self.rng.below(8);
        let survivors = Survivors::choose(nth, disk.unflushed(), &mut self.rng);
        let image = disk.cut(survivors);
        self.storage.die();
        self.hands.let_go();
        self.node = None;
        self.held.clear();
        self.busy.iter_mut().for_each(|busy| *busy = None);
        self.end_segment(Some((survivors, image.clone())));
        let (content, _) = look::content(self.format, image.clone())?;
        self.content = content.into_iter().map(Result::ok).collect();
        self.image = image;
        self.woken = Arc::default();
        let seed = self.rng.next_u64();
        self.storage = Storage::new(self.image.clone(), self.plan.settings, seed);
        self.format.booted();
        let fault = self.plan.fault.and_then(|fault| {
            let at = fault.at.checked_sub(self.before)?;
            Some(Fault { at, ..fault })
        });
        self.storage.fail(fault);
        self.open()
    }

    /// The client sends again what had not ended, or drops it.
    fn kill(&mut self) -> Result<(), String> {
        self.hands.let_go();
        self.node = None;
        self.guest(Guest::Killed);
        let busy: Vec<_> = self.busy.iter_mut().filter_map(Option::take).collect();
        for one in busy {
            let done = Done {
                failed: Some(libc::EIO),
                seen: Vec::new(),
            };
            self.ended(one, done);
        }
        self.woken = Arc::default();
        self.open()?;
        if let Some(node) = &self.node {
            let sectors = node.driver().length() / SECTOR as u64;
            self.guest(Guest::Found(sectors));
        }
        Ok(())
    }

    fn end_segment(&mut self, cut: Option<(Survivors, Vec<u8>)>) {
        let operations = self.storage.operations();
        self.before += operations;
        self.run.operations += operations;
        self.run.segments.push(Segment {
            image: self.image.clone(),
            content: self.content.clone(),
            log: self.storage.take_log(),
            cut,
        });
    }

    /// All is well again: what is held goes through, all is read, flushed, stopped and closed.
    fn finish(&mut self) -> Result<(), String> {
        self.mend();
        self.storage.fail(None);
        while let Some(held) = self.held.pop() {
            self.run.retried += 1;
            self.begin(held);
            self.settle()?;
        }
        self.accept_loss();
        let length = self.node.as_ref().map_or(0, |node| node.driver().length()) / SECTOR as u64;
        let failed = self.run.failed;
        let plain = |ask, first, sectors| Request {
            ask,
            first,
            sectors,
            fua: false,
            hand: 0,
        };
        let mut at = 0;
        while at < length {
            let sectors = (length - at).min(128);
            self.step(Step::Request(plain(Ask::Read, at, sectors)))?;
            self.settle()?;
            at += sectors;
        }
        self.step(Step::Request(plain(Ask::Flush, 0, 0)))?;
        self.settle()?;
        if self.run.failed > failed {
            return Err("requests fail although all is well".to_owned());
        }
        self.stop()?;
        self.close()
    }
}

/// What comes next.
enum Turn {
    Next,
    Poll(usize),
    End,
    Retry,
}
