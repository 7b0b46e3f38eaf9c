//! Requests by the range they cover: which of those that overlap a range came last before a turn.
//! Pure.
//!
//! A treap: a search tree in the order of (first byte, turn), balanced by random priorities. Each
//! node knows of its subtree where the last range ends and between which turns all of them lie, so
//! that a search leaves out what ends too early or came too late. Insertion and removal take
//! O(log n) steps; so does a search among ranges that are disjoint or equal, which is what disks
//! see.

/// No node.
const NONE: u32 = u32::MAX;

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
}

impl<V> Default for RangeIndex<V> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NONE,
            seed: 0x9e37_79b9_7f4a_7c15,
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
        }
        found != NONE
    }

    /// Of those that share a byte with `start..end` and came before the turn `before`, the one that
    /// came last: its turn and its value.
    pub fn last_before(&self, start: u64, end: u64, before: u64) -> Option<(u64, V)> {
        let mut best = None;
        if start < end {
            self.search(self.root, (start, end), before, &mut best);
        }
        best
    }

    fn search(&self, id: u32, range: (u64, u64), before: u64, best: &mut Option<(u64, V)>) {
        if id == NONE {
            return;
        }
        let (start, end) = range;
        let node = &self.nodes[id as usize];
        let known = |turn| best.as_ref().is_some_and(|&(known, _)| known >= turn);
        if node.end_max <= start || node.turn_min >= before || known(node.turn_max) {
            return;
        }
        if node.start < end {
            // Of equal ranges the later ones are on this side.
            self.search(node.right, range, before, best);
            let later = best.as_ref().is_none_or(|&(known, _)| known < node.turn);
            if node.end > start && node.turn < before && later {
                *best = Some((node.turn, node.value));
            }
        }
        self.search(node.left, range, before, best);
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
}
