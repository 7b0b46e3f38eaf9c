//! From the block layer's types to those of the wire.

use std::sync::Arc;
use std::time::SystemTime;

use block::event::EventKind;
use block::jobs::state::Status as AtStatus;
use block::run_control::{BackendState, RunControl};
use block::{
    Action, CacheUse, Direction, ErrorRecord, Event, Export, HeldRecord, LinkStatus, Node,
    RunState, Status, VmLink, WriteCache,
};
use qapi::event::{
    BlockErrorAction, BlockExportDeleted, BlockExportQueueBroken, BlockImageCorrupted,
    BlockIoError, BlockWriteThreshold, Event as WireEvent, IoOperationType, JobStatusChange,
    Shutdown, ShutdownCause,
};
use qapi::options::DetectZeroes;
use qapi::types::{
    BlockDeviceInfo, BlockDeviceIoStatus, BlockErrorInfo, BlockExportInfo, BlockInfo,
    BlockdevCacheInfo, BlockdevChild, CacheUseInfo, HeldRequestInfo, JobStatus,
    RunState as WireRunState, StatusInfo, UnwrittenInfo, VmmInfo,
};
use qapi::wire::EventMessage;

use crate::image;
use crate::storage::Sizes;

/// Where a job is.
pub(crate) fn job_status(status: AtStatus) -> JobStatus {
    match status {
        AtStatus::Created => JobStatus::Created,
        AtStatus::Running => JobStatus::Running,
        AtStatus::Waiting => JobStatus::Waiting,
        AtStatus::Pending => JobStatus::Pending,
        AtStatus::Aborting => JobStatus::Aborting,
        AtStatus::Concluded => JobStatus::Concluded,
        AtStatus::Null => JobStatus::Null,
    }
}

/// An event, as it is sent.
pub(crate) fn event(event: &Event) -> EventMessage {
    let wire = match &event.kind {
        EventKind::BlockIoError(error) => WireEvent::BlockIoError(BlockIoError {
            qom_path: error.device.clone(),
            device: error.device.clone(),
            node_name: Some(error.node_name.clone()),
            operation: match error.direction {
                Direction::Read => IoOperationType::Read,
                Direction::Write => IoOperationType::Write,
            },
            action: match error.action {
                Action::Ignore => BlockErrorAction::Ignore,
                Action::Report => BlockErrorAction::Report,
                Action::Stop => BlockErrorAction::Stop,
            },
            nospace: error
                .status_enabled
                .then_some(error.cause.kind == block::ErrorKind::NoSpace),
            reason: error.cause.reason(),
            x_request: Some(error.operation.name().to_owned()),
            x_offset: Some(error.offset),
            x_length: Some(error.bytes),
            x_errno: Some(error.cause.errno),
            x_cause: Some(error.cause.kind.name().to_owned()),
            x_error_node: error.error_node.as_deref().map(str::to_owned),
            x_incident: error.incident,
        }),
        EventKind::Stop => WireEvent::Stop,
        EventKind::Resume => WireEvent::Resume,
        EventKind::Shutdown { reason } => WireEvent::Shutdown(Shutdown {
            guest: false,
            reason: match *reason {
                "host-qmp-quit" => ShutdownCause::HostQmpQuit,
                "host-signal" => ShutdownCause::HostSignal,
                _ => ShutdownCause::HostError,
            },
        }),
        EventKind::BlockExportDeleted { id, dropped } => {
            WireEvent::BlockExportDeleted(BlockExportDeleted {
                id: id.clone(),
                x_dropped: (*dropped > 0).then_some(*dropped),
            })
        }
        EventKind::JobStatusChange { id, status } => WireEvent::JobStatusChange(JobStatusChange {
            id: id.clone(),
            status: job_status(*status),
        }),
        EventKind::BlockWriteThreshold {
            node_name,
            amount,
            threshold,
        } => WireEvent::BlockWriteThreshold(BlockWriteThreshold {
            node_name: node_name.clone(),
            amount_exceeded: *amount,
            write_threshold: *threshold,
        }),
        EventKind::BlockImageCorrupted(found) => {
            WireEvent::BlockImageCorrupted(BlockImageCorrupted {
                device: found.device.clone(),
                node_name: Some(found.node_name.clone()),
                msg: found.msg.clone(),
                offset: found.offset,
                size: found.bytes,
                fatal: found.fatal,
            })
        }
        EventKind::BlockExportQueueBroken { id, queue, reason } => {
            WireEvent::BlockExportQueueBroken(BlockExportQueueBroken {
                id: id.clone(),
                queue: *queue,
                reason: reason.clone(),
            })
        }
        EventKind::VmLink {
            id,
            type_name,
            status,
        } => WireEvent::VmmLink(vmm(id, type_name, status)),
    };
    EventMessage {
        timestamp: event.at.into(),
        event: wire,
    }
}

/// `query-status`.
pub(crate) fn status(state: RunState, link: Option<&dyn VmLink>) -> StatusInfo {
    let status = match state {
        RunState::Running => WireRunState::Running,
        RunState::Paused => WireRunState::Paused,
        RunState::IoError => WireRunState::IoError,
        RunState::Shutdown => WireRunState::Shutdown,
    };
    StatusInfo {
        running: status == WireRunState::Running,
        status,
        singlestep: false,
        x_vmm: link.map(|link| vmm(link.id(), link.type_name(), &link.status())),
    }
}

/// The link to the VMM.
fn vmm(id: &str, type_name: &str, status: &LinkStatus) -> VmmInfo {
    VmmInfo {
        id: id.to_owned(),
        r#type: type_name.to_owned(),
        state: status.state.name().to_owned(),
        vm: status.vm.name().to_owned(),
        pending: status.pending.map(|pending| pending.name().to_owned()),
        paused_by: status.paused_by.name().to_owned(),
        error: status.error.clone(),
    }
}

/// What the nodes of a backend say.
#[derive(Debug)]
pub(crate) struct BackendNodes {
    root: BlockDeviceInfo,
    warnings: Vec<String>,
}

impl BackendNodes {
    /// `sizes`: what the storage says of them.
    pub(crate) fn new(root: &Arc<Node>, sizes: &Sizes) -> Self {
        let nodes = root.subtree();
        let warnings = nodes
            .iter()
            .filter_map(|node| node.driver().info().warning)
            .collect();
        BackendNodes {
            root: node(root, sizes, false),
            warnings,
        }
    }
}

/// A node, as `query-block` and `query-named-block-nodes` show it; `flat`: without those that it filters.
pub(crate) fn node(node: &Arc<Node>, sizes: &Sizes, flat: bool) -> BlockDeviceInfo {
    let info = node.driver().info();
    let children = node.driver().children();
    let image = image::of(node, sizes, flat);
    let format = info.format.as_deref();
    let quota = node.allocation_limit().map(|limit| limit.quota());
    BlockDeviceInfo {
        file: info.filename,
        node_name: Some(node.name().to_string()),
        ro: node.read_only(),
        drv: node.driver().name().to_owned(),
        backing_file: (node.backing()).map(|backing| backing.driver().info().filename),
        backing_file_depth: image::depth(&image),
        children: children
            .iter()
            .map(|child| BlockdevChild {
                child: child.role().to_owned(),
                node_name: child.name().to_string(),
            })
            .collect(),
        active: true,
        encrypted: false,
        detect_zeroes: match info.detect_zeroes {
            block::DetectZeroes::Off => DetectZeroes::Off,
            block::DetectZeroes::On => DetectZeroes::On,
            block::DetectZeroes::Unmap => DetectZeroes::Unmap,
        },
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        cache: BlockdevCacheInfo {
            writeback: true,
            direct: info.cache_direct,
            no_flush: info.cache_no_flush,
        },
        // As QEMU does: what does not fit is negative.
        write_threshold: node.write_threshold().get().cast_signed(),
        image,
        x_quota_limit: quota.map(|(limit, _)| limit),
        x_quota_used: quota.map(|(_, used)| used),
        x_engine: info.engine.map(|engine| engine.engine.as_str().to_owned()),
        x_l2_cache: format.map(|format| cache_use(format.l2_cache)),
        x_refcount_cache: format.map(|format| cache_use(format.refcount_cache)),
        x_unwritten: node.not_on_disk().map(|left| UnwrittenInfo {
            bytes: left.unwritten.bytes,
            what: left.unwritten.what,
            reason: left.reason,
        }),
    }
}

fn cache_use(cache: CacheUse) -> CacheUseInfo {
    CacheUseInfo {
        size: cache.size,
        used: cache.used,
        misses: cache.misses,
    }
}

fn error(record: &ErrorRecord) -> BlockErrorInfo {
    BlockErrorInfo {
        operation: record.request.op.name().to_owned(),
        offset: record.request.offset,
        length: record.request.bytes,
        errno: record.cause.errno,
        cause: record.cause.kind.name().to_owned(),
        error_node: record.node.as_deref().map(str::to_owned),
        reason: record.cause.reason(),
        timestamp: record.at.into(),
    }
}

/// The backend of an export, as `query-block` shows it.
pub(crate) fn backend(export: &dyn Export, nodes: BackendNodes, state: &RunControl) -> BlockInfo {
    let backend = export.backend();
    let run = state.backend(backend.id());
    let policy = run.map_or_else(|| backend.policy(), |run| run.config().policy);
    let mut warnings: Vec<String> = export.trouble().into_iter().collect();
    if policy.can_stop() {
        warnings.extend(nodes.warnings);
    }
    let mut inserted = nodes.root;
    // Here, as in QEMU, it is the guest's cache, and not the node's.
    let cache = run.map(BackendState::write_cache);
    inserted.cache.writeback = cache != Some(WriteCache::WriteThrough);
    BlockInfo {
        device: export.id().to_owned(),
        qdev: Some(export.id().to_owned()),
        r#type: "unknown".to_owned(),
        removable: false,
        locked: false,
        tray_open: None,
        io_status: run
            .and_then(BackendState::io_status)
            .map(|status| match status {
                Status::Ok => BlockDeviceIoStatus::Ok,
                Status::Nospace => BlockDeviceIoStatus::Nospace,
                Status::Failed => BlockDeviceIoStatus::Failed,
            }),
        inserted: Some(inserted),
        x_werror: Some(policy.werror().name().to_owned()),
        x_rerror: Some(policy.rerror().name().to_owned()),
        x_hold_scope: Some(backend.scope().name().to_owned()),
        x_held: run.map(|run| u64::try_from(run.held().len()).unwrap_or(u64::MAX)),
        x_incident: run
            .and_then(BackendState::incident)
            .map(|incident| incident.number),
        x_incident_since: run.and_then(BackendState::incident).map(|i| i.since.into()),
        x_incident_cause: run
            .and_then(|run| run.incident()?.cause)
            .map(|cause| cause.kind.name().to_owned()),
        x_incident_node: run
            .and_then(|run| run.incident()?.node.as_deref())
            .map(str::to_owned),
        x_incidents: run.map(BackendState::incidents),
        x_first_error: run.and_then(BackendState::first_error).map(error),
        x_last_error: run.and_then(BackendState::last_error).map(error),
        x_warnings: (!warnings.is_empty()).then_some(warnings),
    }
}

/// An export, as `query-block-exports` shows it.
pub(crate) fn export(export: &dyn Export, is_ending: bool) -> BlockExportInfo {
    BlockExportInfo {
        id: export.id().to_owned(),
        r#type: export.type_name().to_owned(),
        node_name: export.backend().node().name().to_string(),
        shutting_down: is_ending,
        x_writable: Some(export.writable()),
        x_client: Some(export.has_client()),
        x_trouble: export.trouble(),
    }
}

/// A held request, as `x-query-held` shows it.
pub(crate) fn held(export: &str, record: &HeldRecord) -> HeldRequestInfo {
    HeldRequestInfo {
        id: export.to_owned(),
        queue: record.request.tag.queue,
        head: record.request.tag.head,
        operation: record.request.op.name().to_owned(),
        offset: record.request.offset,
        length: record.request.bytes,
        errno: record.cause.map(|cause| cause.errno),
        cause: record.cause.map(|cause| cause.kind.name().to_owned()),
        error_node: record.node.as_deref().map(str::to_owned),
        reason: record.cause.map(block::Cause::reason),
        attempts: record.attempts,
        since: SystemTime::into(record.since),
    }
}
