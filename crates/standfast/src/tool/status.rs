//! `standfast status`: how the disks of a daemon are, as a table.

use std::io::{self, Write};
use std::path::Path;

use qapi::types::{BlockErrorInfo, BlockInfo, RunState, StatusInfo, VmmInfo};
use serde_json::json;

use super::client::Client;
use super::failure::Failure;
use super::table::table;
use super::{size, time};

/// Prints the run state and every disk.
///
/// # Errors
/// If there is no daemon, or what it says cannot be printed.
pub fn show(socket: &Path, json: bool) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let status: StatusInfo = client.query("query-status")?;
    let disks: Vec<BlockInfo> = client.query("query-block")?;
    let text = if json {
        let all = json!({"status": status, "disks": disks});
        format!("{all:#}\n")
    } else {
        render(&status, &disks)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The whole text, with its final newline.
fn render(status: &StatusInfo, disks: &[BlockInfo]) -> String {
    let meaning = match status.status {
        RunState::Running => "requests are executed",
        RunState::Paused => "stopped by 'stop'; 'cont' goes on",
        RunState::IoError => "stopped by an I/O error; 'cont' retries what is held",
        RunState::Shutdown => "the daemon ends",
    };
    let mut text = format!("Run state: {} ({meaning})\n", status.status.name());
    if let Some(vmm) = &status.x_vmm {
        text.push_str(&link(vmm));
    }
    if disks.is_empty() {
        text.push_str("No disks are exported.\n");
        return text;
    }
    let head = [
        "DISK",
        "NODE",
        "SIZE",
        "I/O STATUS",
        "HELD",
        "SINCE",
        "POLICY",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(disks.iter().map(row));
    text.push('\n');
    text.push_str(&table(&rows));
    let notes: Vec<_> = disks.iter().flat_map(notes).collect();
    if !notes.is_empty() {
        text.push('\n');
        text.push_str(&notes.join("\n"));
        text.push('\n');
    }
    text
}

/// The line of the link to the VMM, and one of what is wrong.
fn link(vmm: &VmmInfo) -> String {
    let paused_by = match vmm.paused_by.as_str() {
        "nobody" => "",
        "link" => ", paused by the link",
        _ => ", paused by somebody else: 'cont --force' resumes it, too",
    };
    let pending = match vmm.pending.as_deref() {
        None => String::new(),
        Some(pending) => format!(", still to do: {pending}"),
    };
    let error = match &vmm.error {
        None => String::new(),
        Some(error) => format!("  {error}\n"),
    };
    let VmmInfo {
        id,
        r#type,
        state,
        vm,
        ..
    } = vmm;
    format!("VM: {vm}{paused_by} (link '{id}', {type}: {state}{pending})\n{error}")
}

fn row(disk: &BlockInfo) -> [String; 7] {
    let none = || "-".to_owned();
    let node = disk.inserted.as_ref();
    let bytes = node.and_then(|node| u64::try_from(node.image.virtual_size).ok());
    [
        disk.device.clone(),
        node.and_then(|node| node.node_name.clone())
            .unwrap_or_else(none),
        bytes.map_or_else(none, size::human),
        disk.io_status
            .map_or_else(none, |status| status.name().to_owned()),
        disk.x_held.map_or_else(none, |held| held.to_string()),
        disk.x_incident_since.as_ref().map_or_else(none, time::ago),
        policy(disk),
    ]
}

fn policy(disk: &BlockInfo) -> String {
    let words = [
        ("werror", &disk.x_werror),
        ("rerror", &disk.x_rerror),
        ("hold-scope", &disk.x_hold_scope),
    ];
    let words = words
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_deref()?)));
    words.collect::<Vec<_>>().join(" ")
}

fn notes(disk: &BlockInfo) -> Vec<String> {
    let name = &disk.device;
    let mut notes = Vec::new();
    if disk.x_held.is_some_and(|held| held > 0)
        && let Some(error) = disk.x_first_error.as_ref().or(disk.x_last_error.as_ref())
    {
        notes.push(format!("{name}: {}", cause(disk, error)));
    }
    let node = disk.inserted.as_ref();
    if let Some((limit, used)) =
        node.and_then(|node| Some((node.x_quota_limit?, node.x_quota_used?)))
    {
        let (used, limit) = (size::human(used), size::human(limit));
        notes.push(format!("{name}: {used} of {limit} allocated"));
    }
    let warnings = disk.x_warnings.iter().flatten();
    notes.extend(warnings.map(|warning| format!("{name}: warning: {warning}")));
    notes
}

fn cause(disk: &BlockInfo, error: &BlockErrorInfo) -> String {
    let BlockErrorInfo {
        operation,
        offset,
        length,
        cause,
        reason,
        timestamp,
        ..
    } = error;
    let range = match operation.as_str() {
        "flush" => String::new(),
        _ => format!(" of {length} bytes at offset {offset}"),
    };
    let below = disk.failed_below(error);
    let below = below.map_or_else(String::new, |node| format!("node '{node}': "));
    format!(
        "{cause}: {below}{reason}: {operation}{range}, first at {}",
        time::utc(timestamp)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> BlockInfo {
        serde_json::from_value(json!({
            "device": "vda", "type": "unknown", "removable": false, "locked": false,
            "io-status": "nospace", "x-werror": "stop", "x-rerror": "report",
            "x-hold-scope": "vm", "x-held": 32, "x-incident": 1,
            "x-incident-since": {"seconds": i64::MAX, "microseconds": 0},
            "x-first-error": {
                "operation": "write", "offset": 4096, "length": 512, "errno": 28,
                "cause": "nospace", "reason": "No space left on device",
                "timestamp": {"seconds": 0, "microseconds": 0}
            },
            "x-warnings": ["the node is buffered"],
            "inserted": {
                "file": "f", "node-name": "disk0", "ro": false, "drv": "quota",
                "backing_file_depth": 0, "encrypted": false, "detect_zeroes": "off",
                "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
                "cache": {"writeback": true, "direct": true, "no-flush": false},
                "write_threshold": 0,
                "image": {"filename": "f", "format": "quota", "virtual-size": 1 << 26},
                "x-quota-limit": 1 << 25, "x-quota-used": 1 << 25
            }
        }))
        .unwrap()
    }

    fn status(status: &str) -> StatusInfo {
        let running = status == "running";
        serde_json::from_value(json!({"status": status, "running": running, "singlestep": false}))
            .unwrap()
    }

    #[test]
    fn a_held_disk_says_why() {
        assert_eq!(
            render(&status("io-error"), &[disk()]),
            "\
Run state: io-error (stopped by an I/O error; 'cont' retries what is held)

DISK  NODE   SIZE    I/O STATUS  HELD  SINCE  POLICY
vda   disk0  64 MiB  nospace     32    0 s    werror=stop rerror=report hold-scope=vm

vda: nospace: No space left on device: write of 512 bytes at offset 4096, first at \
1970-01-01T00:00:00.000Z
vda: 32 MiB of 32 MiB allocated
vda: warning: the node is buffered
"
        );
    }

    #[test]
    fn a_node_below_that_is_full_is_named() {
        let mut disk = disk();
        let error_node = |disk: &mut BlockInfo, node: &str| {
            disk.x_first_error.as_mut().unwrap().error_node = Some(node.to_owned());
            notes(disk).swap_remove(0)
        };
        let own = error_node(&mut disk, "disk0");
        assert!(
            own.starts_with("vda: nospace: No space left on device: write"),
            "{own}"
        );
        let below = error_node(&mut disk, "file0");
        assert_eq!(below, own.replace("No space", "node 'file0': No space"));
    }

    #[test]
    fn the_link_is_shown() {
        let mut status = status("io-error");
        status.x_vmm = serde_json::from_value(json!({
            "id": "vm0", "type": "vmm-qemu", "state": "connected", "vm": "paused",
            "paused-by": "link",
        }))
        .unwrap();
        let line = |status: &StatusInfo| {
            let text = render(status, &[]);
            text.split_once('\n').unwrap().1.to_owned()
        };
        let rest = "No disks are exported.\n";
        assert_eq!(
            line(&status),
            format!("VM: paused, paused by the link (link 'vm0', vmm-qemu: connected)\n{rest}")
        );
        let vmm = status.x_vmm.as_mut().unwrap();
        vmm.state = "down".to_owned();
        vmm.vm = "running".to_owned();
        vmm.pending = Some("pause".to_owned());
        vmm.paused_by = "nobody".to_owned();
        vmm.error = Some("cannot connect".to_owned());
        assert_eq!(
            line(&status),
            format!(
                "VM: running (link 'vm0', vmm-qemu: down, still to do: pause)\n  cannot connect\n\
                 {rest}"
            )
        );
    }

    #[test]
    fn no_disk_is_said() {
        assert_eq!(
            render(&status("running"), &[]),
            "Run state: running (requests are executed)\nNo disks are exported.\n"
        );
    }
}
