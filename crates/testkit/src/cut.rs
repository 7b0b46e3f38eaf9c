//! What disks had on them at an instant: writers that know of each block which write it is from, and when that was
//! submitted and completed. An image of that instant has to be a cut of it: nothing that was completed before is
//! missing, nothing that was submitted after it is there, and nothing is there without all that was completed before it
//! was submitted, on whichever disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use frontend::{Disk, Request};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::qcow2_image::run;
use crate::rng::Rng;

/// Bytes of a block, each written as a whole.
pub const BLOCK: usize = 4096;
/// Requests that a writer has in flight.
const DEPTH: usize = 8;
/// One request of so many is a flush.
const FLUSHES: u64 = 40;

#[derive(Clone, Copy, Debug)]
struct Written {
    /// The time at which it was submitted, which no other write has.
    number: u64,
    completed: Option<u64>,
}

/// All writes to some disks.
#[derive(Debug, Default)]
pub struct Log {
    clock: AtomicU64,
    /// By disk and block, the oldest first.
    all: Mutex<BTreeMap<(usize, u64), Vec<Written>>>,
}

impl Log {
    /// A time that is later than all before.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn begin(&self, disk: usize, block: u64) -> u64 {
        let mut all = self.all.lock();
        let number = self.now();
        all.entry((disk, block)).or_default().push(Written {
            number,
            completed: None,
        });
        number
    }

    fn complete(&self, disk: usize, block: u64) {
        let mut all = self.all.lock();
        let now = self.now();
        if let Some(last) = all.get_mut(&(disk, block)).and_then(|all| all.last_mut()) {
            last.completed = Some(now);
        }
    }

    /// Whether `contents`, the numbers of the blocks of some disks, are what was there at one instant that is not
    /// before `begin` nor after `end`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_cut(&self, begin: u64, end: u64, contents: &[(usize, Vec<u64>)]) -> Result<()> {
        let all = self.all.lock();
        for (disk, blocks) in contents {
            for (block, number) in (0..).zip(blocks) {
                let known = all.get(&(*disk, block));
                let is_known = |known: &Vec<Written>| known.iter().any(|one| one.number == *number);
                ensure!(
                    *number == 0 || known.is_some_and(is_known),
                    "disk {disk}, block {block}: {number} was never written there"
                );
                ensure!(
                    *number < end,
                    "disk {disk}, block {block}: {number} was written after the instant ({end})"
                );
            }
        }
        let numbers = contents.iter().flat_map(|(_, blocks)| blocks);
        let newest = numbers.copied().max().unwrap_or(0);
        let needed = begin.max(newest);
        for ((disk, block), written) in &*all {
            let before = |one: &&Written| one.completed.is_some_and(|at| at < needed);
            let last = written
                .iter()
                .rev()
                .find(before)
                .map_or(0, |one| one.number);
            let Some((_, blocks)) = contents.iter().find(|(known, _)| known == disk) else {
                continue;
            };
            let there = blocks.get(usize::try_from(*block)?).copied().unwrap_or(0);
            ensure!(
                there >= last,
                "disk {disk}, block {block}: {there} is there, and {last} was completed before ({begin}, {newest})"
            );
        }
        Ok(())
    }

    /// What is there of `disk` in the end: the last write of each block, all of which have been completed.
    fn last(&self, disk: usize, block: u64) -> u64 {
        let all = self.all.lock();
        let written = all.get(&(disk, block)).and_then(|all| all.last());
        written.map_or(0, |last| last.number)
    }
}

/// Somebody who writes to one of the disks, at places that nothing is in flight to.
#[derive(Debug)]
pub struct Writer {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Disk)>>,
}

impl Writer {
    /// Begins to write to the first `blocks` blocks of disk number `number`, which is `disk`.
    #[must_use]
    pub fn start(log: &Arc<Log>, number: usize, disk: Disk, blocks: u64) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let writing = Writing {
            log: Arc::clone(log),
            number,
            disk,
            blocks,
            rng: Rng::new(log.now() << 8 | number as u64),
            busy: BTreeMap::new(),
            places: BTreeSet::new(),
            completed: 0,
        };
        let ends = Arc::clone(&end);
        let thread = std::thread::spawn(move || writing.run(&ends));
        Self { end, thread }
    }

    /// It begins nothing more.
    pub fn finish(&self) {
        self.end.store(true, Ordering::Relaxed);
    }

    /// Whether all that it has begun has been completed, and read back.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for that. Returns how many requests have been completed, and the disk.
    ///
    /// # Errors
    /// A request failed, or something else was read than was written.
    pub fn end(self) -> Result<(u64, Disk)> {
        self.finish();
        match self.thread.join() {
            Ok(ended) => ended,
            Err(_) => bail!("the writer panicked"),
        }
    }
}

struct Writing {
    log: Arc<Log>,
    number: usize,
    disk: Disk,
    blocks: u64,
    rng: Rng,
    /// By token; none: a flush.
    busy: BTreeMap<frontend::Token, Option<u64>>,
    places: BTreeSet<u64>,
    completed: u64,
}

impl Writing {
    fn run(mut self, end: &AtomicBool) -> Result<(u64, Disk)> {
        loop {
            let ends = end.load(Ordering::Relaxed);
            while !ends && self.busy.len() < DEPTH {
                self.submit()?;
            }
            self.disk.kick(0)?;
            let before = self.completed;
            self.reap()?;
            if ends && self.busy.is_empty() {
                break;
            }
            if self.completed == before {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        self.read_back()?;
        Ok((self.completed, self.disk))
    }

    fn submit(&mut self) -> Result<()> {
        if self.rng.below(FLUSHES) == 0 {
            let token = self.disk.submit(0, Request::Flush)?;
            self.busy.insert(token, None);
            return Ok(());
        }
        let block = self.rng.below(self.blocks);
        if !self.places.insert(block) {
            return Ok(());
        }
        let number = self.log.begin(self.number, block);
        let data = number.to_le_bytes().repeat(BLOCK / 8);
        let write = Request::Write {
            sector: block * (BLOCK as u64 / 512),
            data: &data,
        };
        let token = self.disk.submit(0, write)?;
        self.busy.insert(token, Some(block));
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        while let Some(done) = self.disk.poll(0) {
            let block = self.busy.remove(&done.token);
            let block = block.context("what was not submitted is completed")?;
            ensure!(
                done.is_ok(),
                "disk {}: a request failed with {}",
                self.number,
                done.status
            );
            if let Some(block) = block {
                self.places.remove(&block);
                self.log.complete(self.number, block);
            }
            self.completed += 1;
        }
        Ok(())
    }

    fn read_back(&mut self) -> Result<()> {
        for block in 0..self.blocks {
            let read = Request::Read {
                sector: block * (BLOCK as u64 / 512),
                len: 4096,
            };
            let done = self.disk.execute(0, read, Duration::from_secs(30))?;
            ensure!(done.is_ok(), "a read failed");
            let (there, wanted) = (number_of(&done.data)?, self.log.last(self.number, block));
            ensure!(
                there == wanted,
                "disk {}, block {block}: {there} is read, {wanted} was written",
                self.number
            );
        }
        Ok(())
    }
}

/// The number of the write that a block is from; 0: it was never written.
fn number_of(block: &[u8]) -> Result<u64> {
    let (numbers, _) = block.as_chunks::<8>();
    let first = numbers.first().context("it is empty")?;
    ensure!(
        numbers.iter().all(|number| number == first),
        "a block is from two writes"
    );
    Ok(u64::from_le_bytes(*first))
}

/// The numbers of the blocks of a raw image.
///
/// # Errors
/// It cannot be read, or has blocks that are of no one write.
pub fn numbers(raw: &[u8]) -> Result<Vec<u64>> {
    raw.chunks(BLOCK).map(number_of).collect()
}

/// A chain of qcow2 images, from the lowest, whatever these say of it: as QEMU's tools are told of it.
#[must_use]
pub fn chain_of<P: AsRef<Path>>(images: impl IntoIterator<Item = P>) -> String {
    let mut whole = Value::Null;
    for image in images {
        whole = json!({ "driver": "qcow2", "backing": whole,
            "file": { "driver": "file", "filename": image.as_ref() } });
    }
    format!("json:{whole}")
}

/// The same of any image, also if a daemon has it. Needs qemu-img.
///
/// # Errors
/// As [`numbers`].
pub fn numbers_of(image: &str) -> Result<Vec<u64>> {
    let dir = tempfile::tempdir()?;
    let raw = dir.path().join("raw");
    run(
        "qemu-img",
        &["convert", "-U", "-Oraw", image, &raw.display().to_string()],
    )?;
    numbers(&fs::read(raw)?)
}

/// Until all of `writers` have ended, lets `go_on` do what is held.
///
/// # Errors
/// They have not ended in time.
pub fn let_end(
    writers: &[&Writer],
    patience: Duration,
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<()> {
    let begin = Instant::now();
    writers.iter().for_each(|writer| writer.finish());
    while !writers.iter().all(|writer| writer.is_finished()) {
        ensure!(begin.elapsed() < patience, "a writer does not end");
        go_on()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks of one disk and one of another, written in turn.
    #[test]
    fn what_is_a_cut_and_what_is_not() {
        let log = Log::default();
        let write = |disk, block| {
            let number = log.begin(disk, block);
            log.complete(disk, block);
            number
        };
        let first = write(0, 0);
        let second = write(1, 0);
        let begin = log.now();
        let third = write(0, 1);
        let fourth = write(1, 0);
        let flying = log.begin(0, 0);
        let end = log.now();
        let late = log.begin(0, 1);
        let check = |one: u64, other: u64, of_second: u64| {
            log.check_cut(begin, end, &[(0, vec![one, other]), (1, vec![of_second])])
                .is_ok()
        };
        assert!(check(first, 0, second), "all of before");
        assert!(check(first, third, second) && check(first, third, fourth));
        assert!(check(flying, third, fourth), "old or new");
        assert!(!check(first, 0, fourth), "what came before that is missing");
        assert!(!check(0, 0, second) && !check(first, 0, 0), "lost");
        assert!(!check(first, late, fourth), "too late");
        assert!(!check(first, fourth, fourth), "of another block");
    }
}
