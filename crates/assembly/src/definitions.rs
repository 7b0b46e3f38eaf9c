//! How each node was defined: what a later definition of it is compared with, and what a part of it takes
//! from the whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use qapi::options::{BACKING, BlockdevBase, BlockdevOptions};

/// The definition of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    name: String,
    /// As it was given, with its name; children are names, too.
    pub given: BlockdevOptions,
    /// What its children are to it, and their names: those that the image has named, too.
    pub children: Vec<(&'static str, String)>,
    /// The node that it was defined in.
    pub within: Option<Within>,
}

/// Where a node was defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// In this node.
    pub whole: String,
    /// As this child of it.
    pub role: &'static str,
}

impl Definition {
    /// Node `name`, which was given these options.
    pub fn new(
        name: &str,
        mut given: BlockdevOptions,
        children: Vec<(&'static str, String)>,
        within: Option<Within>,
    ) -> Self {
        given.base.node_name = Some(name.to_owned());
        let said: Vec<_> = given.children().iter().map(|(role, _)| *role).collect();
        for (role, child) in children.iter().filter(|(role, _)| said.contains(role)) {
            given.set_child(role, child);
        }
        Self {
            name: name.to_owned(),
            given,
            children,
            within,
        }
    }

    /// The name of its child `role`, if it has one.
    pub fn child(&self, role: &str) -> Option<&str> {
        let mut children = self.children.iter();
        let child = children.find(|(known, _)| *known == role)?;
        Some(&child.1)
    }
}

/// What a node that is defined in another one, as its child `role`, takes from that. A backing node is not written
/// unless it says so itself.
pub fn inherit(child: &mut BlockdevBase, parent: &BlockdevBase, role: &str) {
    let cache = child.cache.get_or_insert_default();
    let parents = parent.cache.unwrap_or_default();
    cache.direct = cache.direct.or(parents.direct);
    cache.no_flush = cache.no_flush.or(parents.no_flush);
    child.force_share = child.force_share.or(parent.force_share);
    if role == BACKING {
        child.read_only.get_or_insert(true);
        child.auto_read_only.get_or_insert(false);
        return;
    }
    child.read_only = child.read_only.or(parent.read_only);
    child.auto_read_only = child.auto_read_only.or(parent.auto_read_only);
    child.discard = child.discard.or(parent.discard);
}

/// The definitions of some nodes, by name.
pub type ByName = BTreeMap<String, Definition>;

/// What node `name` is defined as, with what it takes from the node that it was defined in. None: it is not
/// among them.
pub fn effective(all: &ByName, name: &str) -> Option<BlockdevOptions> {
    let known = all.get(name)?;
    // Nothing is defined in itself.
    let whole = |part: &&Definition| all.get(&part.within.as_ref()?.whole);
    let wholes: Vec<_> = std::iter::successors(Some(known), whole).collect();
    // From the whole down: what a part takes is what the one above it has then.
    let mut wholes = wholes.into_iter().rev();
    let mut base = wholes.next()?.given.base.clone();
    for part in wholes {
        let mut below = part.given.base.clone();
        let role = part.within.as_ref().map_or("", |within| within.role);
        inherit(&mut below, &base, role);
        base = below;
    }
    let variant = known.given.variant.clone();
    Some(BlockdevOptions { base, variant })
}

/// Whether each of `names` that was defined `before` is `now` defined in the same way, with what it takes from others.
pub fn are_as_before<'a>(
    before: &ByName,
    now: &ByName,
    names: impl IntoIterator<Item = &'a str>,
) -> bool {
    let mut names = names.into_iter().filter(|name| before.contains_key(*name));
    names.all(|name| {
        before.get(name) == now.get(name) && effective(before, name) == effective(now, name)
    })
}

/// The definitions of all nodes in the graph. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Definitions(Arc<Mutex<ByName>>);

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

    /// Some of them change, and those go that `is_there` does not know.
    pub fn change(&self, change: impl FnOnce(&mut ByName), is_there: impl Fn(&str) -> bool) {
        let mut all = self.0.lock();
        change(&mut all);
        all.retain(|name, _| is_there(name));
    }

    /// Forgets all nodes but those that `is_there` knows.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| is_there(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(
        name: &str,
        text: &str,
        children: &[(&'static str, &str)],
        within: Option<(&str, &'static str)>,
    ) -> Definition {
        let owned = |(role, name): &(&'static str, &str)| (*role, (*name).to_owned());
        let given = BlockdevOptions::parse(text).unwrap();
        let within = within.map(|(whole, role)| Within {
            whole: whole.to_owned(),
            role,
        });
        Definition::new(name, given, children.iter().map(owned).collect(), within)
    }

    #[test]
    fn a_part_takes_from_the_whole_what_it_does_not_say() {
        let definitions = Definitions::default();
        let all = [
            defined(
                "top",
                "blkdebug,node-name=top,cache.direct=on,read-only=on,image=x",
                &[("image", "mid")],
                None,
            ),
            defined(
                "mid",
                "blkdebug,node-name=mid,read-only=off,image=x",
                &[("image", "file")],
                Some(("top", "image")),
            ),
            defined(
                "file",
                "file,node-name=file,filename=f",
                &[],
                Some(("mid", "image")),
            ),
        ];
        definitions.add(all, |_| true);
        let all = definitions.all();
        let of = |name| effective(&all, name).unwrap().base;
        assert!(of("file").cache_direct());
        assert_eq!(of("file").read_only, Some(false));
        assert_eq!(of("top").read_only, Some(true));
        assert_eq!(all["top"].child("image"), Some("mid"));
        assert!(effective(&all, "none").is_none());

        // One whose node is gone by then would be found by the next of its name.
        let late = "file,node-name=late,filename=f";
        let late = defined("late", late, &[], Some(("top", "image")));
        definitions.add([late], |name| name != "late");
        assert!(!definitions.all().contains_key("late"));

        definitions.retain(|name| name != "top");
        let all = definitions.all();
        assert!(!effective(&all, "file").unwrap().base.cache_direct());
    }

    /// A part that others have not touched is another one if the whole takes another cache mode.
    #[test]
    fn what_a_part_takes_from_the_whole_may_have_changed_meanwhile() {
        let whole = |cache: &str| {
            let whole = format!("qcow2,node-name=top,cache.direct={cache},file=f");
            let part = "file,node-name=f,filename=f";
            let all = [
                defined("top", &whole, &[("file", "f")], None),
                defined("f", part, &[], Some(("top", "file"))),
            ];
            let named = |one: Definition| (one.name.clone(), one);
            all.into_iter().map(named).collect::<ByName>()
        };
        let (before, now) = (whole("on"), whole("off"));
        assert_eq!(before.get("f"), now.get("f"));
        assert!(!are_as_before(&before, &now, ["f"]));
        assert!(are_as_before(&before, &before, ["f", "top"]));
        // It comes only now.
        assert!(are_as_before(&before, &now, ["new"]));
        assert!(!are_as_before(&before, &ByName::new(), ["f"]), "it is gone");
    }

    /// As in QEMU: `bdrv_inherited_options`, asked of its storage daemon.
    #[test]
    fn a_backing_node_takes_the_cache_and_is_not_written() {
        let top = "qcow2,node-name=top,file=f,cache.direct=on,discard=unmap,force-share=off,auto-read-only=on";
        let all: ByName = [
            defined("top", top, &[("file", "f"), (BACKING, "mid")], None),
            defined(
                "mid",
                "qcow2,node-name=mid,file=f2",
                &[("file", "f2")],
                Some(("top", BACKING)),
            ),
            defined(
                "f2",
                "file,node-name=f2,filename=f",
                &[],
                Some(("mid", "file")),
            ),
        ]
        .into_iter()
        .map(|one| (one.name.clone(), one))
        .collect();
        assert!(all["top"].given.leaves_backing_to_image());
        for name in ["mid", "f2"] {
            let base = effective(&all, name).unwrap().base;
            assert!(base.cache_direct(), "{name}");
            assert_eq!(base.force_share, Some(false), "{name}");
            assert_eq!(base.read_only, Some(true), "{name}");
            assert_eq!(base.auto_read_only, Some(false), "{name}");
            assert_eq!(base.discard, None, "{name}");
        }
    }
}
