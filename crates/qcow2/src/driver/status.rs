//! Block status: what an image says of its bytes.

use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use block::{BlockError, EXTENTS_MAX, Extent, OneBeside, Origin, Result, Stored};

use super::base::Base;
use super::errand;
use super::map::{Kind, Mapped};
use super::slices;
use super::state::{Lookup, State};
use crate::format::GuestOffset;

/// Most slices that are read for one answer.
const SLICES_MAX: usize = 64;

/// What the bytes of `range` are, or of a beginning of it. If something has to be read for that, it is on a thread
/// beside.
pub async fn of(
    base: &Arc<Base>,
    state: Arc<State>,
    questions: &OneBeside,
    range: Range<u64>,
) -> Result<Vec<Extent>> {
    let extents = of_image(base, state, questions, range.clone()).await?;
    match base.backing {
        Some(_) => through(base, range.start, extents).await,
        None => Ok(extents),
    }
}

/// Whether the first bytes of `range` show what is behind the image, as far as that is known.
pub fn origin(base: &Base, state: &ArcSwap<State>, range: Range<u64>) -> Option<Origin> {
    let all = Origin {
        own: true,
        bytes: range.end - range.start,
    };
    if base.backing.is_none() {
        return Some(all);
    }
    let found = state
        .load()
        .lookup(base, GuestOffset(range.start), all.bytes);
    match found {
        Ok(Lookup::Known(Mapped { kind, bytes })) => Some(match kind {
            Kind::Unallocated => match base.behind(range.start, bytes) {
                Some((_, there)) => Origin {
                    own: false,
                    bytes: there,
                },
                None => Origin { own: true, bytes },
            },
            _ => Origin { own: true, bytes },
        }),
        Ok(Lookup::Unknown(_)) => None,
        // Whoever reads there is told.
        Err(_) => Some(all),
    }
}

/// The same, in which what is behind the image is asked for what the image has nothing of.
async fn through(base: &Base, start: u64, extents: Vec<Extent>) -> Result<Vec<Extent>> {
    let mut all: Vec<Extent> = Vec::with_capacity(extents.len());
    let mut at = start;
    for extent in extents {
        let end = at + extent.bytes;
        while !extent.allocated && at < end {
            let Some((backing, there)) = base.behind(at, end - at) else {
                break;
            };
            let below = backing.block_status(at..at + there).await;
            let below = match below {
                Ok(below) => below,
                // What is before it is known.
                Err(_) if !all.is_empty() => return Ok(all),
                Err(error) => return Err(error),
            };
            at += below.iter().map(|extent| extent.bytes).sum::<u64>();
            all.extend(below.into_iter().map(|extent| Extent {
                allocated: false,
                ..extent
            }));
            if all.len() >= EXTENTS_MAX {
                return Ok(all);
            }
        }
        if at < end {
            all.push(Extent {
                bytes: end - at,
                ..extent
            });
            at = end;
        }
    }
    Ok(all)
}

/// What the image says itself.
async fn of_image(
    base: &Arc<Base>,
    state: Arc<State>,
    questions: &OneBeside,
    range: Range<u64>,
) -> Result<Vec<Extent>> {
    let _token = state.writer.epochs.enter();
    let mut known = Runs::new(base);
    let mut at = range.start;
    while at < range.end && !known.is_full() {
        match state.lookup(base, GuestOffset(at), range.end - at)? {
            Lookup::Known(mapped) => at += known.add(mapped),
            Lookup::Unknown(_) => break,
        }
    }
    if at > range.start {
        return Ok(known.extents);
    }
    let (base, nodes) = (Arc::clone(base), base.nodes());
    let read = move || {
        let look = move || async move { by_reading(&base, &state, range).await };
        errand::wait(nodes, look)
    };
    let read = questions.run(read).await.and_then(|read| read);
    read.map_err(BlockError::from)?
}

async fn by_reading(base: &Arc<Base>, state: &State, range: Range<u64>) -> Result<Vec<Extent>> {
    let _token = state.writer.epochs.enter();
    let mut known = Runs::new(base);
    let mut at = range.start;
    let mut questions = 0;
    while at < range.end && !known.is_full() && questions < SLICES_MAX {
        let found = slices::map(base, state, GuestOffset(at), range.end - at).await;
        match found {
            Ok(mapped) => at += known.add(mapped),
            // What is before it is known.
            Err(_) if at > range.start => break,
            Err(error) => return Err(error),
        }
        questions += 1;
    }
    Ok(known.extents)
}

/// Extents, as they are found.
struct Runs {
    data: Arc<str>,
    last: Option<Mapped>,
    extents: Vec<Extent>,
}

impl Runs {
    fn new(base: &Base) -> Self {
        Self {
            data: base.data().name(),
            last: None,
            extents: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.extents.len() >= EXTENTS_MAX
    }

    /// Returns how many bytes it is.
    fn add(&mut self, next: Mapped) -> u64 {
        let bytes = next.bytes;
        if let (Some(last), Some(extent)) = (&mut self.last, self.extents.last_mut())
            && last.join(&next)
        {
            extent.bytes = last.bytes;
            return bytes;
        }
        let stored = |host: u64| Stored::In {
            node: Arc::clone(&self.data),
            offset: host,
        };
        self.extents.push(match next.kind {
            Kind::Unallocated => Extent {
                allocated: false,
                ..Extent::hole(bytes, Stored::Nowhere)
            },
            Kind::Zero(None) => Extent::hole(bytes, Stored::Nowhere),
            Kind::Zero(Some(host)) => Extent::hole(bytes, stored(host.0)),
            Kind::Data(host) => Extent::data(bytes, stored(host.0)),
            Kind::Compressed { .. } => Extent::data(bytes, Stored::Nowhere),
        });
        self.last = Some(next);
        bytes
    }
}
