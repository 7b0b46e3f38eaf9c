//! `blockdev-reopen`: nodes are defined anew, all or none of them.
//!
//! What a definition does not say has its default, so that it has to say all, as in QEMU. What a driver cannot
//! change must be given as it was. A file is opened in any case: its name may lead to something else by now.
//! All other nodes are only if something of them changes, a child for example. What was defined in a node goes
//! along with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use block::{
    BACKING, Closing, DATA_FILE, Node, Registry, RegistryError, Replacement, SharingError,
};
use qapi::Value;
use qapi::options::{BlockdevDriverOptions, BlockdevOptions, Referred};

use crate::definitions::{ByName, Definition, Definitions, are_as_before, effective};
use crate::nodes::{Children, Means, check, commit, of_image, open};
use crate::opening::{Patience, QUIET_TIME_MAX};
use crate::setup_error::SetupError;
use crate::tree::{CHAIN_MAX, Made, too_deep};

/// What every node can change.
const COMMON: [&str; 6] = [
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "read-only",
];

/// What a driver can change beside that.
fn changeable(driver: &str) -> &'static [&'static str] {
    match driver {
        "raw" => &["file", "offset", "size"],
        "qcow2" => &[
            "backing",
            "cache-clean-interval",
            "cache-size",
            "discard-no-unref",
            "l2-cache-entry-size",
            "l2-cache-size",
            "lazy-refcounts",
            "overlap-check",
            "pass-discard-other",
            "pass-discard-request",
            "pass-discard-snapshot",
            "refcount-cache-size",
        ],
        "throttle" => &["file", "throttle-group"],
        _ => &[],
    }
}

/// How often it is begun anew because others have changed what was looked at.
const ATTEMPTS: usize = 8;

/// Defines nodes anew. They keep their names, and all that uses them. No lock is held while something is
/// opened: if somebody else changes meanwhile what it was opened with, it begins anew, so that it is as if one
/// had come after the other.
///
/// # Errors
/// In QEMU's words; nothing has changed then.
pub async fn reopen(
    registry: &Arc<Registry>,
    means: Means<'_>,
    definitions: &Definitions,
    options: Vec<BlockdevOptions>,
    limit: Option<Duration>,
) -> Result<Closing, SetupError> {
    let patience = Patience::new(limit);
    for _ in 0..ATTEMPTS {
        let closing = attempt(registry, means, definitions, options.clone(), &patience);
        if let Some(closing) = closing.await? {
            return Ok(closing);
        }
    }
    Err(RegistryError::ChangedMeanwhile.into())
}

/// None: somebody else has changed something meanwhile, and nothing is done.
async fn attempt(
    registry: &Arc<Registry>,
    means: Means<'_>,
    definitions: &Definitions,
    options: Vec<BlockdevOptions>,
    patience: &Patience,
) -> Result<Option<Closing>, SetupError> {
    let before = definitions.all();
    let mut wanted = Wanted {
        registry,
        before: &before,
        after: before.clone(),
        named: Vec::new(),
    };
    for options in options {
        let name = options.base.node_name.clone();
        let name = name.ok_or_else(|| SetupError::new("node-name not specified"))?;
        wanted.add(&name, options)?;
    }
    let Wanted { after, named, .. } = wanted;
    let anew = to_be_opened(&before, &after, &named);
    check_can_reopen(registry, &anew)?;
    let made = open_all(registry, means, &after, &anew, patience).await?;
    let changed = named.iter();
    let changed = changed.filter_map(|name| Some((name.clone(), after.get(name)?.clone())));
    let changed: ByName = changed.collect();
    let Some(top) = made.0.last() else {
        let there = |name: &str| registry.graph().contains(name);
        definitions.add(changed.into_values(), there);
        return Ok(Some(Closing::default()));
    };
    let (name, file) = (Arc::clone(top.name()), top.driver().info().filename);
    let nodes = made.0.clone();
    let is_current = || {
        let names = anew.iter().copied();
        let names = names.chain(named.iter().map(String::as_str));
        are_as_before(&before, &definitions.all(), names)
    };
    let prepared = async { prepare(registry, nodes, is_current).await };
    let prepared = patience.wait(QUIET_TIME_MAX, &name, &file, prepared);
    let Some(prepared) = prepared.await? else {
        return Ok(None);
    };
    let define = move |all: &mut ByName| all.extend(changed);
    let closing = commit(registry, prepared, definitions, define).await?;
    Ok(Some(closing))
}

/// Opens the nodes in `order`, what is below first, as they are defined `after`. They are in no graph yet.
///
/// # Errors
/// As [`reopen`]; nothing of them is left then.
pub async fn open_all(
    registry: &Registry,
    means: Means<'_>,
    after: &ByName,
    order: &[&str],
    patience: &Patience,
) -> Result<Made, SetupError> {
    let mut opened: BTreeMap<&str, Arc<Node>> = BTreeMap::new();
    let mut made = Made::default();
    for &name in order {
        let Some(options) = effective(after, name) else {
            continue;
        };
        let mut children = Children::default();
        for (role, child) in after.get(name).iter().flat_map(|known| &known.children) {
            let child = match opened.get(child.as_str()) {
                Some(node) => Arc::clone(node),
                None => registry.node(child)?,
            };
            children.add(role, child);
        }
        let what = children.file_of(&options);
        check(&options.base)?;
        let opening = async {
            keep_names(registry, name, &options, &mut children).await?;
            open(name, options, children, means).await
        };
        let driver = patience.wait(QUIET_TIME_MAX, name, &what, opening).await?;
        let node = Node::new(name, driver);
        if node.chain().take(CHAIN_MAX + 2).count() > CHAIN_MAX + 1 {
            return Err(too_deep(name));
        }
        made.0.push(Arc::clone(&node));
        opened.insert(name, node);
    }
    Ok(made)
}

/// What an image has named itself, it names still.
async fn keep_names(
    registry: &Registry,
    name: &str,
    options: &BlockdevOptions,
    children: &mut Children,
) -> Result<(), SetupError> {
    let has = |role| children.get(role).is_some();
    let is_named = (
        options.leaves_backing_to_image() && has(BACKING),
        options.leaves_data_file_to_image() && has(DATA_FILE),
    );
    let file = children.get("file");
    let Some(file) = file.filter(|_| is_named.0 || is_named.1) else {
        return Ok(());
    };
    let named = qcow2::names_of(file).await;
    let mut named = named.map_err(|error| of_image(error, name, file))?;
    named.backing.take_if(|_| !is_named.0);
    named.data_file.take_if(|_| !is_named.1);
    let format = registry.node(name)?.driver().info().format;
    let before = format.as_ref();
    let other = |what: &str, role: &str| {
        Err(SetupError::new(format!(
            "Image of node '{name}' names another {what} than before: say which one it is with '{role}'"
        )))
    };
    let is_same = |before: Option<&String>, now: Option<&[u8]>| {
        now.is_some() && before.map(String::as_bytes) == now
    };
    let backing = named.backing.as_ref().map(|named| named.name.as_slice());
    let was = before.and_then(|format| format.backing_name.as_ref());
    if is_named.0 && !is_same(was, backing) {
        return other("backing file", BACKING);
    }
    let data = named.data_file.as_ref().map(|named| named.name.as_slice());
    let was = before.and_then(|format| format.qcow2.data_file.as_ref());
    if is_named.1 && !is_same(was, data) {
        return other("data file", DATA_FILE);
    }
    children.named_by_image(named);
    Ok(())
}

/// Before anything is opened.
fn check_can_reopen(registry: &Registry, names: &[&str]) -> Result<(), SetupError> {
    for name in names {
        let node = registry.node(name)?;
        if node.driver().capabilities().reopen.is_none() {
            let error = RegistryError::NotReopened {
                node: (*name).to_owned(),
                driver: node.driver().name(),
            };
            return Err(error.into());
        }
    }
    Ok(())
}

/// None: what they were opened with has changed.
async fn prepare(
    registry: &Registry,
    nodes: Vec<Arc<Node>>,
    is_current: impl Fn() -> bool,
) -> Result<Option<Replacement>, SetupError> {
    match registry.prepare_reopen(nodes, is_current).await {
        Ok(prepared) => Ok(Some(prepared)),
        Err(RegistryError::ChangedMeanwhile) => Ok(None),
        Err(RegistryError::Sharing(SharingError::ReadOnly(node))) => Err(SetupError::new(format!(
            "Read-only block node '{node}' cannot support read-write users"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// What nodes are to be defined as.
struct Wanted<'a> {
    registry: &'a Registry,
    before: &'a ByName,
    after: ByName,
    /// Those that are defined anew.
    named: Vec<String>,
}

impl Wanted<'_> {
    /// Node `name` is to be as `options` say, with what is defined in it.
    fn add(&mut self, name: &str, mut options: BlockdevOptions) -> Result<(), SetupError> {
        let none = || RegistryError::NoNode(name.to_owned());
        if self.named.iter().any(|known| known == name) {
            return Err(SetupError::new(format!(
                "Node '{name}' is given twice: say once what it is to be"
            )));
        }
        self.registry.node(name).map_err(|_| none())?;
        let known = self.before.get(name).ok_or_else(none)?;
        let mut children = Vec::new();
        if options.kind() == known.given.kind() {
            let said = options.clone();
            for (role, child) in said.children() {
                let child = match child {
                    Referred::Reference(child) => {
                        self.check_no_cycle(name, role, child)?;
                        child.to_owned()
                    }
                    Referred::Definition(child) => {
                        let below = self.add_part(name, role, known, child.clone())?;
                        options.set_child(role, &below);
                        below
                    }
                };
                children.push((role, child));
            }
            // As with QEMU it stays if nothing is said of it. One that was defined in place has to be said again.
            if options.leaves_data_file_to_image()
                && let Some(data_file) = known.child(DATA_FILE)
            {
                let is_named = known.given.leaves_data_file_to_image();
                if is_named || !self.is_part(name, DATA_FILE, data_file) {
                    if !is_named {
                        options.set_child(DATA_FILE, data_file);
                    }
                    children.push((DATA_FILE, data_file.to_owned()));
                }
            }
            if options.leaves_backing_to_image() && self.is_backed(name)? {
                return Err(SetupError::new(format!("backing is missing for '{name}'")));
            }
        }
        let wanted = Definition::new(name, options, children, known.within.clone());
        check_options(&known.given, &wanted.given)?;
        self.after.insert(name.to_owned(), wanted);
        self.named.push(name.to_owned());
        Ok(())
    }

    /// Whether `below` was defined in node `name`, as its child `role`.
    fn is_part(&self, name: &str, role: &str, below: &str) -> bool {
        let part = self.before.get(below).and_then(|part| part.within.as_ref());
        part.is_some_and(|within| within.whole == name && within.role == role)
    }

    /// The child of `name` is defined in place. Returns its name.
    fn add_part(
        &mut self,
        name: &str,
        role: &str,
        known: &Definition,
        mut child: BlockdevOptions,
    ) -> Result<String, SetupError> {
        let below = known
            .child(role)
            .and_then(|below| self.before.get_key_value(below));
        let part = below.filter(|(below, _)| self.is_part(name, role, below));
        let Some((below, _)) = part else {
            return Err(cannot_change(&format!("{role}.driver")));
        };
        if child.base.node_name.get_or_insert_with(|| below.clone()) != below {
            return Err(cannot_change("node-name"));
        }
        self.add(below, child)?;
        Ok(below.clone())
    }

    /// It has a backing node, or its image names one.
    fn is_backed(&self, name: &str) -> Result<bool, SetupError> {
        let node = self.registry.node(name)?;
        let format = node.driver().info().format;
        let named = format.is_some_and(|format| format.backing_name.is_some());
        Ok(named || node.backing().is_some())
    }

    fn check_no_cycle(&self, name: &str, role: &str, child: &str) -> Result<(), SetupError> {
        let nodes = self.registry.node(child)?.subtree();
        match nodes.iter().any(|node| **node.name() == *name) {
            false => Ok(()),
            true => Err(SetupError::new(format!(
                "Making '{child}' a {role} child of '{name}' would create a cycle"
            ))),
        }
    }
}

fn cannot_change(option: &str) -> SetupError {
    SetupError::new(format!("Cannot change the option '{option}'"))
}

/// Whether a node that was given `before` can be given `after`.
fn check_options(before: &BlockdevOptions, after: &BlockdevOptions) -> Result<(), SetupError> {
    let more = changeable(before.kind().name());
    let can_change = |option: &str| COMMON.contains(&option) || more.contains(&option);
    let (before, after) = (flat(before), flat(after));
    let mut gone = before.keys().filter(|&option| !after.contains_key(option));
    if let Some(option) = gone.find(|option| !can_change(option)) {
        return Err(SetupError::new(format!(
            "Option '{option}' cannot be reset to its default value"
        )));
    }
    let other = |(option, value): &(&String, &Value)| before.get(*option) != Some(*value);
    let mut changed = after.iter().filter(other);
    match changed.find(|(option, _)| !can_change(option)) {
        Some((option, _)) => Err(cannot_change(option)),
        None => Ok(()),
    }
}

/// Options by their dotted names.
fn flat(options: &BlockdevOptions) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    // What has been read from JSON can be written as JSON.
    if let Ok(value) = serde_json::to_value(options) {
        flatten(&mut all, String::new(), value);
    }
    all
}

fn flatten(all: &mut BTreeMap<String, Value>, name: String, value: Value) {
    let below = |member: String| match name.is_empty() {
        true => member,
        false => format!("{name}.{member}"),
    };
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                flatten(all, below(member), value);
            }
        }
        Value::Array(elements) => {
            for (number, value) in elements.into_iter().enumerate() {
                flatten(all, below(number.to_string()), value);
            }
        }
        value => {
            all.insert(name, value);
        }
    }
}

/// The nodes that have to be opened, what is below first.
pub fn to_be_opened<'a>(before: &ByName, after: &'a ByName, named: &[String]) -> Vec<&'a str> {
    let named: BTreeSet<_> = named.iter().collect();
    let changes = |(name, definition): &(&'a String, &'a Definition)| {
        let is_file = matches!(
            definition.given.variant,
            BlockdevDriverOptions::File(_) | BlockdevDriverOptions::HostDevice(_)
        );
        (is_file && named.contains(name)) || effective(before, name) != effective(after, name)
    };
    let anew = after.iter().filter(changes);
    let anew: BTreeSet<_> = anew.map(|(name, _)| name.as_str()).collect();
    let mut order = from_below(after);
    order.retain(|name| anew.contains(name));
    order
}

/// All names, each behind those of its children. One that is in a circle is found by who takes it in.
fn from_below(all: &ByName) -> Vec<&str> {
    let mut order = Vec::with_capacity(all.len());
    let mut seen = BTreeSet::new();
    for name in all.keys() {
        // What is to be looked at, and what is behind all of its children.
        let mut stack = vec![(name.as_str(), false)];
        while let Some((name, is_behind)) = stack.pop() {
            if is_behind {
                order.push(name);
                continue;
            }
            let Some((name, known)) = all.get_key_value(name) else {
                continue;
            };
            if !seen.insert(name.as_str()) {
                continue;
            }
            stack.push((name, true));
            let children = known.children.iter();
            stack.extend(children.map(|(_, child)| (child.as_str(), false)));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions::Within;

    fn options(text: &str) -> BlockdevOptions {
        BlockdevOptions::parse(text).unwrap()
    }

    #[test]
    fn what_a_driver_cannot_change_is_given_as_it_was() {
        let check = |before, after| {
            let checked = check_options(&options(before), &options(after));
            checked.map_err(|error| error.desc)
        };
        let file = "file,node-name=a,filename=f,aio=threads";
        assert_eq!(check(file, file), Ok(()));
        let more = "file,node-name=a,filename=f,aio=threads,cache.direct=on,discard=unmap";
        assert_eq!(check(file, more), Ok(()));
        assert_eq!(check(more, file), Ok(()));
        let cases = [
            (
                "file,node-name=a,filename=f",
                "Option 'aio' cannot be reset to its default value",
            ),
            (
                "file,node-name=a,filename=f,aio=native",
                "Cannot change the option 'aio'",
            ),
            (
                "file,node-name=a,filename=g,aio=threads",
                "Cannot change the option 'filename'",
            ),
            (
                "file,node-name=a,filename=f,aio=threads,locking=off",
                "Cannot change the option 'locking'",
            ),
            (
                "host_device,node-name=a,filename=f,aio=threads",
                "Cannot change the option 'driver'",
            ),
            (
                "null-co,node-name=a",
                "Option 'aio' cannot be reset to its default value",
            ),
        ];
        for (after, words) in cases {
            assert_eq!(check(file, after), Err(words.to_owned()), "{after}");
        }
        let rules = "blkdebug,node-name=a,image=b,align=4096";
        let other = "blkdebug,node-name=a,image=b,align=4096,inject-error.0.event=read_aio";
        assert_eq!(
            check(rules, other),
            Err("Cannot change the option 'inject-error.0.event'".to_owned())
        );
    }

    #[test]
    fn what_is_below_is_opened_first() {
        let defined = |name: &str, text: &str, child: Option<&str>, within: Option<&str>| {
            let child = child.map(|child| ("image", child.to_owned()));
            let within = within.map(|whole| Within {
                whole: whole.to_owned(),
                role: "image",
            });
            let children = child.into_iter().collect();
            let definition = Definition::new(name, options(text), children, within);
            (name.to_owned(), definition)
        };
        let blkdebug = "blkdebug,node-name=x,image=x";
        let before: ByName = [
            defined("a", blkdebug, Some("b"), None),
            defined("b", blkdebug, Some("c"), Some("a")),
            defined("c", "file,node-name=c,filename=f", None, Some("b")),
            defined("d", "file,node-name=d,filename=f", None, None),
        ]
        .into();
        let anew = |after: &ByName, named: &[&str]| {
            let named: Vec<_> = named.iter().map(|&name| name.to_owned()).collect();
            let anew = to_be_opened(&before, after, &named);
            anew.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(anew(&before, &["a"]), [""; 0], "nothing changes");
        assert_eq!(anew(&before, &["c"]), ["c"], "its name may lead elsewhere");
        let mut after = before.clone();
        let direct = "blkdebug,node-name=x,image=x,cache.direct=on";
        after.extend([defined("a", direct, Some("b"), None)]);
        assert_eq!(anew(&after, &["a"]), ["c", "b", "a"], "its parts inherit");
    }
}
