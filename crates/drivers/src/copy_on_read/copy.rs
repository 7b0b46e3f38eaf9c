//! Reading with copying.

use std::ops::Range;

use block::range_lock::Mode;
use block::{BlockError, Io, Node, Origin, OwnedBuffer, Result};

use super::CopyOnRead;

/// Bytes that are copied at a time.
const PIECE_MAX: u64 = 1 << 20;
/// How often a read is to bring tables into memory before it is left alone.
const LOOKS_MAX: u32 = 3;
const SECTOR: u64 = 512;
/// The subclusters of a cluster that has some.
const SUBCLUSTERS: u64 = 32;

/// What became of a part.
enum Part {
    /// It is left alone: it is not from behind, or nobody knows.
    Left,
    /// It was read into the request, as far as that wants it; and could be written, or not.
    Read(Result<()>),
}

impl CopyOnRead {
    /// Reads, and copies what comes from behind: the data of the request are read once, unless what it is made of was not
    /// known.
    pub(super) async fn read(&self, io: Io<'_>) -> Result<()> {
        let range = io.offset..io.offset.saturating_add(io.bytes);
        let is_known = self.is_own(range.clone()).is_some();
        if !is_known {
            self.file.submit(io).await?;
            if self.is_own(range.clone()) != Some(false) {
                return Ok(());
            }
        }
        let whole = self.whole_clusters(&range);
        let _alone = self.order.lock(whole.clone(), Mode::Exclusive).await;
        let mut at = whole.start;
        while at < whole.end {
            let Some(origin) = self.known(at..whole.end).await else {
                break;
            };
            let bytes = origin.bytes.clamp(1, whole.end - at);
            let bytes = if origin.own {
                bytes
            } else {
                bytes.min(PIECE_MAX)
            };
            let wanted = if is_known {
                part_of(io, at..at + bytes)
            } else {
                None
            };
            let part = match origin.own {
                true => Part::Left,
                false => self.copy(at..at + bytes, wanted).await?,
            };
            match part {
                Part::Left => {
                    if let Some(wanted) = wanted {
                        self.file.submit(wanted).await?;
                    }
                }
                Part::Read(Ok(())) => self.pause.succeeded(),
                Part::Read(Err(error)) => {
                    self.pause.failed(&self.name, &error);
                    at += bytes;
                    break;
                }
            }
            at += bytes;
        }
        let left = is_known.then(|| part_of(io, at..u64::MAX)).flatten();
        match left {
            Some(left) => self.file.submit(left).await,
            None => Ok(()),
        }
    }

    /// Copies bytes that come from behind, and reads what of them is `wanted`.
    ///
    /// # Errors
    /// What is wanted cannot be read.
    async fn copy(&self, range: Range<u64>, wanted: Option<Io<'_>>) -> Result<Part> {
        let bytes = range.end - range.start;
        let buffer = OwnedBuffer::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        let Ok(mut buffer) = buffer else {
            return Ok(Part::Left);
        };
        let read = Io::read(range.start, buffer.lend());
        let read = self.file.submit(read).await;
        if let Err(error) = read {
            // What nobody has asked for is nobody's error.
            let all = wanted.is_some_and(|wanted| wanted.bytes == bytes);
            return match wanted {
                Some(_) if all => Err(error),
                _ => Ok(Part::Left),
            };
        }
        if let Some(wanted) = wanted {
            let from = usize::try_from(wanted.offset - range.start).unwrap_or(usize::MAX);
            wanted
                .buffers
                .copy_from(buffer.get(from..).unwrap_or_default());
        }
        let is_zero = buffer.iter().all(|byte| *byte == 0);
        let copied = match is_zero {
            // What cannot say so stays as it is, and shows the same.
            true if !self.says_zeroes() => Ok(()),
            true => {
                let zeroes = Io::write_zeroes(range.start, bytes, true);
                self.file.submit(zeroes).await
            }
            false => {
                let data = Io::write(range.start, buffer.lend());
                self.file.submit(data).await
            }
        };
        Ok(Part::Read(copied))
    }

    /// Where the first bytes of `range` come from, if a read or two bring what it takes to know it.
    async fn known(&self, range: Range<u64>) -> Option<Origin> {
        for _ in 0..LOOKS_MAX {
            if let Some(origin) = self.shown(range.clone()) {
                return Some(origin);
            }
            let bytes = SECTOR.min(range.end - range.start);
            let mut buffer = OwnedBuffer::new(usize::try_from(bytes).unwrap_or(0)).ok()?;
            let look = Io::read(range.start, buffer.lend());
            let looked: std::result::Result<(), BlockError> = self.file.submit(look).await;
            looked.ok()?;
        }
        None
    }

    /// The clusters of the child's image that `range` touches, up to the end of the disk.
    fn whole_clusters(&self, range: &Range<u64>) -> Range<u64> {
        let unit = of_image(&self.file.node(), |image| {
            let format = image.driver().info().format?;
            Some(match format.qcow2.extended_l2 {
                Some(true) => format.cluster_size / SUBCLUSTERS,
                _ => format.cluster_size,
            })
        });
        let unit = unit.unwrap_or(SECTOR).max(1);
        let end = range.end.checked_next_multiple_of(unit);
        let end = end.unwrap_or(range.end).min(self.file.length());
        range.start / unit * unit..end.max(range.end)
    }

    /// Whether the child's image can say of a cluster that it is zeroes.
    fn says_zeroes(&self) -> bool {
        let old = of_image(&self.file.node(), |image| {
            let format = image.driver().info().format?;
            Some(format.qcow2.compat == "0.10")
        });
        old != Some(true)
    }
}

/// Asks the image that `file` shows, below its filters.
fn of_image<R>(file: &std::sync::Arc<Node>, ask: impl FnOnce(&Node) -> Option<R>) -> Option<R> {
    let image = file.chain().find(|node| !node.driver().info().filter)?;
    ask(&image)
}

/// What of `io` lies in `range`.
fn part_of<'a>(io: Io<'a>, range: Range<u64>) -> Option<Io<'a>> {
    let start = range.start.max(io.offset);
    let end = range.end.min(io.offset.saturating_add(io.bytes));
    (start < end).then(|| io.slice(start - io.offset..end - io.offset))
}
