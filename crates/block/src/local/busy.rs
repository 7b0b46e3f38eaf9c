//! What is in flight, in the order in which it was started.
//!
//! A linked list of the places of busy workers, in a table: a request enters at its end and leaves from
//! wherever it is, without an allocation, and who asks for the oldest looks at no others. What a driver
//! answers at once never comes here. What the driver has parked is in a list of its own
//! ([`super::parking`]).

/// See the [module](self).
#[derive(Debug)]
pub struct Busy {
    /// By place. At the first one, which is nobody's, the list begins and ends.
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: usize,
    after: usize,
}

impl Default for Busy {
    fn default() -> Self {
        Self {
            links: vec![Link::default()],
        }
    }
}

impl Busy {
    /// A place for one more.
    pub fn add_place(&mut self) -> usize {
        self.links.push(Link::default());
        self.links.len() - 1
    }

    /// Whether nobody is in the list.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.links[0].after == 0
    }

    /// From now on `place`, which is in the list no more or not yet, is the last one there.
    #[inline]
    pub fn enter(&mut self, place: usize) {
        let last = self.links[0].before;
        self.links[place] = Link {
            before: last,
            after: 0,
        };
        self.links[last].after = place;
        self.links[0].before = place;
    }

    /// Takes `place` out of the list.
    #[inline]
    pub fn leave(&mut self, place: usize) {
        let Link { before, after } = self.links[place];
        self.links[before].after = after;
        self.links[after].before = before;
    }

    /// The list from its beginning.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        let next = |&place: &usize| Some(self.links[place].after).filter(|&next| next != 0);
        std::iter::successors(next(&0), next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_begins_and_ends_empty() {
        let mut busy = Busy::default();
        assert_eq!(busy.iter().count(), 0);
        let [a, b] = [busy.add_place(), busy.add_place()];
        assert_eq!((a, b, busy.iter().count()), (1, 2, 0));
        busy.enter(b);
        busy.enter(a);
        assert_eq!(busy.iter().collect::<Vec<_>>(), [b, a]);
        busy.leave(b);
        busy.enter(b);
        assert_eq!(busy.iter().collect::<Vec<_>>(), [a, b]);
        busy.leave(b);
        busy.leave(a);
        assert_eq!(busy.iter().count(), 0);
    }

    proptest! {
        #[test]
        fn it_is_in_the_order_of_entering(steps in proptest::collection::vec(0..12usize, 0..200)) {
            let (mut busy, mut expected) = (Busy::default(), Vec::new());
            let mut places = 0;
            for step in steps {
                let place = step + 1;
                while places < place {
                    places = busy.add_place();
                }
                if let Some(at) = expected.iter().position(|&known| known == place) {
                    expected.remove(at);
                    busy.leave(place);
                } else {
                    expected.push(place);
                    busy.enter(place);
                }
                prop_assert_eq!(busy.iter().collect::<Vec<_>>(), expected.clone());
            }
        }
    }
}
