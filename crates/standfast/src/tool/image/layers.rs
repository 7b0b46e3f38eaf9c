//! What is where in a chain of images: of each piece the uppermost one that says something of it.

use std::io;

use qcow2::map::{Extent, MapError, Walk, next_run};
use qcow2::{Image, ReadAt};

/// Why it cannot be told, and of which image.
pub struct LayerError {
    /// How many images are above it.
    pub depth: usize,
    /// Why not.
    pub reason: String,
}

/// The pieces of one image, in their order.
enum Pieces<'a> {
    Raw { file: &'a dyn ReadAt, at: u64 },
    Qcow2(Walk<'a>),
}

/// One image of a chain.
pub struct Layer<'a> {
    pieces: Pieces<'a>,
    current: Option<Extent>,
    /// The bytes of its disk.
    size: u64,
}

impl<'a> Layer<'a> {
    /// Of a raw image.
    ///
    /// # Errors
    /// If the storage does not say how long it is.
    pub fn raw(file: &'a dyn ReadAt) -> io::Result<Self> {
        Ok(Self {
            size: file.length()?.next_multiple_of(512),
            pieces: Pieces::Raw { file, at: 0 },
            current: None,
        })
    }

    /// Of a qcow2 image.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn qcow2(image: &'a Image<'a>) -> Result<Self, MapError> {
        Ok(Self {
            size: image.header.size,
            pieces: Pieces::Qcow2(Walk::new(image)?),
            current: None,
        })
    }

    fn next(&mut self) -> Result<Option<Extent>, MapError> {
        match &mut self.pieces {
            Pieces::Qcow2(walk) => walk.next(),
            Pieces::Raw { at, .. } if *at >= self.size => Ok(None),
            Pieces::Raw { file, at } => {
                let start = *at;
                let (length, zero) = next_run(*file, start)?;
                let length = length.min(self.size - start);
                *at += length;
                Ok(Some(Extent {
                    start,
                    length,
                    present: true,
                    zero,
                    data: !zero,
                    offset: Some(start),
                }))
            }
        }
    }

    /// What is at `start`, which is never before what was asked for last, and how far it goes on.
    fn at(&mut self, start: u64) -> Result<Option<Extent>, MapError> {
        loop {
            if let Some(extent) = self.current {
                let skipped = start.saturating_sub(extent.start);
                if skipped < extent.length {
                    return Ok(Some(Extent {
                        start,
                        length: extent.length - skipped,
                        offset: extent.offset.map(|offset| offset + skipped),
                        ..extent
                    }));
                }
            }
            self.current = self.next()?;
            if self.current.is_none() {
                return Ok(None);
            }
        }
    }
}

/// Tells how deep what is where: 0 is the uppermost.
///
/// # Errors
/// If the storage fails, or a table is corrupt.
pub fn map(
    layers: &mut [Layer<'_>],
    tell: &mut dyn FnMut(usize, Extent),
) -> Result<(), LayerError> {
    let size = layers.first().map_or(0, |top| top.size);
    let mut last: Option<(usize, Extent)> = None;
    let mut start = 0;
    while start < size {
        let (depth, next) = one(layers, start, size - start)?;
        start += next.length.max(1);
        let alike = last
            .as_mut()
            .is_some_and(|(above, last)| *above == depth && last.append(&next));
        if !alike && let Some((depth, whole)) = last.replace((depth, next)) {
            tell(depth, whole);
        }
    }
    if let Some((depth, whole)) = last {
        tell(depth, whole);
    }
    Ok(())
}

/// What is at `start`, and how deep.
fn one(
    layers: &mut [Layer<'_>],
    start: u64,
    mut bytes: u64,
) -> Result<(usize, Extent), LayerError> {
    let sizes: Vec<u64> = layers.iter().map(|layer| layer.size).collect();
    let mut found = (0, zeroes(start, bytes));
    for (depth, layer) in layers.iter_mut().enumerate() {
        let there = layer.at(start).map_err(|error| LayerError {
            depth,
            reason: error.to_string(),
        })?;
        let there = there.unwrap_or_else(|| zeroes(start, bytes));
        bytes = bytes.min(there.length);
        let says = there.present || there.zero || there.data;
        let whole = Extent {
            length: bytes,
            ..there
        };
        match sizes.get(depth + 1) {
            _ if says => return Ok((depth, whole)),
            Some(below) if start < *below => bytes = bytes.min(below - start),
            // What is behind it ends before that.
            _ => {
                let zero = true;
                return Ok((depth, Extent { zero, ..whole }));
            }
        }
        found = (depth, whole);
    }
    Ok(found)
}

/// Nothing says anything of it.
const fn zeroes(start: u64, length: u64) -> Extent {
    Extent {
        start,
        length,
        present: false,
        zero: true,
        data: false,
        offset: None,
    }
}
