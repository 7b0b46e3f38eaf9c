//! The VM: a disk driver that writes a pattern over the whole disk and reads it back.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use frontend::{Disk, Options, Request, SubmitError, Token};

use super::interrupt::interrupted;
use super::pattern::{self, BLOCK_BYTES};

/// How much one request writes or reads, in bytes.
pub const REQUEST_BYTES: usize = 128 << 10;

/// Requests outstanding at once.
pub const QUEUE_DEPTH: usize = 32;

const SECTOR_BYTES: u64 = 512;

/// How long nothing may happen, unless the VM is stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing is completed once everything waits.
const QUIET: Duration = Duration::from_millis(200);

/// How long one wait for a completion is.
const TICK: Duration = Duration::from_millis(10);

/// The VM with its disk.
#[derive(Debug)]
pub struct Guest {
    disk: Disk,
    seed: u64,
    requests: u64,
    next: u64,
    outstanding: HashMap<Token, u64>,
    /// Writes that were completed with success.
    pub written: u64,
    /// Requests that were completed with an error.
    pub errors: u64,
    buffer: Vec<u8>,
}

/// What was found on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Blocks that are, byte for byte, what was written.
    pub blocks_verified: u64,
    /// Bytes in blocks that are not.
    pub bytes_lost: u64,
}

impl Guest {
    /// Connects to an export of `disk_bytes`, as a VMM does.
    ///
    /// # Errors
    /// If the connection fails, or the disk has another size.
    pub fn connect(socket: &Path, disk_bytes: u64, seed: u64) -> Result<Self> {
        let disk = Disk::connect(socket, Options::default())
            .context("the VM cannot connect to its disk")?;
        let size = disk.config().capacity * SECTOR_BYTES;
        ensure!(
            size == disk_bytes,
            "the disk has {size} bytes instead of {disk_bytes}"
        );
        Ok(Self {
            disk,
            seed,
            requests: disk_bytes / REQUEST_BYTES as u64,
            next: 0,
            outstanding: HashMap::new(),
            written: 0,
            errors: 0,
            buffer: vec![0; REQUEST_BYTES],
        })
    }

    /// Requests that cover the disk.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Requests that are neither completed nor failed.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Writes on, as far as the disk lets it. `pause` is asked between completions; true: return,
    /// with requests outstanding. Returns whether all is written.
    ///
    /// # Errors
    /// If the connection fails, or nothing happens any more.
    pub fn write(&mut self, mut pause: impl FnMut(&Self) -> Result<bool>) -> Result<bool> {
        let mut progress = Instant::now();
        loop {
            self.submit_writes()?;
            if self.outstanding.is_empty() {
                return Ok(true);
            }
            if self.complete(TICK)? {
                progress = Instant::now();
            }
            if pause(self)? {
                return Ok(false);
            }
            check_patience(progress, "written")?;
        }
    }

    /// Goes on until nothing is completed any more for [`QUIET`]: what was in flight when the VM was
    /// stopped has ended, and the queue is full.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn settle(&mut self) -> Result<()> {
        loop {
            check_interrupt()?;
            self.submit_writes()?;
            if !self.complete(QUIET)? {
                return Ok(());
            }
        }
    }

    /// Goes on for `span`, as far as the queue has room, and counts what is completed meanwhile.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn wait(&mut self, span: Duration) -> Result<u64> {
        let end = Instant::now() + span;
        let mut completed = 0;
        while Instant::now() < end {
            check_interrupt()?;
            self.submit_writes()?;
            completed += u64::from(self.complete(TICK)?);
        }
        Ok(completed)
    }

    fn submit_writes(&mut self) -> Result<()> {
        let mut submitted = false;
        while self.next < self.requests && self.outstanding.len() < QUEUE_DEPTH {
            let first = self.next * (REQUEST_BYTES / BLOCK_BYTES) as u64;
            for (number, block) in (first..).zip(self.buffer.chunks_mut(BLOCK_BYTES)) {
                pattern::fill(block, number, self.seed);
            }
            let request = Request::Write {
                sector: self.next * (REQUEST_BYTES as u64 / SECTOR_BYTES),
                data: &self.buffer,
            };
            match self.disk.submit(0, request) {
                Ok(token) => self.outstanding.insert(token, self.next),
                Err(SubmitError::QueueFull | SubmitError::MemoryFull) => break,
                Err(error) => return Err(error.into()),
            };
            self.next += 1;
            submitted = true;
        }
        if submitted {
            self.disk.kick(0)?;
        }
        Ok(())
    }

    /// Takes one completion of a write; false: none came in time.
    fn complete(&mut self, timeout: Duration) -> Result<bool> {
        let completion = self.disk.wait(0, timeout);
        let Some(completion) = completion.context("the VM lost its disk")? else {
            return Ok(false);
        };
        ensure!(
            self.outstanding.remove(&completion.token).is_some(),
            "a request was completed twice"
        );
        if completion.is_ok() {
            self.written += 1;
        } else {
            self.errors += 1;
        }
        Ok(true)
    }

    /// Flushes the disk's cache. True: the disk says it did.
    ///
    /// # Errors
    /// If the connection fails, or nothing happens any more.
    pub fn flush(&mut self) -> Result<bool> {
        let done = self.disk.execute(0, Request::Flush, PATIENCE);
        Ok(done.context("the VM's flush was not completed")?.is_ok())
    }

    /// Reads the whole disk and compares it, byte for byte, with what was written.
    ///
    /// # Errors
    /// If the connection fails, nothing happens any more, or a read fails.
    pub fn verify(&mut self, mut seen: impl FnMut(u64)) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let (mut next, mut done) = (0, 0);
        let mut reads = HashMap::new();
        let mut progress = Instant::now();
        while done < self.requests {
            while next < self.requests && reads.len() < QUEUE_DEPTH {
                let request = Request::Read {
                    sector: next * (REQUEST_BYTES as u64 / SECTOR_BYTES),
                    len: u32::try_from(REQUEST_BYTES)?,
                };
                reads.insert(self.disk.submit(0, request)?, next);
                next += 1;
            }
            self.disk.kick(0)?;
            if let Some(completion) = self.disk.wait(0, TICK).context("the VM lost its disk")? {
                let number = reads.remove(&completion.token);
                let number = number.context("a request was completed twice")?;
                ensure!(completion.is_ok(), "a read of the finished disk failed");
                self.judge(number, &completion.data, &mut verdict);
                done += 1;
                seen(done * REQUEST_BYTES as u64);
                progress = Instant::now();
            }
            check_patience(progress, "read")?;
        }
        let violations = self.disk.violations();
        ensure!(
            violations.is_empty(),
            "the disk broke the protocol: {violations:?}"
        );
        Ok(verdict)
    }

    fn judge(&self, request: u64, data: &[u8], verdict: &mut Verdict) {
        let first = request * (REQUEST_BYTES / BLOCK_BYTES) as u64;
        for (number, block) in (first..).zip(data.chunks(BLOCK_BYTES)) {
            if pattern::verify(block, number, self.seed) {
                verdict.blocks_verified += 1;
            } else {
                verdict.bytes_lost += block.len() as u64;
            }
        }
    }
}

fn check_patience(progress: Instant, what: &str) -> Result<()> {
    check_interrupt()?;
    let waited = progress.elapsed();
    if waited > PATIENCE {
        bail!("nothing was {what} for {} s", waited.as_secs());
    }
    Ok(())
}

/// Ends the demo early if somebody asks for it.
///
/// # Errors
/// If somebody did.
pub fn check_interrupt() -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    Ok(())
}
