//! `--blockdev`, `blockdev-add`: what a definition defines is opened, and put into the graph.

use block::{Registry, RegistryError};
use qapi::options::BlockdevOptions;

use crate::definitions::Definitions;
use crate::lock_wait::wait_for_lock;
use crate::nodes::Means;
use crate::opening::{Names, Patience, QUIET_TIME_MAX, TimeLimits};
use crate::setup_error::SetupError;
use crate::tree::{Opened, open_tree};

/// Opens what `options` define and puts it into the graph. No lock is held meanwhile, and names are kept.
/// Given up at any moment (`limit`, a drop of this future), nothing of it is left: what the storage
/// brings later is given back beside.
///
/// # Errors
/// In QEMU's words; nothing is added then.
pub async fn add(
    registry: &Registry,
    means: Means<'_>,
    names: &Names,
    definitions: &Definitions,
    options: BlockdevOptions,
    limits: TimeLimits,
) -> Result<(), SetupError> {
    let patience = Patience::new(limits.open);
    let Opened {
        mut made,
        root,
        definitions: defined,
        reserved: _reserved,
    } = open_tree(registry, means, names, options, &patience).await?;
    // A driver may use what is below it of its own accord, and then there are locks.
    let added = async {
        let add = || registry.add_node(&root);
        Ok(wait_for_lock(add, RegistryError::is_locked, limits.lock).await?)
    };
    let file = root.driver().info().filename;
    let quiet = limits.lock + QUIET_TIME_MAX;
    patience.wait(quiet, root.name(), &file, added).await?;
    made.0.clear();
    // Whoever takes a node out forgets its definition after that.
    let graph = registry.graph();
    definitions.add(defined, |name| graph.contains(name));
    Ok(())
}
