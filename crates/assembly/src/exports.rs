//! `--export`: from options to exports.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::{
    Access, AccountingOptions, Backend, Export, HoldScope, Lease, Node, OnError, Permissions,
    Policy, Registry, RegistryError,
};
use export_vhost_user_blk::{self as vhost_user_blk, ExportError, VhostUserBlkExport};
use iothread::Handle;
use listener::{Socket, inherited_socket};
use monitor::Descriptors;
use qapi::options::{
    self as wire, ExportBase, ExportOptions, ExportVariant, SocketAddressVariant,
    VhostUserBlkOptions,
};
use qapi::os_text;

use crate::lock_wait::wait_for_lock;
use crate::objects::Objects;
use crate::setup_error::SetupError;
use crate::socket::{abstract_path, bind, bind_abstract};

/// The longest serial number that a guest can read, in bytes.
const SERIAL_BYTES_MAX: usize = 20;

/// Executes `--export`: makes the export and its backend. Nobody else makes one of its name meanwhile. A lock
/// of another process is waited for as long as `lock_wait`.
///
/// # Errors
/// In QEMU's words; nothing is added then.
pub async fn add(
    registry: &Registry,
    objects: &Objects,
    descriptors: &Descriptors,
    options: ExportOptions,
    lock_wait: Duration,
) -> Result<(), SetupError> {
    let ExportOptions { base, variant } = options;
    if registry.export(&base.id).is_ok() {
        return Err(RegistryError::DuplicateExport(base.id).into());
    }
    let node = registry.node(&base.node_name)?;
    if node.read_only() && base.writable == Some(true) {
        return Err(SetupError::new("Cannot export read-only node as writable"));
    }
    let mut iothreads = objects.iothreads().await;
    let home = || iothreads.home_of(&base.node_name);
    let wanted = base.iothread.clone().or_else(home);
    let lent = iothreads.lend(wanted.as_ref())?;
    drop(iothreads);
    check_engines(&node, &lent.handles)?;
    let ExportVariant::VhostUserBlk(wire) = variant;
    let options = vhost_user_blk_options(&base, &wire)?;
    let policy = policy(&base);
    let begin = || registry.begin_use(&base.id, &base.node_name, access(&base));
    // Whoever has a node keeps its image open, and the wait may be long.
    drop(node);
    check_image(registry, &base)?;
    let Lease { root, claim } = wait_for_lock(begin, RegistryError::is_locked, lock_wait).await?;
    let node = root.node();
    warn_if_unsafe(&base.id, &node, policy);
    // Only now nobody else makes it longer or shorter.
    warn_of_odd_end(&base.id, &node, options.logical_block_size);
    let made = async {
        // Nobody connects to what waits for a lock.
        let socket = socket(&wire.addr.variant, descriptors).await?;
        let scope = hold_scope(&base);
        let backend = Backend::new(registry.control(), &base.id, root, policy, scope).await;
        let backend = backend.ok_or_else(SetupError::shutting_down)?;
        backend.configure_accounting(accounting(&base));
        let made =
            VhostUserBlkExport::new(options, Arc::clone(&backend), &lent.handles, socket).await;
        let export: Arc<dyn Export> = match made {
            Ok(export) => export,
            Err(error) => {
                backend.unmake().await;
                return Err(error.into());
            }
        };
        if let Err(error) = registry.add_export(Arc::clone(&export)) {
            export.close().await;
            return Err(error.into());
        }
        Ok(export)
    };
    let made: Result<_, SetupError> = made.await;
    drop(claim);
    match made {
        Ok(export) => {
            let mut iothreads = objects.iothreads().await;
            iothreads.use_by(wanted.as_ref(), &export);
            Ok(())
        }
        Err(error) => {
            registry.end_use(&node).await;
            Err(error)
        }
    }
}

async fn socket(
    address: &SocketAddressVariant,
    descriptors: &Descriptors,
) -> Result<Socket, SetupError> {
    match address {
        SocketAddressVariant::Unix(address) => {
            if let Some(name) = abstract_path(address)? {
                let listener = bind_abstract(name, &address.path)?;
                return Ok(Socket::inherited(listener.into())?);
            }
            bind(Path::new(&os_text::to_os(&address.path)), address.access()).await
        }
        SocketAddressVariant::Fd(address) => {
            // What was passed by a client of a monitor has a name, which begins with no digit.
            let is_number = address
                .str
                .starts_with(|c: char| c.is_ascii_digit() || c == '-');
            let socket = match is_number {
                true => inherited_socket(&address.str, true)?,
                false => descriptors.take(&address.str)?,
            };
            Ok(Socket::inherited(socket)?)
        }
        SocketAddressVariant::Inet(_) | SocketAddressVariant::Vsock(_) => Err(SetupError::new(
            "Only socket address types 'unix' and 'fd' are supported",
        )),
    }
}

/// An engine that was asked for by name was there when the node was opened; an iothread may have come to be
/// without one.
fn check_engines(node: &Arc<Node>, threads: &[Handle]) -> Result<(), SetupError> {
    for node in node.subtree() {
        let engine = node.driver().info().engine;
        let Some(engine) = engine.filter(|engine| engine.required) else {
            continue;
        };
        let mut others = threads.iter();
        if let Some(thread) = others.find(|thread| thread.engine() != engine.engine) {
            let why = thread.fallback().map(|why| format!(": {why}"));
            return Err(SetupError::new(format!(
                "Unable to use io_uring for node '{}' on iothread '{}'{}",
                node.name(),
                thread.name(),
                why.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// A guest that goes on with what a former daemon has served has seen an image: it is to be that one.
fn check_image(registry: &Registry, base: &ExportBase) -> Result<(), SetupError> {
    let node = registry.node(&base.node_name)?;
    let left = registry.control().read(|run| {
        let left = run.image_left(&base.id);
        left.cloned()
    });
    let image = node.image();
    let Some(saw) = left.filter(|saw| !saw.is_same(&image)) else {
        return Ok(());
    };
    let what = format!(
        "the guest of a former daemon has seen image '{saw}' as '{}', and node '{}' is image '{image}'",
        base.id, base.node_name
    );
    if base.x_other_image == Some(true) {
        tracing::warn!(
            "export '{}': {what}: it is made, as x-other-image=on says",
            base.id
        );
        return Ok(());
    }
    Err(SetupError {
        desc: format!("Export '{}' is refused: {what}", base.id),
        hint: Some(
            "Name the image that the guest has seen. If that is the same, or the VM has ended, use \
             x-other-image=on"
                .to_owned(),
        ),
    })
}

/// What an export does with its node. It minds nobody else.
fn access(base: &ExportBase) -> Access {
    let read = Permissions::CONSISTENT_READ;
    Access {
        held: match base.writable.unwrap_or(false) {
            true => read.and(Permissions::WRITE),
            false => read,
        },
        shared: Permissions::ALL,
    }
}

/// How its requests are counted.
fn accounting(base: &ExportBase) -> AccountingOptions {
    AccountingOptions {
        failed: base.account_failed.unwrap_or(true),
        invalid: base.account_invalid.unwrap_or(true),
        intervals: base.stats_intervals.clone().unwrap_or_default().into(),
    }
}

fn vhost_user_blk_options(
    base: &ExportBase,
    options: &VhostUserBlkOptions,
) -> Result<vhost_user_blk::Options, SetupError> {
    let size = options.logical_block_size();
    let too_large = |_| {
        SetupError::new(format!(
            "Property {}.logical-block-size doesn't take value {size}",
            base.id
        ))
    };
    // An id is ASCII.
    let id_end = base.id.len().min(SERIAL_BYTES_MAX);
    let serial = options.serial.as_deref().unwrap_or(&base.id[..id_end]);
    let made = vhost_user_blk::Options {
        writable: base.writable.unwrap_or(false),
        writethrough: base.writethrough.unwrap_or(false),
        serial: serial.to_owned(),
        logical_block_size: u32::try_from(size).map_err(too_large)?,
        num_queues: options.num_queues(),
        queue_size_max: options.queue_size(),
        configure_mem_slots: options.configure_mem_slots.unwrap_or(false),
        other_image: base.x_other_image.unwrap_or(false),
        ..vhost_user_blk::Options::new(&base.id)
    };
    made.check().map_err(ExportError::from)?;
    Ok(made)
}

impl From<ExportError> for SetupError {
    fn from(error: ExportError) -> Self {
        Self::new(error.to_string())
    }
}

/// A guest does not use a part of a block, as with QEMU.
fn warn_of_odd_end(id: &str, node: &Node, block: u32) {
    let length = node.driver().length();
    let rest = length % u64::from(block);
    if rest != 0 {
        tracing::warn!(
            "export '{id}': logical-block-size is {block}, so the last {rest} of its {length} bytes \
             are out of the guest's reach; resize node '{}' to a multiple of it, or use 512",
            node.name()
        );
    }
}

/// Some nodes can lose what was acknowledged, however it is held.
fn warn_if_unsafe(id: &str, node: &Arc<Node>, policy: Policy) {
    if !policy.can_stop() {
        return;
    }
    for node in node.subtree() {
        if let Some(warning) = node.driver().info().warning {
            tracing::warn!("export '{id}', node '{}': {warning}", node.name());
        }
    }
}

fn policy(base: &ExportBase) -> Policy {
    let on_error = |policy: Option<wire::OnError>| match policy.unwrap_or_default() {
        wire::OnError::Report => OnError::Report,
        wire::OnError::Ignore => OnError::Ignore,
        wire::OnError::Enospc => OnError::Enospc,
        wire::OnError::Stop => OnError::Stop,
        wire::OnError::Auto => OnError::Auto,
    };
    Policy::new(on_error(base.werror), on_error(base.rerror))
}

fn hold_scope(base: &ExportBase) -> HoldScope {
    match base.hold_scope.unwrap_or_default() {
        wire::HoldScope::Vm => HoldScope::Vm,
        wire::HoldScope::Device => HoldScope::Device,
        wire::HoldScope::Request => HoldScope::Request,
    }
}
