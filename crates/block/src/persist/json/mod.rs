//! The JSON form of what one daemon leaves to the next.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::driver::loss::LOSS_NUMBER_MAX;
use crate::persist::saved::{SavedBackend, SavedLoss, SavedState};
use crate::words::error::{Cause, ErrorKind};
use crate::words::image::Image;
use crate::words::incident::{ErrorRecord, Incident};
use crate::words::io_status::{IoStatus, Status};
use crate::words::request::{Operation, Request, Tag};
use crate::words::run_state::RunState;
use crate::words::stats::{BackendStats, ClassStats};
use crate::words::vm::VmPause;
use crate::words::write_cache::WriteCache;

/// Of the JSON form. A daemon ignores what another version has written.
const VERSION: u32 = 1;

/// The largest errno there is.
const ERRNO_MAX: i32 = 4095;

/// Why bytes are no saved state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the JSON that is expected.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Another version of the form.
    #[error("it has version {0}, this daemon knows {VERSION}")]
    Version(u32),
    /// A member with an impossible value.
    #[error("its member '{0}' makes no sense")]
    Value(&'static str),
}

impl SavedState {
    /// The JSON form, with the id of the boot that it belongs to.
    pub fn encode(&self, boot_id: &str) -> Vec<u8> {
        let json = JsonState {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            run_state: self.run_state.name().to_owned(),
            backends: (self.backends.iter().chain(&self.unclaimed))
                .map(JsonBackend::from)
                .collect(),
            losses: self.losses.clone(),
            vm_pause: self.vm_pause.name().to_owned(),
        };
        // Strings and numbers only: there is nothing that JSON could not say.
        serde_json::to_vec(&json).unwrap_or_default()
    }

    /// The state in JSON form, and the id of its boot.
    ///
    /// # Errors
    /// Any other bytes.
    pub fn decode(json: &[u8]) -> Result<(Self, String), DecodeError> {
        // The version first: another one may look different.
        let JsonVersion { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let JsonState {
            boot_id,
            run_state,
            backends,
            losses,
            vm_pause,
            ..
        } = serde_json::from_slice(json)?;
        let pauses = [VmPause::Nobody, VmPause::Link, VmPause::Other];
        let states = [RunState::Running, RunState::Paused, RunState::IoError];
        if !losses.iter().all(|loss| is_errno(loss.errno)) {
            return Err(DecodeError::Value("errno"));
        }
        // One more must be possible.
        if losses.iter().any(|loss| loss.number > LOSS_NUMBER_MAX) {
            return Err(DecodeError::Value("number"));
        }
        let backends = backends.into_iter().map(SavedBackend::try_from);
        let state = Self {
            run_state: named(&states, RunState::name, &run_state, "run-state")?,
            backends: backends.collect::<Result<_, _>>()?,
            unclaimed: Vec::new(),
            losses,
            vm_pause: named(&pauses, VmPause::name, &vm_pause, "vm-pause")?,
        };
        Ok((state, boot_id))
    }
}

fn is_errno(errno: i32) -> bool {
    (1..=ERRNO_MAX).contains(&errno)
}

/// The value that has this name.
fn named<T: Copy>(
    all: &[T],
    name: impl Fn(T) -> &'static str,
    text: &str,
    member: &'static str,
) -> Result<T, DecodeError> {
    let found = all.iter().copied().find(|&value| name(value) == text);
    found.ok_or(DecodeError::Value(member))
}

#[derive(Deserialize)]
struct JsonVersion {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct JsonState {
    version: u32,
    boot_id: String,
    run_state: String,
    backends: Vec<JsonBackend>,
    losses: Vec<SavedLoss>,
    /// Daemons before there were links wrote none.
    #[serde(default = "nobody")]
    vm_pause: String,
}

fn nobody() -> String {
    VmPause::Nobody.name().to_owned()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct JsonBackend {
    device: String,
    node: String,
    has_device: bool,
    io_status: String,
    incidents: u64,
    incident: Option<JsonIncident>,
    first_error: Option<JsonError>,
    last_error: Option<JsonError>,
    /// Daemons of old wrote none.
    #[serde(default = "unknown")]
    write_cache: String,
    /// Daemons of old wrote none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<JsonImage>,
    #[serde(default)]
    connected: bool,
    #[serde(default)]
    losses_accepted: u32,
    stats: JsonStats,
}

fn unknown() -> String {
    WriteCache::Unknown.name().to_owned()
}

#[derive(Serialize, Deserialize)]
struct JsonImage {
    name: String,
    object: String,
}

#[derive(Serialize, Deserialize)]
struct JsonIncident {
    number: u64,
    since: JsonTime,
    /// Daemons before there was one wrote none.
    #[serde(default)]
    cause: Option<JsonCause>,
    /// As these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct JsonCause {
    errno: i32,
    /// Where it is not what the errno stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct JsonError {
    #[serde(flatten)]
    cause: JsonCause,
    /// Daemons of old wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    operation: String,
    unmap: bool,
    queue: u16,
    head: u16,
    offset: u64,
    bytes: u64,
    at: JsonTime,
}

/// Seconds and nanoseconds since 1970.
#[derive(Serialize, Deserialize)]
struct JsonTime(u64, u32);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct JsonStats {
    rd: JsonClass,
    wr: JsonClass,
    flush: JsonClass,
    unmap: JsonClass,
    attempts: u64,
    holds: u64,
    hold_time_ns: u64,
    events_merged: u64,
    #[serde(default)]
    dropped: u64,
    #[serde(default)]
    lost: u64,
}

/// Bytes, operations, total time in nanoseconds, failed, invalid.
#[derive(Serialize, Deserialize)]
struct JsonClass(u64, u64, u64, u64, u64);

impl From<&SavedBackend> for JsonBackend {
    fn from(saved: &SavedBackend) -> Self {
        Self {
            device: saved.device.clone(),
            node: saved.node.clone(),
            has_device: saved.io_status.has_device(),
            io_status: saved.io_status.get().name().to_owned(),
            incidents: saved.incidents,
            incident: saved.incident.as_ref().map(|incident| JsonIncident {
                number: incident.number,
                since: incident.since.into(),
                cause: incident.cause.map(JsonCause::from),
                node: incident.node.as_deref().map(str::to_owned),
            }),
            first_error: saved.first_error.as_ref().map(JsonError::from),
            last_error: saved.last_error.as_ref().map(JsonError::from),
            write_cache: saved.write_cache.name().to_owned(),
            image: saved.image.as_ref().map(|image| JsonImage {
                name: image.name().to_owned(),
                object: image.object().to_owned(),
            }),
            connected: saved.connected,
            losses_accepted: saved.losses_accepted,
            stats: (&saved.stats).into(),
        }
    }
}

impl TryFrom<JsonBackend> for SavedBackend {
    type Error = DecodeError;

    fn try_from(json: JsonBackend) -> Result<Self, DecodeError> {
        let statuses = [Status::Ok, Status::Nospace, Status::Failed];
        let status = named(&statuses, Status::name, &json.io_status, "io-status")?;
        let incident = match json.incident {
            None => None,
            Some(JsonIncident {
                number,
                since,
                cause,
                node,
            }) => Some(Incident {
                number,
                since: since.try_into()?,
                cause: cause.map(Cause::try_from).transpose()?,
                node: node.map(Arc::from),
            }),
        };
        Ok(Self {
            device: json.device,
            node: json.node,
            io_status: IoStatus::restored(json.has_device, status),
            // One more must be possible.
            incidents: Some(json.incidents)
                .filter(|&incidents| incidents < u64::MAX)
                .ok_or(DecodeError::Value("incidents"))?,
            incident,
            first_error: json.first_error.map(ErrorRecord::try_from).transpose()?,
            last_error: json.last_error.map(ErrorRecord::try_from).transpose()?,
            write_cache: named(
                &WriteCache::ALL,
                WriteCache::name,
                &json.write_cache,
                "write-cache",
            )?,
            image: (json.image).map(|image| Image::new(&image.name, &image.object)),
            connected: json.connected,
            losses_accepted: Some(json.losses_accepted)
                .filter(|&number| number <= LOSS_NUMBER_MAX)
                .ok_or(DecodeError::Value("losses-accepted"))?,
            stats: json.stats.into(),
        })
    }
}

impl From<Cause> for JsonCause {
    fn from(Cause { kind, errno }: Cause) -> Self {
        let other = kind != ErrorKind::of_errno(errno);
        Self {
            errno,
            cause: other.then(|| kind.name().to_owned()),
        }
    }
}

impl TryFrom<JsonCause> for Cause {
    type Error = DecodeError;

    fn try_from(JsonCause { errno, cause }: JsonCause) -> Result<Self, DecodeError> {
        if !is_errno(errno) {
            return Err(DecodeError::Value("errno"));
        }
        let kind = match cause {
            None => ErrorKind::of_errno(errno),
            Some(name) => named(&ErrorKind::ALL, ErrorKind::name, &name, "cause")?,
        };
        Ok(Self { kind, errno })
    }
}

impl From<&ErrorRecord> for JsonError {
    fn from(record: &ErrorRecord) -> Self {
        let request = &record.request;
        Self {
            cause: record.cause.into(),
            node: record.node.as_deref().map(str::to_owned),
            operation: request.op.name().to_owned(),
            unmap: request.op == Operation::WriteZeroes { unmap: true },
            queue: request.tag.queue,
            head: request.tag.head,
            offset: request.offset,
            bytes: request.bytes,
            at: record.at.into(),
        }
    }
}

impl TryFrom<JsonError> for ErrorRecord {
    type Error = DecodeError;

    fn try_from(json: JsonError) -> Result<Self, DecodeError> {
        let operations = [
            Operation::Read,
            Operation::Write,
            Operation::Flush,
            Operation::Discard,
            Operation::WriteZeroes { unmap: json.unmap },
        ];
        Ok(Self {
            cause: json.cause.try_into()?,
            node: json.node.map(Arc::from),
            request: Request {
                tag: Tag {
                    queue: json.queue,
                    head: json.head,
                },
                op: named(&operations, Operation::name, &json.operation, "operation")?,
                offset: json.offset,
                bytes: json.bytes,
            },
            at: json.at.try_into()?,
        })
    }
}

impl From<SystemTime> for JsonTime {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        Self(since.as_secs(), since.subsec_nanos())
    }
}

impl TryFrom<JsonTime> for SystemTime {
    type Error = DecodeError;

    fn try_from(JsonTime(seconds, nanoseconds): JsonTime) -> Result<Self, DecodeError> {
        // Duration::new would panic if the nanoseconds made more seconds than there can be.
        let valid = nanoseconds < 1_000_000_000;
        let since = valid.then(|| Duration::new(seconds, nanoseconds));
        since
            .and_then(|since| Self::UNIX_EPOCH.checked_add(since))
            .ok_or(DecodeError::Value("time"))
    }
}

impl From<&BackendStats> for JsonStats {
    fn from(stats: &BackendStats) -> Self {
        let class = |class: ClassStats| {
            JsonClass(
                class.bytes,
                class.operations,
                class.total_time_ns,
                class.failed,
                class.invalid,
            )
        };
        Self {
            rd: class(stats.rd),
            wr: class(stats.wr),
            flush: class(stats.flush),
            unmap: class(stats.unmap),
            attempts: stats.attempts,
            holds: stats.holds,
            hold_time_ns: stats.hold_time_ns,
            events_merged: stats.events_merged,
            dropped: stats.dropped,
            lost: stats.lost,
        }
    }
}

impl From<JsonStats> for BackendStats {
    fn from(json: JsonStats) -> Self {
        let class = |JsonClass(bytes, operations, total_time_ns, failed, invalid)| ClassStats {
            bytes,
            operations,
            total_time_ns,
            failed,
            invalid,
        };
        Self {
            rd: class(json.rd),
            wr: class(json.wr),
            flush: class(json.flush),
            unmap: class(json.unmap),
            attempts: json.attempts,
            holds: json.holds,
            hold_time_ns: json.hold_time_ns,
            events_merged: json.events_merged,
            dropped: json.dropped,
            lost: json.lost,
            idle: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
