//! Requests by the range they cover: which of those that overlap a range came last before a turn.
//! Pure.
//!
//! A treap: a search tree in the order of (first byte, turn), balanced by random priorities. Each
//! node knows of its subtree where the last range ends and between which turns all of them lie, so
//! that a search leaves out what ends too early or came too late. Insertion and removal take
//! O(log n) steps; so does a search among ranges that are disjoint or equal, which is what disks
//! see.
//!
//! Ranges and turns are a guest's choice, and it must not be able to make the tree deep, or a search
//! long. So the priorities are nothing that it could know, and a search that does not come to its end
//! says what is always safe: whoever came last before the turn, as if that one overlapped.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// No node.
const NONE: u32 = u32::MAX;

/// Nodes that a search looks at. Ranges that are nested in a way that no disk sees take more: long
/// ones that came late, and short ones that came early between them.
const LOOKS_MAX: u32 = 4096;

#[derive(Clone, Copy, Debug)]
struct Node<V> {
    start: u64,
    end: u64,
    turn: u64,
    value: V,
    priority: u64,
    left: u32,
    right: u32,
    /// Of the subtree.
    end_max: u64,
    turn_min: u64,
    turn_max: u64,
}

impl<V> Node<V> {
    fn key(&self) -> (u64, u64) {
        (self.start, self.turn)
    }
}

/// See the [module](self). A turn occurs at most once.
#[derive(Debug)]
pub struct RangeIndex<V> {
    nodes: Vec<Node<V>>,
    free: Vec<u32>,
    root: u32,
    seed: u64,
    /// All of them by their turns.
    turns: BTreeMap<u64, V>,
}

/// A search.
struct Search<V> {
    start: u64,
    end: u64,
    before: u64,
    best: Option<(u64, V)>,
    /// How many nodes may still be looked at.
    looks: u32,
}

impl<V> Default for RangeIndex<V> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NONE,
            // With priorities that are known it takes a guest a certain order of writes to make the
            // tree a list, in which recursion is as deep.
            seed: RandomState::new().hash_one(0),
            turns: BTreeMap::new(),
        }
    }
}

impl<V: Copy> RangeIndex<V> {
    /// Takes in what covers the bytes from `start` to before `end`, which come later.
    pub fn insert(&mut self, start: u64, end: u64, turn: u64, value: V) {
        debug_assert!(start < end);
        let node = Node {
            start,
            end,
            turn,
            value,
            priority: self.random(),
            left: NONE,
            right: NONE,
            end_max: end,
            turn_min: turn,
            turn_max: turn,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                // One for each request at most, and those are numbered by 32 bits.
                u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
            }
        };
        let (left, right) = self.split(self.root, (start, turn));
        let left = self.merge(left, id);
        self.root = self.merge(left, right);
        self.turns.insert(turn, value);
    }

    /// Takes out what came at `turn` and begins at `start`. False: it is not here.
    pub fn remove(&mut self, start: u64, turn: u64) -> bool {
        let Some(next) = turn.checked_add(1) else {
            return false;
        };
        let (left, rest) = self.split(self.root, (start, turn));
        let (found, right) = self.split(rest, (start, next));
        self.root = self.merge(left, right);
        if found != NONE {
            self.free.push(found);
            self.turns.remove(&turn);
        }
        found != NONE
    }

    /// Of those that share a byte with `start..end` and came before the turn `before`, the one that
    /// came last: its turn and its value. If that is too hard to find, the last one of all that came
    /// before.
    pub fn last_before(&self, start: u64, end: u64, before: u64) -> Option<(u64, V)> {
        if start >= end {
            return None;
        }
        let mut search = Search {
            start,
            end,
            before,
            best: None,
            looks: LOOKS_MAX,
        };
        if self.search(self.root, &mut search) {
            return search.best;
        }
        let last = self.turns.range(..before).next_back();
        last.map(|(&turn, &value)| (turn, value))
    }

    /// False: there is more to look at than there may be.
    fn search(&self, id: u32, search: &mut Search<V>) -> bool {
        if id == NONE {
            return true;
        }
        let Some(looks) = search.looks.checked_sub(1) else {
            return false;
        };
        search.looks = looks;
        let node = &self.nodes[id as usize];
        let known = |turn| (search.best.as_ref()).is_some_and(|&(known, _)| known >= turn);
        if node.end_max <= search.start || node.turn_min >= search.before || known(node.turn_max) {
            return true;
        }
        if node.start < search.end {
            // Of equal ranges the later ones are on this side.
            if !self.search(node.right, search) {
                return false;
            }
            let best = search.best.as_ref();
            let later = best.is_none_or(|&(known, _)| known < node.turn);
            if node.end > search.start && node.turn < search.before && later {
                search.best = Some((node.turn, node.value));
            }
        }
        self.search(node.left, search)
    }

    /// The tree of those before `key`, and of the others.
    fn split(&mut self, id: u32, key: (u64, u64)) -> (u32, u32) {
        if id == NONE {
            return (NONE, NONE);
        }
        let node = &self.nodes[id as usize];
        let (before, left, right) = (node.key() < key, node.left, node.right);
        if before {
            let (inner, rest) = self.split(right, key);
            self.nodes[id as usize].right = inner;
            self.update(id);
            (id, rest)
        } else {
            let (rest, inner) = self.split(left, key);
            self.nodes[id as usize].left = inner;
            self.update(id);
            (rest, id)
        }
    }

    /// One tree of two, of which all of the first come before all of the second.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        let (first, second) = (&self.nodes[left as usize], &self.nodes[right as usize]);
        if first.priority > second.priority {
            let below = self.merge(first.right, right);
            self.nodes[left as usize].right = below;
            self.update(left);
            left
        } else {
            let below = self.merge(left, second.left);
            self.nodes[right as usize].left = below;
            self.update(right);
            right
        }
    }

    fn update(&mut self, id: u32) {
        let node = self.nodes[id as usize];
        let mut sum = (node.end, node.turn, node.turn);
        for child in [node.left, node.right] {
            if child != NONE {
                let child = &self.nodes[child as usize];
                sum = (
                    sum.0.max(child.end_max),
                    sum.1.min(child.turn_min),
                    sum.2.max(child.turn_max),
                );
            }
        }
        let node = &mut self.nodes[id as usize];
        (node.end_max, node.turn_min, node.turn_max) = sum;
    }

    /// The next number of splitmix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert { start: u64, bytes: u64, turn: u64 },
        Remove(usize),
        Ask { start: u64, bytes: u64, before: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..40u64, 1..12u64, 0..400u64)
                .prop_map(|(start, bytes, turn)| Step::Insert { start, bytes, turn }),
            1 => any::<usize>().prop_map(Step::Remove),
            3 => (0..40u64, 0..12u64, prop_oneof![0..400u64, Just(u64::MAX)])
                .prop_map(|(start, bytes, before)| Step::Ask { start, bytes, before }),
        ]
    }

    proptest! {
        /// Against a plain list.
        #[test]
        fn finds_what_a_list_finds(steps in proptest::collection::vec(step(), 1..300)) {
            let mut index = RangeIndex::default();
            let mut list: Vec<(u64, u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert { start, bytes, turn } => {
                        if list.iter().all(|&(_, _, known)| known != turn) {
                            list.push((start, start + bytes, turn));
                            index.insert(start, start + bytes, turn, turn * 2);
                        }
                    }
                    Step::Remove(_) if list.is_empty() => {}
                    Step::Remove(nth) => {
                        let nth = nth % list.len();
                        let (start, _, turn) = list.swap_remove(nth);
                        prop_assert!(index.remove(start, turn));
                        prop_assert!(!index.remove(start, turn));
                    }
                    Step::Ask { start, bytes, before } => {
                        let expected = list
                            .iter()
                            .filter(|&&(from, to, turn)| {
                                turn < before && from < start + bytes && start < to && bytes > 0
                            })
                            .map(|&(_, _, turn)| (turn, turn * 2))
                            .max();
                        prop_assert_eq!(index.last_before(start, start + bytes, before), expected);
                    }
                }
            }
            prop_assert_eq!(index.nodes.len() - index.free.len(), list.len());
            prop_assert_eq!(index.turns.len(), list.len());
        }
    }

    /// How many nodes a search looks at: what a guest can make of the index.
    fn looked_at(index: &RangeIndex<()>, id: u32, range: (u64, u64), before: u64) -> u64 {
        if id == NONE {
            return 0;
        }
        let node = &index.nodes[id as usize];
        if node.end_max <= range.0 || node.turn_min >= before {
            return 1;
        }
        let mut sum = 1 + looked_at(index, node.left, range, before);
        if node.start < range.1 {
            sum += looked_at(index, node.right, range, before);
        }
        sum
    }

    #[test]
    fn a_search_is_short_whatever_the_order_of_arrival() {
        let n: u64 = 1 << 15;
        let mut index = RangeIndex::default();
        for turn in 0..n {
            // Each its own sector, in an order that is neither ascending nor descending.
            let sector = turn.wrapping_mul(0x9e37_79b9) % n;
            index.insert(sector * 8, sector * 8 + 8, turn, ());
        }
        for sector in (0..n).step_by(97) {
            let range = (sector * 8, sector * 8 + 8);
            let steps = looked_at(&index, index.root, range, u64::MAX);
            assert!(steps < 200, "{steps}");
            // Depth is what recursion costs in stack.
            assert!(index.last_before(range.0, range.1, u64::MAX).is_some());
        }
    }

    fn depth(index: &RangeIndex<()>, id: u32) -> u32 {
        // Without recursion: it may be deep.
        let (mut deepest, mut open) = (0, vec![(id, 1)]);
        while let Some((id, depth)) = open.pop() {
            if id != NONE {
                let node = &index.nodes[id as usize];
                deepest = deepest.max(depth);
                open.extend([(node.left, depth + 1), (node.right, depth + 1)]);
            }
        }
        deepest
    }

    /// The priorities were the same numbers in every daemon. A guest whose writes failed in the right
    /// order made a list of the tree: with ten thousand of them held, all disks of the iothread waited
    /// half a minute, and the recursion went as deep.
    #[test]
    fn nobody_knows_the_order_that_makes_it_deep() {
        const COUNT: u64 = 1000;
        const KNOWN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut twin = RangeIndex {
            seed: KNOWN,
            ..RangeIndex::default()
        };
        let mut turns: Vec<_> = (0..COUNT).map(|turn| (twin.random(), turn)).collect();
        turns.sort_unstable();
        let mut sectors: Vec<_> = turns.iter().map(|&(_, turn)| turn).zip(0..).collect();
        sectors.sort_unstable();
        twin.seed = KNOWN;
        let mut index = RangeIndex::default();
        for (turn, sector) in sectors {
            twin.insert(sector, sector + 1, turn, ());
            index.insert(sector, sector + 1, turn, ());
        }
        let deep = u64::from(depth(&twin, twin.root));
        assert_eq!(deep, COUNT, "it is the right order");
        assert!(depth(&index, index.root) < 100);
    }

    /// Short ranges that came early between long ones that came late: a search for what overlaps a
    /// short one behind them looked at all of them, and a guest that had 65,536 of them held stopped
    /// its iothread, and all other disks there, for minutes when they were released.
    #[test]
    fn a_search_ends_whatever_the_ranges_are() {
        const COUNT: u64 = 1 << 15;
        const END: u64 = 1 << 40;
        let mut index = RangeIndex::default();
        for pair in 0..COUNT {
            index.insert(2 * pair, END, COUNT + pair, ());
            index.insert(2 * pair + 1, 2 * pair + 2, pair, ());
        }
        let mut search = Search {
            start: END - 1,
            end: END,
            before: COUNT,
            best: None,
            looks: LOOKS_MAX,
        };
        assert!(!index.search(index.root, &mut search), "it is no such case");
        assert_eq!(search.looks, 0);
        // The one before it, which may be wrong, but is safe.
        for before in [COUNT / 2, COUNT, 2 * COUNT] {
            let found = index.last_before(END - 1, END, before);
            assert_eq!(found, Some((before - 1, ())));
        }
        assert_eq!(index.last_before(END - 1, END, 0), None);
    }
}
