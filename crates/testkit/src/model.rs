//! What every block of a disk may contain.
//!
//! Normally one thing: what was last acknowledged. After a failed or dropped write, or a discard, it
//! may be the old or the new, sector by sector.

use crate::pattern::{Content, Pattern, PatternFault, SECTOR_BYTES, Stamp};

/// One block.
#[derive(Debug, Clone)]
struct Block {
    /// Never empty; the newest is the last.
    candidates: Vec<Content>,
    /// What it had contained, and since when that has been over: it comes back when what was not flushed is lost.
    former: Vec<(Content, u64)>,
    generation: u64,
}

/// All blocks of a disk, or of its first part.
#[derive(Debug, Clone)]
pub struct Model {
    pattern: Pattern,
    blocks: Vec<Block>,
    /// Whether what is not flushed may be lost; else nothing is kept of what had been.
    loses: bool,
    /// Goes on with whatever happens.
    now: u64,
}

impl Model {
    /// `blocks` blocks of zeroes.
    #[must_use]
    pub fn new(pattern: Pattern, blocks: usize) -> Self {
        let zeroes = Block {
            candidates: vec![Content::Zeroes],
            former: Vec::new(),
            generation: 0,
        };
        Self {
            pattern,
            blocks: vec![zeroes; blocks],
            loses: false,
            now: 0,
        }
    }

    /// The disk has `blocks` blocks from now on; those that are new are zeroes.
    pub fn extend_to(&mut self, blocks: usize) {
        let more = Self::new(self.pattern, blocks.saturating_sub(self.blocks.len()));
        self.blocks.extend(more.blocks);
    }

    /// From now on what has not been flushed may be lost ([`Self::lost`]).
    pub fn may_lose(&mut self) {
        self.loses = true;
    }

    /// The moment in which something begins.
    pub fn moment(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A flush has ended well that began at this moment: what was over by then does not come back.
    pub fn flushed(&mut self, began: u64) {
        for block in &mut self.blocks {
            block.former.retain(|&(_, over)| over > began);
        }
    }

    /// What was not flushed is lost, or is not.
    pub fn lost(&mut self) {
        for block in &mut self.blocks {
            let mut all: Vec<_> = block.former.drain(..).map(|(content, _)| content).collect();
            all.retain(|content| !block.candidates.contains(content));
            all.append(&mut block.candidates);
            block.candidates = all;
        }
    }

    /// `block` has nothing but `content` now.
    fn settle(&mut self, block: usize, content: Content) {
        let now = self.moment();
        let Block {
            candidates, former, ..
        } = &mut self.blocks[block];
        if self.loses {
            let over = candidates.iter().filter(|one| **one != content);
            let over: Vec<_> = over.map(|&one| (one, now)).collect();
            former.retain(|(one, _)| !over.iter().any(|(other, _)| other == one));
            former.extend(over);
        }
        candidates.clear();
        candidates.push(content);
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The pattern of the blocks.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Byte offset of a block.
    #[must_use]
    pub fn offset(&self, block: usize) -> u64 {
        // usize has at most 64 bits on every supported target.
        (block * self.pattern.block_bytes()) as u64
    }

    /// The stamp of the next write to a block by `request`. Each call makes a new one.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn stamp(&mut self, block: usize, request: u64) -> Stamp {
        let offset = self.offset(block);
        let generation = &mut self.blocks[block].generation;
        *generation += 1;
        Stamp {
            request,
            offset,
            generation: *generation,
        }
    }

    /// The block contains this now and nothing else.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn set(&mut self, block: usize, content: Content) {
        self.settle(block, content);
    }

    /// The block contains this now, or what it contained, or sectors of both.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn either(&mut self, block: usize, content: Content) {
        let candidates = &mut self.blocks[block].candidates;
        candidates.retain(|candidate| *candidate != content);
        candidates.push(content);
    }

    /// Checks what was read from a block. What it turns out to contain is all it may contain from
    /// now on.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If there is no such block, or `data` is not one.
    pub fn verify(&mut self, block: usize, data: &[u8]) -> Result<(), PatternFault> {
        let (pattern, offset) = (self.pattern, self.offset(block));
        let candidates = &mut self.blocks[block].candidates;
        if let Ok(found) = pattern.identify(data, offset)
            && candidates.contains(&found)
        {
            self.settle(block, found);
            return Ok(());
        }
        let whole: Vec<_> = candidates
            .iter()
            .map(|&content| pattern.block(content))
            .collect();
        let explained = data.chunks(SECTOR_BYTES).enumerate().all(|(sector, data)| {
            let start = sector * SECTOR_BYTES;
            whole
                .iter()
                .any(|block| block[start..start + data.len()] == *data)
        });
        match candidates.last() {
            Some(&newest) if !explained => pattern.verify(data, offset, newest),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(model: &mut Model, request: u64) -> (Content, Vec<u8>) {
        let content = Content::Stamped(model.stamp(1, request));
        (content, model.pattern().block(content))
    }

    #[test]
    fn only_the_last_acknowledged_content_is_right() {
        let mut model = Model::new(Pattern::PAGE, 3);
        model.verify(1, &[0; 4096]).unwrap();
        let (first, first_data) = written(&mut model, 1);
        let (second, second_data) = written(&mut model, 2);
        model.set(1, first);
        model.verify(1, &first_data).unwrap();
        assert!(matches!(
            model.verify(1, &[0; 4096]),
            Err(PatternFault::Lost { .. })
        ));
        model.set(1, second);
        model.verify(1, &second_data).unwrap();
        assert!(matches!(
            model.verify(1, &first_data),
            Err(PatternFault::Stale { .. })
        ));
        assert!(matches!(
            model.verify(2, &second_data),
            Err(PatternFault::Misplaced { .. })
        ));
    }

    #[test]
    fn an_uncertain_block_is_old_or_new_or_both_but_nothing_else_and_stays_what_it_was_seen_to_be()
    {
        let mut model = Model::new(Pattern::PAGE, 3);
        let (old, old_data) = written(&mut model, 1);
        let (new, new_data) = written(&mut model, 2);
        let (_, other_data) = written(&mut model, 3);
        model.set(1, old);
        model.either(1, new);
        let torn = [&new_data[..1024], &old_data[1024..]].concat();
        model.verify(1, &torn).unwrap();
        assert!(model.verify(1, &other_data).is_err());
        let foreign = [&new_data[..1024], &other_data[1024..]].concat();
        assert!(matches!(
            model.verify(1, &foreign),
            Err(PatternFault::Torn { .. })
        ));
        model.verify(1, &old_data).unwrap();
        assert!(matches!(
            model.verify(1, &new_data),
            Err(PatternFault::Stale { .. })
        ));
    }
}
