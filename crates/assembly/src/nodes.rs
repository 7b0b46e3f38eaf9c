//! From the options of one node to its driver.

use std::path::Path;
use std::sync::Arc;

use block::fault::{FaultEvent, InjectError, IoType, SetState};
use block::{BACKING, Closing, DATA_FILE, Driver, Graph, Node, Registry, Replacement};
use drivers::file::{Aio, Discard, Locking, Medium};
use drivers::{
    Blkdebug, BlkdebugOptions, CopyOnRead, CopyOnReadOptions, DetectingZeroes, FileDriver,
    FileOptions, NullCo, NullOptions, OpenError, Quota, QuotaOptions, Raw, RawOptions, Throttle,
    ThrottleOptions,
};
use monitor::Descriptors;
use qapi::options::{
    self as wire, BlockdevBase, BlockdevDriverOptions, BlockdevOptions, DetectZeroes,
};
use qapi::os_text;
use qcow2::{Names, Qcow2};

use crate::definitions::{ByName, Definitions};
use crate::fdset;
use crate::node_base::{node_info, not_negative, unmaps};
use crate::qcow2_node;
use crate::setup_error::SetupError;
use crate::throttle::Groups;

/// What nodes refer to beside other nodes.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Throttle groups.
    pub groups: &'a Groups,
    /// Descriptors that clients of monitors have passed.
    pub descriptors: &'a Arc<Descriptors>,
    /// Where images record what is acknowledged and not flushed.
    pub redo_dir: Option<&'a Arc<Path>>,
}

/// From here on it goes on to its end, whoever waits for it. What nodes are defined as by that, `define` says, of what they
/// are defined as by then.
pub async fn commit(
    registry: &Arc<Registry>,
    prepared: Replacement,
    definitions: &Definitions,
    define: impl FnOnce(&mut ByName) + Send + 'static,
) -> Result<Closing, SetupError> {
    let registry = Arc::clone(registry);
    let definitions = definitions.clone();
    let committed = tokio::spawn(async move {
        let done = |graph: &Graph| definitions.change(define, |name| graph.contains(name));
        registry.commit_and(prepared, done).await
    });
    let committed = committed.await;
    Ok(committed.map_err(|error| SetupError::new(error.to_string()))??)
}

/// The nodes below one that is to be opened.
#[derive(Debug, Default)]
pub struct Children {
    nodes: Vec<(&'static str, Arc<Node>)>,
    /// What the image has said of other files, as far as they are those there are.
    named: Names,
}

impl Children {
    /// One more: what it is, and which node.
    pub fn add(&mut self, role: &'static str, node: Arc<Node>) {
        self.nodes.push((role, node));
    }

    /// What the image has named is what is used.
    pub fn named_by_image(&mut self, named: Names) {
        self.named = named;
    }

    /// The one that is its `role`.
    pub fn get(&self, role: &str) -> Option<&Arc<Node>> {
        let mut nodes = self.nodes.iter();
        let found = nodes.find(|(known, _)| *known == role)?;
        Some(&found.1)
    }

    /// What they are, and their names.
    pub fn names(&self) -> Vec<(&'static str, String)> {
        let nodes = self.nodes.iter();
        nodes
            .map(|(role, node)| (*role, node.name().to_string()))
            .collect()
    }

    /// What is asked of the storage for a node with these options: the file, or that of the node below.
    pub fn file_of(&self, options: &BlockdevOptions) -> String {
        match (&options.variant, self.nodes.first()) {
            (BlockdevDriverOptions::File(file) | BlockdevDriverOptions::HostDevice(file), _) => {
                file.filename.clone()
            }
            (_, Some((_, below))) => below.driver().info().filename,
            (_, None) => String::new(),
        }
    }

    /// The one that a driver of one child has, or the file of a format.
    fn first(&self, name: &str) -> Result<Arc<Node>, SetupError> {
        // The type of the options has a child wherever this is called.
        let first = self.nodes.first().map(|(_, node)| Arc::clone(node));
        first.ok_or_else(|| SetupError::new(format!("Node '{name}' lacks its child")))
    }
}

/// Opens one node, on its children.
///
/// # Errors
/// In QEMU's words.
pub async fn open(
    name: &str,
    options: BlockdevOptions,
    children: Children,
    Means {
        groups,
        descriptors,
        redo_dir,
    }: Means<'_>,
) -> Result<Box<dyn Driver>, SetupError> {
    let base = options.base;
    let driver: Box<dyn Driver> = match options.variant {
        BlockdevDriverOptions::File(file) => {
            open_image(name, descriptors, &base, file, Medium::File).await?
        }
        BlockdevDriverOptions::HostDevice(file) => {
            open_image(name, descriptors, &base, file, Medium::HostDevice).await?
        }
        BlockdevDriverOptions::Raw(raw) => {
            let file = children.first(name)?;
            Box::new(Raw::new(raw_options(name, file, &base, &raw)?)?)
        }
        BlockdevDriverOptions::Qcow2(qcow2) => {
            let below = qcow2_node::Below {
                file: children.first(name)?,
                data_file: children.get(DATA_FILE).map(Arc::clone),
                backing: children.get(BACKING).map(Arc::clone),
                named: children.named,
                redo_dir: redo_dir.map(Arc::clone),
            };
            let file = Arc::clone(&below.file);
            let options = qcow2_node::options(name, below, &base, &qcow2)?;
            let opened = Qcow2::open(options).await;
            Box::new(opened.map_err(|error| match Graph::is_generated(name) {
                true => of_image(error, name, &file),
                // Whoever has given the name has asked for that image.
                false => error.into(),
            })?)
        }
        BlockdevDriverOptions::NullCo(null) => {
            Box::new(NullCo::new(null_options(&base, &null, false)?))
        }
        BlockdevDriverOptions::NullAio(null) => {
            Box::new(NullCo::new(null_options(&base, &null, true)?))
        }
        BlockdevDriverOptions::Throttle(throttle) => Box::new(Throttle::new(ThrottleOptions {
            node_name: name.into(),
            group: groups.get(&throttle.throttle_group)?,
            file: children.first(name)?,
            discard: unmaps(&base),
            info: node_info(&base),
        })),
        BlockdevDriverOptions::CopyOnRead(copy) => Box::new(CopyOnRead::new(CopyOnReadOptions {
            node_name: name.into(),
            file: children.first(name)?,
            bottom: copy.bottom,
            info: node_info(&base),
        })?),
        BlockdevDriverOptions::Quota(quota) => {
            let file = filtered(name, &base, &children)?;
            let limit = quota.limit.0;
            let node_name = name.into();
            let options = QuotaOptions {
                node_name,
                file,
                limit,
            };
            Box::new(Quota::open(options).await?)
        }
        BlockdevDriverOptions::Blkdebug(blkdebug) => {
            let image = filtered(name, &base, &children)?;
            Box::new(Blkdebug::new(blkdebug_options(name, image, blkdebug)?)?)
        }
    };
    let mode = match base.detect_zeroes.unwrap_or_default() {
        DetectZeroes::Off => block::DetectZeroes::Off,
        DetectZeroes::On => block::DetectZeroes::On,
        DetectZeroes::Unmap => block::DetectZeroes::Unmap,
    };
    Ok(DetectingZeroes::around(driver, mode))
}

/// An error of the image in `file`, which is to be node `name`: it says which one it is.
pub fn of_image(error: OpenError, name: &str, file: &Arc<Node>) -> SetupError {
    let file = file.storage().driver().info().filename;
    SetupError::from(error).of(&file, || match Graph::is_generated(name) {
        true => format!("image '{file}'"),
        false => format!("image '{file}' of node '{name}'"),
    })
}

/// What concerns every driver.
///
/// # Errors
/// In QEMU's words: options that do not go together.
pub fn check(base: &BlockdevBase) -> Result<(), SetupError> {
    if base.force_share == Some(true) && base.read_only != Some(true) {
        return Err(SetupError::new(
            "force-share=on can only be used with read-only images",
        ));
    }
    if base.detect_zeroes == Some(DetectZeroes::Unmap) && !unmaps(base) {
        return Err(SetupError::new(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    Ok(())
}

/// The child of a filter, which passes on whatever the child allows.
fn filtered(name: &str, base: &BlockdevBase, children: &Children) -> Result<Arc<Node>, SetupError> {
    let child = children.first(name)?;
    if base.read_only == Some(true) && !child.read_only() {
        return Err(SetupError::new(format!(
            "Node '{name}' cannot be read-only on '{0}', which is not: set read-only=on for '{0}'",
            child.name()
        )));
    }
    Ok(child)
}

async fn open_image(
    name: &str,
    descriptors: &Arc<Descriptors>,
    base: &BlockdevBase,
    file: wire::FileOptions,
    medium: Medium,
) -> Result<Box<dyn Driver>, SetupError> {
    if file.filename.is_empty() {
        let driver = match medium {
            Medium::File => "file",
            Medium::HostDevice => "host_device",
        };
        return Err(SetupError::new(format!(
            "The '{driver}' block driver requires a file name"
        )));
    }
    if let Some(manager) = file.pr_manager {
        return Err(SetupError::new(format!(
            "No persistent reservation manager with id '{manager}'"
        )));
    }
    let options = FileOptions {
        node_name: name.into(),
        path: Some(os_text::to_os(&file.filename).into()),
        opener: fdset::opener(descriptors, &file.filename)?,
        filename: file.filename,
        cache_direct: base.cache_direct(),
        cache_no_flush: base.cache_no_flush(),
        read_only: base.read_only.unwrap_or(false),
        auto_read_only: base.auto_read_only.unwrap_or(false),
        discard: match unmaps(base) {
            false => Discard::Ignore,
            true => Discard::Unmap,
        },
        locking: match file.locking.unwrap_or_default() {
            wire::Locking::Auto => Locking::Auto,
            wire::Locking::On => Locking::On,
            wire::Locking::Off => Locking::Off,
        },
        force_share: base.force_share.unwrap_or(false),
        aio: file.aio.map(|aio| match aio {
            wire::AioMode::Threads => Aio::Threads,
            wire::AioMode::Native => Aio::Native,
            wire::AioMode::IoUring => Aio::IoUring,
        }),
    };
    let driver = FileDriver::open(medium, options).await?;
    if let Some(note) = driver.info().engine.and_then(|engine| engine.note) {
        tracing::info!("node '{name}': {note}");
    }
    Ok(Box::new(driver))
}

fn raw_options(
    name: &str,
    file: Arc<Node>,
    base: &BlockdevBase,
    raw: &wire::RawOptions,
) -> Result<RawOptions, SetupError> {
    Ok(RawOptions {
        node_name: name.into(),
        file,
        offset: not_negative("offset", raw.offset)?.unwrap_or(0),
        size: not_negative("size", raw.size)?,
        discard: unmaps(base),
        info: node_info(base),
    })
}

fn null_options(
    base: &BlockdevBase,
    null: &wire::NullOptions,
    asynchronous: bool,
) -> Result<NullOptions, SetupError> {
    let latency_ns = null.latency_ns.unwrap_or(0);
    if i64::try_from(latency_ns).is_err() {
        return Err(SetupError::new("latency-ns is invalid"));
    }
    Ok(NullOptions {
        size: not_negative("size", null.size)?,
        read_zeroes: null.read_zeroes,
        latency_ns,
        asynchronous,
        info: node_info(base),
    })
}

fn blkdebug_options(
    name: &str,
    image: Arc<Node>,
    blkdebug: wire::BlkdebugOptions,
) -> Result<BlkdebugOptions, SetupError> {
    let align = blkdebug.align.map(|align| {
        let too_large = || SetupError::new(format!("Cannot meet constraints with align {align}"));
        u32::try_from(align).map_err(|_| too_large())
    });
    let inject_error = blkdebug.inject_error.unwrap_or_default();
    let set_state = blkdebug.set_state.unwrap_or_default();
    Ok(BlkdebugOptions {
        node_name: name.into(),
        image,
        inject_error: inject_error
            .iter()
            .map(inject_rule)
            .collect::<Result<_, _>>()?,
        set_state: set_state
            .iter()
            .map(set_state_rule)
            .collect::<Result<_, _>>()?,
        align: align.transpose()?,
    })
}

fn inject_rule(rule: &wire::BlkdebugInjectError) -> Result<InjectError, SetupError> {
    let default = InjectError::default();
    Ok(InjectError {
        event: event(rule.event),
        iotype: rule.iotype.map(io_type),
        errno: match rule.errno {
            Some(errno) => in_range("errno", errno)?,
            None => default.errno,
        },
        sector: match rule.sector {
            None | Some(-1) => None,
            Some(sector) => Some(in_range("sector", sector)?),
        },
        once: rule.once.unwrap_or(false),
        immediately: rule.immediately.unwrap_or(false),
        state: in_range("state", rule.state.unwrap_or(0))?,
        ..default
    })
}

fn set_state_rule(rule: &wire::BlkdebugSetState) -> Result<SetState, SetupError> {
    Ok(SetState {
        event: event(rule.event),
        state: in_range("state", rule.state.unwrap_or(0))?,
        new_state: in_range("new_state", rule.new_state)?,
    })
}

fn in_range<T: TryFrom<i64>>(name: &str, value: i64) -> Result<T, SetupError> {
    // As errno, T is signed: negative numbers would fit.
    let value = (value >= 0).then_some(value).ok_or(value);
    value
        .and_then(|value| T::try_from(value).map_err(|_| value))
        .map_err(|value| SetupError::new(format!("blkdebug: {name} {value} is out of range")))
}

fn event(event: wire::BlkdebugEvent) -> FaultEvent {
    match event {
        wire::BlkdebugEvent::ReadAio => FaultEvent::ReadAio,
        wire::BlkdebugEvent::WriteAio => FaultEvent::WriteAio,
        wire::BlkdebugEvent::FlushToDisk => FaultEvent::FlushToDisk,
        wire::BlkdebugEvent::PwritevZero => FaultEvent::PwritevZero,
        wire::BlkdebugEvent::None => FaultEvent::None,
    }
}

fn io_type(kind: wire::BlkdebugIoType) -> IoType {
    match kind {
        wire::BlkdebugIoType::Read => IoType::Read,
        wire::BlkdebugIoType::Write => IoType::Write,
        wire::BlkdebugIoType::WriteZeroes => IoType::WriteZeroes,
        wire::BlkdebugIoType::Discard => IoType::Discard,
        wire::BlkdebugIoType::Flush => IoType::Flush,
    }
}
