//! A random, seeded load over a [`Disk`], every completion checked.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use frontend::protocol::{SECTOR_BYTES, feature};
use frontend::{Completion, Disk, Request, Segment, Shape, SubmitError, Token};

use crate::checker::{Checker, Operation, Planned, Summary};
use crate::pattern::Pattern;
use crate::rng::Rng;

/// How often a free range is looked for before the workload waits for a completion instead.
const TRIES: usize = 16;

/// Relative frequencies of the operations. Those the device does not offer are left out.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "named after the operations")]
pub struct Mix {
    pub read: u64,
    pub write: u64,
    pub write_zeroes: u64,
    pub discard: u64,
    pub flush: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            read: 40,
            write: 45,
            write_zeroes: 5,
            discard: 5,
            flush: 5,
        }
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Decides everything that is random.
    pub seed: u64,
    /// Number of requests.
    pub requests: u64,
    /// Most requests outstanding at a time, over all queues.
    pub depth: usize,
    /// Which operations.
    pub mix: Mix,
    /// Size of the blocks that are written and checked.
    pub pattern: Pattern,
    /// Blocks at the beginning of the disk that are used. They must read as zeroes at first.
    pub blocks: usize,
    /// Most blocks per request.
    pub blocks_max: usize,
    /// Most data descriptors per request.
    pub segments_max: u16,
    /// How long a single wait for a completion may take.
    pub timeout: Duration,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            seed: 1,
            requests: 1000,
            depth: 32,
            mix: Mix::default(),
            pattern: Pattern::PAGE,
            blocks: 1024,
            blocks_max: 16,
            segments_max: 4,
            timeout: Duration::from_secs(20),
        }
    }
}

/// A workload under way. It keeps account across stops, resets and reconnects of the disk.
#[derive(Debug)]
pub struct Driver {
    workload: Workload,
    rng: Rng,
    checker: Checker,
    tokens: HashMap<Token, u64>,
    /// A request that found its queue full, to be submitted first of all.
    next: Option<Planned>,
    started: u64,
}

impl Driver {
    /// A driver that has done nothing yet.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        Self {
            rng: Rng::new(workload.seed),
            checker: Checker::new(workload.pattern, workload.blocks),
            tokens: HashMap::new(),
            next: None,
            started: 0,
            workload,
        }
    }

    /// Keeps account of the requests and of the disk's content.
    pub fn checker_mut(&mut self) -> &mut Checker {
        &mut self.checker
    }

    /// Number of requests submitted and not completed.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.tokens.len()
    }

    /// So many requests more.
    pub fn plan_more(&mut self, requests: u64) {
        self.workload.requests = self.started.saturating_add(requests);
    }

    /// Whether all requests of the workload have been submitted.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.started >= self.workload.requests && self.next.is_none()
    }

    /// Cuts the workload short: it is exhausted when what is planned already has been submitted.
    pub fn plan_no_more(&mut self) {
        self.workload.requests = self.started;
    }

    /// The whole workload: all requests, all completions, all blocks read back.
    ///
    /// # Errors
    /// The first thing that is wrong, with the seed.
    pub fn run(mut self, disk: &mut Disk) -> Result<Summary> {
        while !self.is_exhausted() {
            self.fill(disk)?;
            self.reap(disk)?;
        }
        self.drain(disk)?;
        self.read_back(disk)?;
        self.finish(disk)
    }

    /// Submits requests up to the depth, and kicks.
    ///
    /// # Errors
    /// Errors of the connection.
    pub fn fill(&mut self, disk: &mut Disk) -> Result<()> {
        let seed = self.workload.seed;
        self.try_fill(disk)
            .with_context(|| format!("workload with seed {seed}"))
    }

    fn try_fill(&mut self, disk: &mut Disk) -> Result<()> {
        while self.tokens.len() < self.workload.depth && !self.is_exhausted() {
            let Some(planned) = self.next.take().or_else(|| self.plan(disk)) else {
                break;
            };
            if !self.submit(disk, planned)? {
                break;
            }
        }
        (0..disk.queues()).try_for_each(|queue| Ok(disk.kick(queue)?))
    }

    /// Waits for one completion, if any is outstanding, and takes all that are there.
    ///
    /// # Errors
    /// Whatever is wrong with them; none within the workload's timeout.
    pub fn reap(&mut self, disk: &mut Disk) -> Result<()> {
        let timeout = self.workload.timeout;
        let reaped = self.reap_within(disk, timeout)?;
        ensure!(
            reaped > 0 || self.tokens.is_empty(),
            "workload with seed {}: no completion within {timeout:?}, {} outstanding",
            self.workload.seed,
            self.tokens.len()
        );
        Ok(())
    }

    /// Waits up to `timeout` for a completion, if any is outstanding, takes all that are there, and
    /// returns how many. While requests are held there may be none.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn reap_within(&mut self, disk: &mut Disk, timeout: Duration) -> Result<usize> {
        let seed = self.workload.seed;
        self.try_reap(disk, timeout)
            .with_context(|| format!("workload with seed {seed}"))
    }

    fn try_reap(&mut self, disk: &mut Disk, timeout: Duration) -> Result<usize> {
        if self.tokens.is_empty() {
            return Ok(0);
        }
        let Some((_, completion)) = disk.wait_any(timeout)? else {
            return Ok(0);
        };
        self.complete(completion)?;
        let mut count = 1;
        for queue in 0..disk.queues() {
            while let Some(completion) = disk.poll(queue) {
                self.complete(completion)?;
                count += 1;
            }
        }
        ensure!(
            disk.violations().is_empty(),
            "violations: {:?}",
            disk.violations()
        );
        Ok(count)
    }

    /// Waits for everything that is outstanding.
    ///
    /// # Errors
    /// As [`Driver::reap`].
    pub fn drain(&mut self, disk: &mut Disk) -> Result<()> {
        while !self.tokens.is_empty() {
            self.reap(disk)?;
        }
        Ok(())
    }

    /// Requests were dropped by a reset of the disk.
    ///
    /// # Errors
    /// If they were not outstanding.
    pub fn dropped(&mut self, tokens: &[Token]) -> Result<()> {
        for token in tokens {
            let number = self.tokens.remove(token);
            let number = number.with_context(|| format!("{token:?} is not of this workload"))?;
            self.checker.dropped(number)?;
        }
        Ok(())
    }

    /// Reads all blocks through the disk and checks them. Nothing may be outstanding.
    ///
    /// # Errors
    /// The first wrong block; errors of the connection.
    pub fn read_back(&mut self, disk: &mut Disk) -> Result<()> {
        let (seed, timeout) = (self.workload.seed, self.workload.timeout);
        let read = |offset: u64, data: &mut [u8]| {
            let len = u32::try_from(data.len())?;
            let request = Request::Read {
                sector: offset / SECTOR_BYTES,
                len,
            };
            let completion = disk.execute(0, request, timeout)?;
            ensure!(
                completion.is_ok(),
                "reading back {offset:#x}: status {}",
                completion.status
            );
            data.copy_from_slice(&completion.data);
            Ok(())
        };
        self.checker
            .verify_all(read)
            .with_context(|| format!("workload with seed {seed}"))
    }

    /// Reads all blocks from a raw image and checks them.
    ///
    /// # Errors
    /// The first wrong block; errors of the file.
    pub fn check_image(&mut self, image: &Path) -> Result<()> {
        let file = File::open(image).with_context(|| image.display().to_string())?;
        let read =
            |offset: u64, data: &mut [u8]| -> Result<()> { Ok(file.read_exact_at(data, offset)?) };
        let seed = self.workload.seed;
        self.checker
            .verify_all(read)
            .with_context(|| format!("workload with seed {seed}"))
    }

    /// Checks that nothing is left: no request, no violation, no dropped buffer written to.
    ///
    /// # Errors
    /// What is left.
    pub fn finish(self, disk: &mut Disk) -> Result<Summary> {
        let seed = self.workload.seed;
        if let Err(violations) = disk.check_dropped() {
            bail!("workload with seed {seed}: {violations:?}");
        }
        ensure!(
            disk.violations().is_empty(),
            "workload with seed {seed}: violations: {:?}",
            disk.violations()
        );
        self.checker
            .finish()
            .with_context(|| format!("workload with seed {seed}"))
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let token = completion.token;
        let number = self.tokens.remove(&token);
        let number = number.with_context(|| format!("{token:?} is not of this workload"))?;
        Ok(self
            .checker
            .complete(number, completion.status, &completion.data)?)
    }

    fn plan(&mut self, disk: &Disk) -> Option<Planned> {
        let operation = self.operation(disk);
        for _ in 0..TRIES {
            let count = 1 + self.below(self.blocks_max(operation, disk));
            let (first, count) = if operation == Operation::Flush {
                (0, 0)
            } else {
                (
                    self.below(self.checker.blocks().saturating_sub(count - 1)),
                    count,
                )
            };
            if let Some(planned) = self.checker.plan(operation, first, count) {
                self.started += 1;
                return Some(planned);
            }
        }
        None
    }

    fn operation(&mut self, disk: &Disk) -> Operation {
        let Mix {
            read,
            write,
            write_zeroes,
            discard,
            flush,
        } = self.workload.mix;
        let offered = |bit, weight| {
            if disk.features() & bit == 0 {
                0
            } else {
                weight
            }
        };
        let weights = [
            (Operation::Read, read),
            (Operation::Write, write),
            (
                Operation::WriteZeroes,
                offered(feature::WRITE_ZEROES, write_zeroes),
            ),
            (Operation::Discard, offered(feature::DISCARD, discard)),
            (Operation::Flush, offered(feature::FLUSH, flush)),
        ];
        let mut ticket = self
            .rng
            .below(weights.iter().map(|(_, weight)| weight).sum());
        for (operation, weight) in weights {
            match ticket.checked_sub(weight) {
                Some(rest) => ticket = rest,
                None => return operation,
            }
        }
        Operation::Read
    }

    /// The device's limits on discard and write-zeroes, in blocks, and the workload's own.
    fn blocks_max(&self, operation: Operation, disk: &Disk) -> usize {
        let sectors = match operation {
            Operation::Discard => disk.config().max_discard_sectors,
            Operation::WriteZeroes => disk.config().max_write_zeroes_sectors,
            _ => u32::MAX,
        };
        let blocks = u64::from(sectors) * SECTOR_BYTES / self.workload.pattern.block_bytes() as u64;
        usize::try_from(blocks)
            .unwrap_or(usize::MAX)
            .clamp(1, self.workload.blocks_max.max(1))
    }

    fn below(&mut self, end: usize) -> usize {
        // Below `end`, so it fits.
        usize::try_from(self.rng.below(end as u64)).unwrap_or(0)
    }

    /// False if all queues are full; then the request is kept for later.
    fn submit(&mut self, disk: &mut Disk, planned: Planned) -> Result<bool> {
        let block_bytes = self.workload.pattern.block_bytes() as u64;
        let sector = planned.first as u64 * block_bytes / SECTOR_BYTES;
        let bytes = planned.count as u64 * block_bytes;
        let range = Segment::new(sector, u32::try_from(bytes / SECTOR_BYTES)?);
        let data = self.checker.data(&planned);
        let shape = Shape {
            segments: 1 + u16::try_from(self.rng.below(u64::from(self.workload.segments_max)))?,
            indirect: self.rng.below(2) == 0,
        };
        let zeroes = [if self.rng.below(2) == 0 {
            range
        } else {
            range.unmap()
        }];
        let ranges = [range];
        let request = match planned.operation {
            Operation::Read => Request::Read {
                sector,
                len: u32::try_from(bytes)?,
            },
            Operation::Write => Request::Write {
                sector,
                data: &data,
            },
            Operation::WriteZeroes => Request::WriteZeroes(&zeroes),
            Operation::Discard => Request::Discard(&ranges),
            Operation::Flush => Request::Flush,
        };
        let first = u16::try_from(self.rng.below(u64::from(disk.queues())))?;
        for step in 0..disk.queues() {
            let queue = (first + step) % disk.queues();
            match disk.submit_shaped(queue, request, shape) {
                Ok(token) => {
                    self.tokens.insert(token, planned.number);
                    return Ok(true);
                }
                Err(SubmitError::QueueFull | SubmitError::MemoryFull) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ensure!(
            !self.tokens.is_empty(),
            "a request does not fit into empty queues"
        );
        self.next = Some(planned);
        Ok(false)
    }
}

/// Waits until `condition` is true, looking every few milliseconds.
///
/// # Errors
/// If it is not within `timeout`; errors of the condition.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition()? {
        ensure!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
