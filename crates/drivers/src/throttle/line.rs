//! Who waits for a budget, and whose turn it is: the members of a group go in turn, the requests of one in
//! their order. Pure.

use std::collections::VecDeque;

/// One member of a group: a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member(pub u64);

/// A request that waits. Later ones have greater numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting(pub u64);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Line {
    /// Those of whom somebody waits, the next one first.
    members: VecDeque<(Member, VecDeque<Waiting>)>,
}

impl Line {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A request of `member` has come.
    pub fn push(&mut self, member: Member, waiting: Waiting) {
        let known = self.members.iter_mut().find(|(known, _)| *known == member);
        match known {
            Some((_, line)) => line.push_back(waiting),
            None => self.members.push_back((member, [waiting].into())),
        }
    }

    /// The first one goes; the others of its member have their turn after those of all others.
    pub fn pop(&mut self) -> Option<Waiting> {
        let (member, mut line) = self.members.pop_front()?;
        let first = line.pop_front();
        if !line.is_empty() {
            self.members.push_back((member, line));
        }
        first
    }

    /// One goes that does not wait any more.
    pub fn remove(&mut self, member: Member, waiting: Waiting) {
        let known = self.members.iter().position(|(known, _)| *known == member);
        let Some(at) = known else {
            return;
        };
        let line = &mut self.members[at].1;
        if let Ok(place) = line.binary_search(&waiting) {
            line.remove(place);
        }
        if line.is_empty() {
            self.members.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_go_in_turn_and_their_requests_in_order() {
        let mut line = Line::default();
        for (member, waiting) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)] {
            line.push(Member(member), Waiting(waiting));
        }
        let mut gone = Vec::new();
        while let Some(Waiting(first)) = line.pop() {
            gone.push(first);
        }
        assert_eq!(gone, [1, 4, 5, 2, 6, 3]);
        assert!(line.is_empty());
    }

    #[test]
    fn who_leaves_is_not_waited_for() {
        let mut line = Line::default();
        for (member, waiting) in [(1, 1), (1, 2), (2, 3), (1, 4)] {
            line.push(Member(member), Waiting(waiting));
        }
        line.remove(Member(1), Waiting(2));
        line.remove(Member(1), Waiting(1));
        line.remove(Member(2), Waiting(7));
        line.remove(Member(9), Waiting(1));
        assert_eq!(line.pop(), Some(Waiting(4)));
        line.push(Member(1), Waiting(5));
        line.remove(Member(1), Waiting(5));
        assert_eq!(line.pop(), Some(Waiting(3)));
        assert!(line.is_empty());
    }
}
