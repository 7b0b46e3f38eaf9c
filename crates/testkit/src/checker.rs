//! The request checker: no request lost, none completed twice, every byte what it must be.
//!
//! Requests are numbered. A request is *planned* (which decides its content), submitted by the
//! caller, and reported back as *completed* or *dropped*. Ranges of unfinished requests are locked
//! against conflicting ones, so that what a read must return is always known.

use std::collections::HashMap;

use crate::model::Model;
use crate::pattern::{Content, Pattern, PatternFault};

/// What a request does to a range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
    /// Zeroes it.
    WriteZeroes,
    /// Declares it unused: afterwards it is as before or zero.
    Discard,
    /// Flushes the whole disk; has no range.
    Flush,
}

impl Operation {
    /// Whether the disk's content may change.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard)
    }
}

/// A planned request.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its number.
    pub number: u64,
    /// What it does.
    pub operation: Operation,
    /// First block.
    pub first: usize,
    /// Number of blocks.
    pub count: usize,
    stamps: Vec<Content>,
    began: u64,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckerFault {
    /// A completion for a request that had been completed or dropped before.
    #[error("request {0} was completed a second time")]
    CompletedTwice(u64),
    /// A completion for a number that was never planned.
    #[error("request {0} was completed but never submitted")]
    NeverSubmitted(u64),
    /// A completion with a status that is not expected.
    #[error("request {number} ({operation:?} of {count} blocks at block {first}): status {status}")]
    Status {
        /// Which request.
        number: u64,
        /// What it was.
        operation: Operation,
        /// First block.
        first: usize,
        /// Number of blocks.
        count: usize,
        /// The status byte.
        status: u8,
    },
    /// A read returned another amount than asked for.
    #[error("request {number}: read {found} bytes instead of {expected}")]
    Length {
        /// Which request.
        number: u64,
        /// Bytes asked for.
        expected: usize,
        /// Bytes returned.
        found: usize,
    },
    /// A read returned wrong content.
    #[error("request {number}")]
    Content {
        /// Which request; 0 for the check of a whole image.
        number: u64,
        /// What is wrong.
        source: PatternFault,
    },
    /// Requests were never completed.
    #[error("requests {0:?} were never completed")]
    Lost(Vec<u64>),
}

/// What has been checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests planned.
    pub planned: u64,
    /// Completed with success.
    pub succeeded: u64,
    /// Completed with an error that was allowed.
    pub failed: u64,
    /// Dropped by a reset.
    pub dropped: u64,
    /// Blocks compared with what they must contain.
    pub blocks_verified: u64,
}

/// Keeps account of requests and of what the disk must contain.
#[derive(Debug, Clone)]
pub struct Checker {
    model: Model,
    /// Per block: number of unfinished reads, or -1 under an unfinished change.
    locks: Vec<i32>,
    unfinished: HashMap<u64, Planned>,
    errors_allowed: bool,
    summary: Summary,
}

impl Checker {
    /// A checker for the first `blocks` blocks of a disk that reads as zeroes.
    #[must_use]
    pub fn new(pattern: Pattern, blocks: usize) -> Self {
        Self {
            model: Model::new(pattern, blocks),
            locks: vec![0; blocks],
            unfinished: HashMap::new(),
            errors_allowed: false,
            summary: Summary::default(),
        }
    }

    /// The disk is longer from now on: `blocks` blocks are used, of which those that are new read as zeroes.
    pub fn extend_to(&mut self, blocks: usize) {
        self.model.extend_to(blocks);
        self.locks.resize(self.model.len(), 0);
    }

    /// Whether requests may fail from now on. A failed write leaves the old or the new content.
    pub fn allow_errors(&mut self, allowed: bool) {
        self.errors_allowed = allowed;
    }

    /// What has not been flushed may be lost: whoever has the disk keeps it in its memory.
    pub fn may_lose(&mut self) {
        self.model.may_lose();
    }

    /// Whoever had the disk has died: what was acknowledged but not flushed is there or not. What is unfinished stays so.
    pub fn lost(&mut self) {
        self.model.lost();
    }

    /// The pattern of the blocks.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.model.pattern()
    }

    /// Number of blocks that are watched.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.model.len()
    }

    /// Number of requests planned and not finished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// What has been checked so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Plans a request, unless its range is outside the disk or locked by an unfinished one.
    pub fn plan(&mut self, operation: Operation, first: usize, count: usize) -> Option<Planned> {
        let range = first..first.checked_add(count)?;
        let locks = self.locks.get_mut(range.clone())?;
        if operation.changes() {
            if locks.iter().any(|&lock| lock != 0) {
                return None;
            }
            locks.fill(-1);
        } else {
            if locks.iter().any(|&lock| lock < 0) {
                return None;
            }
            locks.iter_mut().for_each(|lock| *lock += 1);
        }
        self.summary.planned += 1;
        let number = self.summary.planned;
        let stamps = match operation {
            Operation::Write => range
                .map(|block| Content::Stamped(self.model.stamp(block, number)))
                .collect(),
            Operation::WriteZeroes | Operation::Discard => vec![Content::Zeroes; count],
            Operation::Read | Operation::Flush => Vec::new(),
        };
        let planned = Planned {
            number,
            operation,
            first,
            count,
            stamps,
            began: self.model.moment(),
        };
        self.unfinished.insert(number, planned.clone());
        Some(planned)
    }

    /// The bytes of a planned write; empty for anything else.
    #[must_use]
    pub fn data(&self, planned: &Planned) -> Vec<u8> {
        let mut data = Vec::new();
        if planned.operation == Operation::Write {
            for &stamp in &planned.stamps {
                data.extend_from_slice(&self.pattern().block(stamp));
            }
        }
        data
    }

    /// Checks the completion of a request.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn complete(&mut self, number: u64, status: u8, data: &[u8]) -> Result<(), CheckerFault> {
        let planned = self.take(number)?;
        let Planned {
            operation,
            first,
            count,
            began,
            ..
        } = planned;
        if status != frontend::protocol::STATUS_OK {
            if !self.errors_allowed {
                return Err(CheckerFault::Status {
                    number,
                    operation,
                    first,
                    count,
                    status,
                });
            }
            self.summary.failed += 1;
            self.uncertain(&planned);
            return Ok(());
        }
        self.summary.succeeded += 1;
        match operation {
            Operation::Read => self.verify_read(&planned, data)?,
            Operation::Discard => self.uncertain(&planned),
            Operation::Write | Operation::WriteZeroes => {
                for (block, &content) in (first..).zip(&planned.stamps) {
                    self.model.set(block, content);
                }
            }
            Operation::Flush => self.model.flushed(began),
        }
        Ok(())
    }

    /// A request was dropped by a reset of the device: it must not be completed any more, and may
    /// have been executed or not.
    ///
    /// # Errors
    /// If it is not unfinished.
    pub fn dropped(&mut self, number: u64) -> Result<(), CheckerFault> {
        let planned = self.take(number)?;
        self.summary.dropped += 1;
        self.uncertain(&planned);
        Ok(())
    }

    /// Checks a whole image: `read` fills a buffer from a byte offset.
    ///
    /// # Errors
    /// The first wrong block; errors of `read`.
    pub fn verify_all<E: From<CheckerFault>>(
        &mut self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = vec![0; self.pattern().block_bytes()];
        for block in 0..self.model.len() {
            read(self.model.offset(block), &mut data)?;
            self.verify_block(0, block, &data)?;
        }
        Ok(())
    }

    /// Checks that nothing is unfinished.
    ///
    /// # Errors
    /// [`CheckerFault::Lost`] with the numbers of what is.
    pub fn finish(&self) -> Result<Summary, CheckerFault> {
        if self.unfinished.is_empty() {
            return Ok(self.summary);
        }
        let mut lost: Vec<_> = self.unfinished.keys().copied().collect();
        lost.sort_unstable();
        Err(CheckerFault::Lost(lost))
    }

    fn take(&mut self, number: u64) -> Result<Planned, CheckerFault> {
        let planned = self.unfinished.remove(&number).ok_or_else(|| {
            if (1..=self.summary.planned).contains(&number) {
                CheckerFault::CompletedTwice(number)
            } else {
                CheckerFault::NeverSubmitted(number)
            }
        })?;
        for lock in &mut self.locks[planned.first..planned.first + planned.count] {
            *lock = if planned.operation.changes() {
                0
            } else {
                *lock - 1
            };
        }
        Ok(planned)
    }

    fn uncertain(&mut self, planned: &Planned) {
        for (block, &content) in (planned.first..).zip(&planned.stamps) {
            self.model.either(block, content);
        }
    }

    fn verify_read(&mut self, planned: &Planned, data: &[u8]) -> Result<(), CheckerFault> {
        let block_bytes = self.pattern().block_bytes();
        let (number, expected) = (planned.number, planned.count * block_bytes);
        if data.len() != expected {
            return Err(CheckerFault::Length {
                number,
                expected,
                found: data.len(),
            });
        }
        (planned.first..)
            .zip(data.chunks(block_bytes))
            .try_for_each(|(block, data)| self.verify_block(number, block, data))
    }

    fn verify_block(&mut self, number: u64, block: usize, data: &[u8]) -> Result<(), CheckerFault> {
        self.summary.blocks_verified += 1;
        self.model
            .verify(block, data)
            .map_err(|source| CheckerFault::Content { number, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 16 pages that does what it is told, except for the planted fault.
    struct Rig {
        checker: Checker,
        disk: Vec<u8>,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                checker: Checker::new(Pattern::PAGE, 16),
                disk: vec![0; 16 * 4096],
            }
        }

        fn plan(&mut self, operation: Operation, first: usize, count: usize) -> Planned {
            self.checker.plan(operation, first, count).unwrap()
        }

        fn store(&mut self, planned: &Planned) {
            let data = self.checker.data(planned);
            self.disk[planned.first * 4096..][..data.len()].copy_from_slice(&data);
        }

        fn write(&mut self, first: usize, count: usize) -> Planned {
            let planned = self.plan(Operation::Write, first, count);
            self.store(&planned);
            self.checker.complete(planned.number, 0, &[]).unwrap();
            planned
        }

        fn read(&mut self, first: usize, count: usize) -> Result<(), CheckerFault> {
            let planned = self.plan(Operation::Read, first, count);
            let data = self.disk[first * 4096..][..count * 4096].to_vec();
            self.checker.complete(planned.number, 0, &data)
        }

        fn content(&mut self, first: usize, count: usize) -> PatternFault {
            match self.read(first, count) {
                Err(CheckerFault::Content { source, .. }) => source,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_correct_disk_passes() {
        let mut rig = Rig::new();
        rig.write(2, 3);
        rig.write(3, 1);
        rig.read(0, 16).unwrap();
        let zero = rig.plan(Operation::WriteZeroes, 4, 2);
        rig.disk[4 * 4096..6 * 4096].fill(0);
        rig.checker.complete(zero.number, 0, &[]).unwrap();
        rig.read(0, 16).unwrap();
        let summary = rig.checker.finish().unwrap();
        assert_eq!(
            (summary.planned, summary.succeeded, summary.blocks_verified),
            (5, 5, 32)
        );
        let disk = rig.disk.clone();
        rig.checker
            .verify_all(|offset, data| {
                let start = usize::try_from(offset).unwrap();
                data.copy_from_slice(&disk[start..start + data.len()]);
                Ok::<_, CheckerFault>(())
            })
            .unwrap();
    }

    #[test]
    fn planted_faults_of_content_are_found() {
        let mut rig = Rig::new();
        rig.write(2, 2);
        let before = rig.disk.clone();
        rig.write(2, 2);
        let after = rig.disk.clone();
        rig.disk = before.clone();
        assert!(matches!(rig.content(2, 1), PatternFault::Stale { .. }));
        rig.disk[2 * 4096..3 * 4096].fill(0);
        assert!(matches!(rig.content(2, 1), PatternFault::Lost { .. }));
        rig.disk = after.clone();
        rig.disk.copy_within(2 * 4096..3 * 4096, 9 * 4096);
        assert!(matches!(rig.content(9, 1), PatternFault::Misplaced { .. }));
        rig.disk = after;
        rig.disk[3 * 4096 + 512..4 * 4096].copy_from_slice(&before[3 * 4096 + 512..4 * 4096]);
        assert!(matches!(
            rig.content(2, 2),
            PatternFault::Torn { offset: 0x3000, .. }
        ));
    }

    #[test]
    fn planted_faults_of_completion_are_found() {
        let mut rig = Rig::new();
        let done = rig.write(0, 1);
        let twice = rig.checker.complete(done.number, 0, &[]);
        assert_eq!(twice, Err(CheckerFault::CompletedTwice(done.number)));
        assert_eq!(
            rig.checker.complete(77, 0, &[]),
            Err(CheckerFault::NeverSubmitted(77))
        );
        let read = rig.plan(Operation::Read, 0, 2);
        let short = rig.checker.complete(read.number, 0, &[0; 4096]);
        assert!(matches!(
            short,
            Err(CheckerFault::Length { found: 4096, .. })
        ));
        let lost = rig.plan(Operation::Flush, 0, 0);
        assert_eq!(
            rig.checker.finish(),
            Err(CheckerFault::Lost(vec![lost.number]))
        );
        let failed = rig.checker.complete(lost.number, 1, &[]);
        assert!(matches!(
            failed,
            Err(CheckerFault::Status { status: 1, .. })
        ));
    }

    #[test]
    fn conflicting_ranges_are_not_planned() {
        let mut rig = Rig::new();
        let read = rig.plan(Operation::Read, 2, 2);
        rig.plan(Operation::Read, 3, 2);
        assert!(rig.checker.plan(Operation::Write, 3, 1).is_none());
        let write = rig.plan(Operation::Write, 5, 3);
        assert!(rig.checker.plan(Operation::Read, 7, 1).is_none());
        assert!(rig.checker.plan(Operation::Discard, 4, 2).is_none());
        assert!(rig.checker.plan(Operation::Read, 15, 2).is_none());
        rig.checker.complete(read.number, 0, &[0; 8192]).unwrap();
        rig.checker.complete(write.number, 0, &[]).unwrap();
        assert!(rig.checker.plan(Operation::Write, 2, 1).is_some());
        assert!(rig.checker.plan(Operation::Write, 5, 3).is_some());
    }

    #[test]
    fn what_is_not_flushed_may_be_lost() {
        for flushes in [false, true] {
            let mut rig = Rig::new();
            rig.checker.may_lose();
            let before = rig.disk.clone();
            rig.write(3, 1);
            let early = rig.plan(Operation::Flush, 0, 0);
            rig.write(2, 1);
            rig.read(0, 16).unwrap();
            rig.checker.complete(early.number, 0, &[]).unwrap();
            if flushes {
                let flush = rig.plan(Operation::Flush, 0, 0);
                rig.checker.complete(flush.number, 0, &[]).unwrap();
            }
            rig.checker.lost();
            rig.disk[2 * 4096..3 * 4096].copy_from_slice(&before[2 * 4096..3 * 4096]);
            assert_eq!(rig.read(2, 1).is_err(), flushes);
            // That one was over when the first flush began.
            rig.read(3, 1).unwrap();
            rig.disk[3 * 4096..4 * 4096].fill(0);
            assert!(rig.read(3, 1).is_err());
        }
    }

    #[test]
    fn a_failed_or_dropped_write_may_be_there_or_not() {
        for executed in [false, true] {
            let mut rig = Rig::new();
            rig.checker.allow_errors(true);
            rig.write(1, 1);
            let failed = rig.plan(Operation::Write, 1, 1);
            if executed {
                rig.store(&failed);
            }
            rig.checker.complete(failed.number, 1, &[]).unwrap();
            rig.read(1, 1).unwrap();
            let dropped = rig.plan(Operation::Write, 1, 1);
            rig.checker.dropped(dropped.number).unwrap();
            let late = rig.checker.complete(dropped.number, 0, &[]);
            assert_eq!(late, Err(CheckerFault::CompletedTwice(dropped.number)));
            rig.read(1, 1).unwrap();
            rig.write(1, 1);
            rig.disk[4096..8192].fill(0);
            assert!(rig.read(1, 1).is_err());
        }
    }
}
