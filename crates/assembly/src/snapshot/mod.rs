//! `blockdev-snapshot`, `blockdev-snapshot-sync`, and `transaction` of both: overlays come in above nodes that are in
//! use, all of them at one instant or none.
//!
//! What is asked for is checked in its order, and only planned: the nodes as they are to be defined. Then they are
//! opened, those below anew to be read only, and all of it is one change of the graph. So there is nothing to be undone
//! but files that were made, and these stay, as with QEMU.

mod file;
mod format;
mod place;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::{
    BACKING, Closing, Node, Openings, Overlaid, RegistryError, Replacement, check_base,
    check_overlay, uppermost,
};
use qapi::QmpError;
use qapi::command::{BlockdevSnapshot, BlockdevSnapshotSync, TransactionActionVariant};
use tokio::time::timeout;

use crate::definitions::{ByName, Definition, Within, are_as_before, effective};
use crate::nodes::commit;
use crate::opening::{Patience, Reserved};
use crate::reopen::{open_all, to_be_opened};
use crate::setup_error::SetupError;
use crate::tree::Made;

use self::format::{can_be_overlay, no_overlay};
pub use self::place::Place;

/// Does all of `actions`, or none. `limit`: how long the storage, and what is in flight, may take until then; none: for
/// ever.
///
/// # Errors
/// In QEMU's words, and when the limit is over; nothing has changed in the graph then.
pub async fn transact(
    place: Place<'_>,
    actions: Vec<TransactionActionVariant>,
    limit: Option<Duration>,
) -> Result<Closing, SetupError> {
    let patience = Patience::new(limit);
    let before = place.definitions.all();
    let mut wanted = Wanted {
        place,
        patience: &patience,
        after: before.clone(),
        changed: Vec::new(),
        overlaid: Vec::new(),
        made: Vec::new(),
        reserved: place.names.reserve(),
        cancelled: Cancelled::default(),
    };
    for action in actions {
        wanted.add(action).await?;
    }
    let Wanted {
        after,
        changed,
        overlaid,
        reserved: _reserved,
        ..
    } = wanted;
    let Some(first) = overlaid.first() else {
        return Ok(Closing::default());
    };
    let Place {
        registry,
        means,
        definitions,
        ..
    } = place;
    let mut order = to_be_opened(&before, &after, &[]);
    // A part that cannot change stays as it is: what is above it does not write any more.
    order.retain(|name| registry.node(name).map_or(true, |node| can_reopen(&node)));
    let made = open_all(registry, means, &after, &order, &patience).await?;
    let file = place.file_of(&first.base);
    let prepared = prepare(place, &made, (&before, &changed), &overlaid);
    let prepared = within(&patience, &first.base, &file, prepared).await?;
    let changed = changed.into_iter();
    let changed = changed.filter_map(|name| Some((name.clone(), after.get(&name)?.clone())));
    let changed: ByName = changed.collect();
    // What is above was not opened anew, and may be defined in another way since.
    let define = move |all: &mut ByName| {
        all.extend(changed);
        put_above(all, &overlaid);
    };
    commit(registry, prepared, definitions, define).await
}

/// What has one of the bases as its child has the uppermost overlay instead.
fn put_above(all: &mut ByName, overlaid: &[Overlaid]) {
    for (name, known) in all.iter_mut() {
        for one in overlaid {
            let is_own = overlaid
                .iter()
                .any(|other| other.overlay == *name && other.base == one.base);
            let is_base = |(_, child): &&(&'static str, String)| *child == one.base;
            let roles: Vec<_> = known
                .children
                .iter()
                .filter(is_base)
                .map(|(role, _)| *role)
                .collect();
            for role in roles.into_iter().filter(|_| !is_own) {
                known.set_child(role, uppermost(&one.base, overlaid));
            }
        }
    }
}

async fn prepare(
    place: Place<'_>,
    Made(made): &Made,
    (before, changed): (&ByName, &[String]),
    overlaid: &[Overlaid],
) -> Result<Replacement, SetupError> {
    let is_known = |node: &Arc<Node>| before.contains_key(&**node.name());
    let (anew, mut new): (Vec<_>, Vec<_>) = made.iter().cloned().partition(is_known);
    // They come in the order in which they were asked for.
    let place_of = |node: &Arc<Node>| changed.iter().position(|name| **name == **node.name());
    new.sort_by_key(place_of);
    let openings = Openings { anew, new };
    // Of what was opened, and of all that it was opened with.
    let is_current = || {
        let names = made.iter().map(|node| &**node.name());
        are_as_before(before, &place.definitions.all(), names)
    };
    let prepared = place
        .registry
        .prepare_snapshot(openings, overlaid, is_current);
    Ok(prepared.await?)
}

/// What is in flight, and what makes it durable, ends in time.
async fn within(
    patience: &Patience,
    base: &str,
    file: &str,
    prepared: impl Future<Output = Result<Replacement, SetupError>>,
) -> Result<Replacement, SetupError> {
    let (Some(limit), Some(left)) = (patience.limit(), patience.left()) else {
        return prepared.await;
    };
    timeout(left, prepared).await.unwrap_or_else(|_| {
        Err(SetupError::new(format!(
            "Could not take a snapshot of node '{base}': what is in flight to '{file}' has not ended within {} s; \
             nothing has changed",
            limit.as_secs_f32()
        )))
    })
}

/// Whoever makes files is told when nobody wants them any more.
#[derive(Debug, Default)]
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What nodes are to be defined as.
struct Wanted<'a> {
    place: Place<'a>,
    patience: &'a Patience,
    after: ByName,
    /// Those that are defined anew, or come.
    changed: Vec<String>,
    overlaid: Vec<Overlaid>,
    /// The overlays that come with their files, and their lengths in bytes.
    made: Vec<(String, u64)>,
    reserved: Reserved,
    cancelled: Cancelled,
}

impl Wanted<'_> {
    async fn add(&mut self, action: TransactionActionVariant) -> Result<(), SetupError> {
        match action {
            TransactionActionVariant::Abort(_) => {
                let desc = "Transaction aborted using Abort action";
                Err(SetupError::new(desc))
            }
            TransactionActionVariant::BlockdevSnapshot(action) => self.add_overlay(&action.data),
            TransactionActionVariant::BlockdevSnapshotSync(action) => {
                self.add_file(&action.data).await
            }
        }
    }

    /// An overlay that is a node already.
    fn add_overlay(&mut self, wanted: &BlockdevSnapshot) -> Result<(), SetupError> {
        let base = self.base(&wanted.node, &wanted.node)?;
        let name = &wanted.overlay;
        let is_taken = |known: &Overlaid| [&known.base, &known.overlay].contains(&name);
        if self.overlaid.iter().any(is_taken) {
            return Err(RegistryError::OverlayUsed.into());
        }
        let none = |_| QmpError::cannot_find(name, name);
        let overlay = self.place.registry.node(name).map_err(none)?;
        check_overlay(&overlay)?;
        if overlay.driver().info().filter {
            return Err(SetupError::new("Filters cannot be used as overlays"));
        }
        if overlay.backing().is_some() {
            let desc = "The overlay already has a backing image";
            return Err(SetupError::new(desc));
        }
        let known = self.after.get_mut(name);
        let known = known.filter(|known| can_be_overlay(known.given.kind()));
        let known = known.ok_or_else(no_overlay)?;
        if let Ok(below) = self.place.registry.node(&base) {
            let mut below = below.subtree().into_iter();
            if below.any(|node| Arc::ptr_eq(&node, &overlay)) {
                return Err(SetupError::new(format!(
                    "Making '{base}' a {BACKING} child of '{name}' would create a cycle"
                )));
            }
        }
        known.set_child(BACKING, &base);
        self.changed.push(name.clone());
        self.overlay(base, name.clone());
        Ok(())
    }

    /// An overlay in a file of its own, which comes now.
    async fn add_file(&mut self, wanted: &BlockdevSnapshotSync) -> Result<(), SetupError> {
        let device = wanted.device.as_deref().unwrap_or_default();
        let node_name = wanted.node_name.as_deref().unwrap_or_default();
        let base = self.base(device, node_name)?;
        let name = match &wanted.snapshot_node_name {
            None if wanted.node_name.is_some() => {
                return Err(SetupError::new("New overlay node-name missing"));
            }
            Some(name) => {
                if self.place.registry.graph().contains(name) || !self.reserved.add(name) {
                    return Err(SetupError::new("New overlay node-name already in use"));
                }
                name.clone()
            }
            None => self.generate_name(),
        };
        let below = file::Base {
            name: &base,
            given: effective(&self.after, &base).map(|options| options.base),
            node: self.place.registry.node(&base).ok(),
            length: (self.made.iter())
                .find_map(|(made, length)| (*made == base).then_some(*length)),
            definitions: &self.after,
        };
        let overlay = file::Overlay {
            place: self.place,
            patience: self.patience,
            name: &name,
            base: below,
        };
        let file::Made {
            given,
            file,
            length,
        } = overlay.make(wanted, &self.cancelled.0).await?;
        let below = self.generate_name();
        let parts = vec![("file", below.clone()), (BACKING, base.clone())];
        let within = Within {
            whole: name.clone(),
            role: "file",
        };
        let file = Definition::new(&below, file, Vec::new(), Some(within));
        let whole = Definition::new(&name, given, parts, None);
        self.changed.extend([below.clone(), name.clone()]);
        self.after.insert(below, file);
        self.after.insert(name.clone(), whole);
        self.made.push((name.clone(), length));
        self.overlay(base, name);
        Ok(())
    }

    /// No node has it, and none will.
    fn generate_name(&mut self) -> String {
        let name = self.place.registry.graph().generate_name();
        self.reserved.add(&name);
        name
    }

    /// The node that gets an overlay: that of an export, as it is by then, or that of a name.
    fn base(&self, device: &str, node_name: &str) -> Result<String, SetupError> {
        let registry = self.place.registry;
        let above = |name: &str| self.overlaid.iter().find(|one| one.base == name);
        let name = match registry.export(device) {
            Ok(export) => {
                let mut name = export.backend().node().name().to_string();
                while let Some(above) = above(&name) {
                    name.clone_from(&above.overlay);
                }
                name
            }
            Err(_) => node_name.to_owned(),
        };
        if let Some(above) = above(&name) {
            let of = above.overlay.clone();
            return Err(RegistryError::IsBacking { node: name, of }.into());
        }
        match registry.node(&name) {
            Ok(node) => check_base(&node, &[])?,
            Err(_) if self.made.iter().any(|(made, _)| *made == name) => {}
            Err(_) => return Err(QmpError::cannot_find(device, node_name).into()),
        }
        Ok(name)
    }

    /// `base` is below `overlay` from then on, and is not written any more: it is opened anew for that, if it can be.
    fn overlay(&mut self, base: String, overlay: String) {
        let node = self.place.registry.node(&base);
        let is_reopened = node.map_or(true, |node| !node.read_only() && can_reopen(&node));
        if let Some(known) = self.after.get_mut(&base).filter(|_| is_reopened) {
            known.given.base.read_only = Some(true);
            self.changed.push(base.clone());
        }
        self.overlaid.push(Overlaid { base, overlay });
    }
}

fn can_reopen(node: &Node) -> bool {
    node.driver().capabilities().reopen.is_some()
}

impl Definition {
    /// Node `child` is its `role` from now on.
    fn set_child(&mut self, role: &'static str, child: &str) {
        self.given.set_child(role, child);
        match self.children.iter_mut().find(|(known, _)| *known == role) {
            Some((_, known)) => child.clone_into(known),
            None => self.children.push((role, child.to_owned())),
        }
    }
}
