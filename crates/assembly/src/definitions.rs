//! How each node was defined: what a later definition of it is compared with, and what a part of it takes
//! from the whole.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use qapi::options::{BlockdevBase, BlockdevOptions, BlockdevRef};

/// The definition of one node.
#[derive(Clone, Debug)]
pub struct Definition {
    name: String,
    /// As it was given, with its name; the child is a name, too.
    pub given: BlockdevOptions,
    /// The node that it was defined in.
    pub within: Option<String>,
}

impl Definition {
    /// Node `name`, which was given these options.
    pub fn new(
        name: &str,
        mut given: BlockdevOptions,
        child: Option<String>,
        within: Option<String>,
    ) -> Self {
        given.base.node_name = Some(name.to_owned());
        if let (Some(place), Some(child)) = (given.child_mut(), child) {
            *place = BlockdevRef::Reference(child);
        }
        Self {
            name: name.to_owned(),
            given,
            within,
        }
    }

    /// The name of its child, if it has one.
    pub fn child(&self) -> Option<&str> {
        match self.given.child() {
            Some((_, BlockdevRef::Reference(name))) => Some(name),
            Some((_, BlockdevRef::Definition(_))) | None => None,
        }
    }
}

/// What a node that is defined in another one takes from that.
pub fn inherit(child: &mut BlockdevBase, parent: &BlockdevBase) {
    let cache = child.cache.get_or_insert_default();
    let parents = parent.cache.unwrap_or_default();
    cache.direct = cache.direct.or(parents.direct);
    cache.no_flush = cache.no_flush.or(parents.no_flush);
    child.read_only = child.read_only.or(parent.read_only);
    child.auto_read_only = child.auto_read_only.or(parent.auto_read_only);
    child.force_share = child.force_share.or(parent.force_share);
    child.discard = child.discard.or(parent.discard);
}

/// The definitions of some nodes, by name.
pub type ByName = BTreeMap<String, Definition>;

/// What node `name` is defined as, with what it takes from the node that it was defined in. None: it is not
/// among them.
pub fn effective(all: &ByName, name: &str) -> Option<BlockdevOptions> {
    let mut options = all.get(name)?.given.clone();
    let mut part = name;
    // Nothing is defined in itself.
    while let Some(whole) = all.get(part).and_then(|known| known.within.as_deref()) {
        let Some(above) = all.get(whole) else { break };
        inherit(&mut options.base, &above.given.base);
        part = whole;
    }
    Some(options)
}

/// The definitions of all nodes in the graph.
#[derive(Debug, Default)]
pub struct Definitions(Mutex<ByName>);

impl Definitions {
    /// All of them, as they are now.
    pub fn all(&self) -> ByName {
        self.0.lock().clone()
    }

    /// These nodes have come, or are defined anew: those that `is_there` knows still, as a node may have gone
    /// the moment it came.
    pub fn add(
        &self,
        definitions: impl IntoIterator<Item = Definition>,
        is_there: impl Fn(&str) -> bool,
    ) {
        let there = definitions.into_iter().filter(|one| is_there(&one.name));
        let named = |one: Definition| (one.name.clone(), one);
        self.0.lock().extend(there.map(named));
    }

    /// Forgets all nodes but those that `is_there` knows.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| is_there(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(name: &str, text: &str, child: Option<&str>, within: Option<&str>) -> Definition {
        let owned = |name: &str| name.to_owned();
        let given = BlockdevOptions::parse(text).unwrap();
        Definition::new(name, given, child.map(owned), within.map(owned))
    }

    #[test]
    fn a_part_takes_from_the_whole_what_it_does_not_say() {
        let definitions = Definitions::default();
        let all = [
            defined(
                "top",
                "blkdebug,node-name=top,cache.direct=on,read-only=on,image=x",
                Some("mid"),
                None,
            ),
            defined(
                "mid",
                "blkdebug,node-name=mid,read-only=off,image=x",
                Some("file"),
                Some("top"),
            ),
            defined("file", "file,node-name=file,filename=f", None, Some("mid")),
        ];
        definitions.add(all, |_| true);
        let all = definitions.all();
        let of = |name| effective(&all, name).unwrap().base;
        assert!(of("file").cache_direct());
        assert_eq!(of("file").read_only, Some(false));
        assert_eq!(of("top").read_only, Some(true));
        assert_eq!(all["top"].child(), Some("mid"));
        assert!(effective(&all, "none").is_none());

        // One whose node is gone by then would be found by the next of its name.
        let late = defined("late", "file,node-name=late,filename=f", None, Some("top"));
        definitions.add([late], |name| name != "late");
        assert!(!definitions.all().contains_key("late"));

        definitions.retain(|name| name != "top");
        let all = definitions.all();
        assert!(!effective(&all, "file").unwrap().base.cache_direct());
    }
}
