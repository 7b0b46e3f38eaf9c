//! What the front end says to a back end, and how it takes wrong answers.
//!
//! The back end is a scripted one: it answers every message plausibly, notes what it was told, and
//! can be told to answer one kind of message differently. It does no I/O.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]
#![allow(
    clippy::unwrap_used,
    reason = "a back end that panics hangs up, which fails the test"
)]

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use standfast_frontend::memory::Mapping;
use standfast_frontend::protocol::{feature, message::*, protocol_feature};
use standfast_frontend::{Disk, FrontendError, Options, Request, Violation};
use tempfile::TempDir;

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::EVENT_IDX;
const PROTOCOL: u64 = protocol_feature::MQ
    | protocol_feature::REPLY_ACK
    | protocol_feature::CONFIG
    | protocol_feature::BACKEND_REQ
    | protocol_feature::INFLIGHT_SHMFD;

/// How the back end treats one kind of message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Treatment {
    Silence,
    HangUp,
    Refusal,
    /// An answer with this number.
    Number(u64),
    /// The answer to another message.
    WrongCode,
    /// An answer announced to be larger than any.
    Oversize,
}

#[derive(Debug, Default)]
struct Record {
    messages: Vec<u32>,
    bases: Vec<u64>,
    /// Inode of the region handed over, once per SET_INFLIGHT_FD.
    regions: Vec<u64>,
    channel: Option<OwnedFd>,
}

struct BackEnd {
    dir: TempDir,
    record: Arc<Mutex<Record>>,
    special: Arc<Mutex<Option<(u32, Treatment)>>>,
}

impl BackEnd {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let listener = UnixListener::bind(dir.path().join("socket"))?;
        let (record, special) = (Arc::default(), Arc::default());
        let back_end = Self {
            dir,
            record: Arc::clone(&record),
            special: Arc::clone(&special),
        };
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(&stream, &record, &special);
            }
        });
        Ok(back_end)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn treat(&self, code: u32, treatment: Treatment) {
        *self.special.lock().unwrap() = Some((code, treatment));
    }

    fn record<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.record.lock().unwrap())
    }

    fn take_messages(&self) -> Vec<u32> {
        self.record(|record| std::mem::take(&mut record.messages))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn read(stream: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut buffer[done..])];
        match rustix::net::recvmsg(stream, &mut slices, &mut control, RecvFlags::empty())?.bytes {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
    }
    Ok(())
}

fn answer(stream: &UnixStream, code: u32, payload: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = [code, 0x5, size].map(u32::to_ne_bytes).concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [&header, payload].concat();
    rustix::net::sendmsg(
        stream,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn serve(
    mut stream: &UnixStream,
    record: &Mutex<Record>,
    special: &Mutex<Option<(u32, Treatment)>>,
) -> io::Result<()> {
    // What a back end with nothing in flight answers to GET_VRING_BASE.
    let mut base = [0_u32; 8];
    loop {
        let (mut header, mut fds) = ([0; 12], Vec::new());
        read(stream, &mut header, &mut fds)?;
        let (code, flags) = (word(&header, 0), word(&header, 4));
        let mut payload = vec![0; usize::try_from(word(&header, 8)).unwrap()];
        read(stream, &mut payload, &mut fds)?;
        let mut record = record.lock().unwrap();
        record.messages.push(code);
        let treatment = special.lock().unwrap().filter(|(which, _)| *which == code);
        match treatment.map(|(_, treatment)| treatment) {
            None => {}
            Some(Treatment::Silence) => continue,
            Some(Treatment::HangUp) => return Ok(()),
            Some(Treatment::Refusal) => {
                answer(stream, code, &1_u64.to_ne_bytes(), None)?;
                continue;
            }
            Some(Treatment::Number(number)) => {
                answer(stream, code, &number.to_ne_bytes(), None)?;
                continue;
            }
            Some(Treatment::WrongCode) => {
                answer(stream, code + 1, &[0; 8], None)?;
                continue;
            }
            Some(Treatment::Oversize) => {
                stream.write_all(&[code, 0x5, 1 << 20].map(u32::to_ne_bytes).concat())?;
                continue;
            }
        }
        let number = |value: u64| answer(stream, code, &value.to_ne_bytes(), None);
        match code {
            GET_FEATURES => number(FEATURES)?,
            GET_PROTOCOL_FEATURES => number(PROTOCOL)?,
            GET_QUEUE_NUM => number(8)?,
            GET_CONFIG => answer(stream, code, &payload, None)?,
            GET_VRING_BASE => {
                let queue = usize::try_from(word(&payload, 0)).unwrap();
                payload[4..].copy_from_slice(&base[queue].to_ne_bytes());
                answer(stream, code, &payload, None)?;
            }
            GET_INFLIGHT_FD => {
                let region = Mapping::new(16384).unwrap();
                payload[..8].copy_from_slice(&16384_u64.to_ne_bytes());
                answer(
                    stream,
                    code,
                    &payload,
                    Some(&region.fd().try_clone_to_owned()?),
                )?;
            }
            _ => {
                if code == SET_VRING_BASE {
                    base[usize::try_from(word(&payload, 0)).unwrap()] = word(&payload, 4);
                    record.bases.push(word(&payload, 4).into());
                } else if code == SET_INFLIGHT_FD {
                    record.regions.push(rustix::fs::fstat(&fds[0])?.st_ino);
                } else if code == SET_BACKEND_REQ_FD {
                    record.channel = fds.pop();
                }
                if flags & 0x8 != 0 {
                    number(0)?;
                }
            }
        }
    }
}

fn options() -> Options {
    Options {
        queues: 2,
        queue_size: 64,
        memory_bytes: 1 << 20,
        timeout: Duration::from_millis(500),
        ..Options::default()
    }
}

#[test]
fn a_connection_negotiates_and_sets_up_every_ring_in_order() -> Result {
    let back_end = BackEnd::start()?;
    let disk = Disk::connect(back_end.path(), options())?;
    assert_eq!(
        (disk.features(), disk.protocol_features()),
        (FEATURES, PROTOCOL)
    );
    let ring = [
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ADDR,
        SET_VRING_ERR,
        SET_VRING_CALL,
        SET_VRING_KICK,
    ];
    let negotiation = [
        GET_FEATURES,
        GET_PROTOCOL_FEATURES,
        SET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        SET_OWNER,
        SET_BACKEND_REQ_FD,
        GET_CONFIG,
    ];
    let start = [
        SET_FEATURES,
        GET_INFLIGHT_FD,
        SET_INFLIGHT_FD,
        SET_MEM_TABLE,
    ];
    let enable = [SET_VRING_ENABLE; 2];
    let expected = [&negotiation[..], &start, &ring, &ring, &enable].concat();
    assert_eq!(back_end.take_messages(), expected);
    Ok(())
}

/// QEMU sends nearly the same messages for a VM stop and for a device reset; only the inflight
/// region tells them apart.
#[test]
fn the_inflight_region_survives_stop_and_reconnect_but_not_a_reset() -> Result {
    let back_end = BackEnd::start()?;
    let mut disk = Disk::connect(back_end.path(), options())?;
    disk.inflight().unwrap().mapping().write(100, b"mine");
    assert_eq!(disk.stop()?, [0, 0]);
    disk.start()?;
    let state = disk.disconnect();
    let mut disk = Disk::reconnect(state, back_end.path()).map_err(|(error, _)| error)?;
    let mut found = [0; 4];
    disk.inflight().unwrap().mapping().read(100, &mut found);
    assert_eq!(&found, b"mine");
    disk.reset()?;
    disk.inflight().unwrap().mapping().read(100, &mut found);
    assert_eq!(found, [0; 4]);

    let regions = back_end.record(|record| record.regions.clone());
    assert_eq!(regions.len(), 4);
    assert!(regions[0] == regions[1] && regions[1] == regions[2] && regions[2] != regions[3]);
    let asked = back_end
        .take_messages()
        .iter()
        .filter(|code| **code == GET_INFLIGHT_FD)
        .count();
    assert_eq!(asked, 2);
    Ok(())
}

#[test]
fn a_stop_hands_the_answered_base_back_and_a_reset_begins_at_zero() -> Result {
    let back_end = BackEnd::start()?;
    let mut disk = Disk::connect(
        back_end.path(),
        Options {
            queues: 1,
            ..options()
        },
    )?;
    for _ in 0..3 {
        disk.submit(0, Request::Flush)?;
    }
    back_end.treat(GET_VRING_BASE, Treatment::Number(2 << 32));
    assert_eq!(disk.stop()?, [2]);
    disk.start()?;
    assert_eq!(disk.reset()?.len(), 3);
    assert_eq!(back_end.record(|record| record.bases.clone()), [0, 2, 0]);
    assert_eq!(disk.violations(), []);

    back_end.treat(GET_VRING_BASE, Treatment::Number(1 << 32));
    assert_eq!(disk.stop()?, [0]);
    let bad = Violation::BadBase {
        queue: 0,
        base: 1,
        used: 0,
        avail: 0,
    };
    assert_eq!(disk.violations(), [bad]);
    Ok(())
}

#[test]
fn a_back_end_that_keeps_the_stop_waiting_is_timed_out() -> Result {
    let back_end = BackEnd::start()?;
    let mut disk = Disk::connect(back_end.path(), options())?;
    disk.submit(0, Request::Flush)?;
    back_end.treat(GET_VRING_BASE, Treatment::Silence);
    let started = Instant::now();
    let error = disk.stop().unwrap_err();
    assert!(
        matches!(
            error,
            FrontendError::Timeout {
                during: "GET_VRING_BASE",
                ..
            }
        ),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(60));
    // The VM lives on with another back end: the ring is resumed from its used index.
    let other = BackEnd::start()?;
    let disk = Disk::reconnect(disk.disconnect(), other.path()).map_err(|(error, _)| error)?;
    assert_eq!(
        (disk.outstanding(0), disk.outstanding_tokens().len()),
        (1, 1)
    );
    assert_eq!(other.record(|record| record.bases.clone()), [0, 0]);
    Ok(())
}

#[test]
fn wrong_answers_are_errors_that_name_the_message() -> Result {
    for (code, treatment, expected) in [
        (
            SET_VRING_NUM,
            Treatment::Refusal,
            "refused SET_VRING_NUM (code 1)",
        ),
        (
            SET_MEM_TABLE,
            Treatment::Number(22),
            "refused SET_MEM_TABLE (code 22)",
        ),
        (
            GET_FEATURES,
            Treatment::Number(feature::VERSION_1),
            "does not offer protocol features",
        ),
        (
            GET_FEATURES,
            Treatment::WrongCode,
            "malformed answer to GET_FEATURES: code 2",
        ),
        (
            GET_PROTOCOL_FEATURES,
            Treatment::Number(1),
            "does not offer CONFIG",
        ),
        (
            GET_QUEUE_NUM,
            Treatment::Number(1),
            "2 queues, the device has 1",
        ),
        (
            GET_CONFIG,
            Treatment::Number(0),
            "malformed answer to GET_CONFIG: 8 bytes",
        ),
        (GET_CONFIG, Treatment::Oversize, "payload of 1048576 bytes"),
        (
            GET_INFLIGHT_FD,
            Treatment::Number(0),
            "malformed answer to GET_INFLIGHT_FD",
        ),
        (
            SET_OWNER,
            Treatment::HangUp,
            "closed the connection during SET_OWNER",
        ),
        (SET_OWNER, Treatment::Silence, "no answer to SET_OWNER"),
    ] {
        let back_end = BackEnd::start()?;
        back_end.treat(code, treatment);
        let error = Disk::connect(back_end.path(), options())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    Ok(())
}

#[test]
fn a_reconnect_to_a_back_end_that_offers_less_fails_and_can_be_repeated() -> Result {
    let back_end = BackEnd::start()?;
    let disk = Disk::connect(back_end.path(), options())?;
    let less = BackEnd::start()?;
    less.treat(
        GET_FEATURES,
        Treatment::Number(FEATURES & !feature::EVENT_IDX),
    );
    let (error, state) = Disk::reconnect(disk.disconnect(), less.path()).unwrap_err();
    let lost = matches!(
        error,
        FrontendError::FeaturesLost {
            missing: feature::EVENT_IDX,
            ..
        }
    );
    assert!(lost, "{error}");
    Disk::reconnect(state, back_end.path()).map_err(|(error, _)| error)?;
    Ok(())
}

#[test]
fn configuration_changes_are_counted_and_acknowledged() -> Result {
    let back_end = BackEnd::start()?;
    let mut disk = Disk::connect(back_end.path(), options())?;
    assert_eq!(disk.take_config_changes()?, 0);
    let channel = back_end.record(|record| record.channel.take()).unwrap();
    let mut channel = UnixStream::from(channel);
    for flags in [0x1_u32, 0x9] {
        channel.write_all(&[2, flags, 0].map(u32::to_ne_bytes).concat())?;
    }
    assert_eq!(disk.take_config_changes()?, 2);
    let mut reply = [0; 20];
    read(&channel, &mut reply, &mut Vec::new())?;
    assert_eq!(reply[..8], [2_u32, 0x5].map(u32::to_ne_bytes).concat());
    channel.write_all(&[3, 0x1, 0].map(u32::to_ne_bytes).concat())?;
    assert!(disk.take_config_changes().is_err());
    Ok(())
}

#[test]
fn added_memory_is_announced_and_used() -> Result {
    let back_end = BackEnd::start()?;
    let mut disk = Disk::connect(back_end.path(), options())?;
    back_end.take_messages();
    let data = vec![0; 1 << 20];
    let too_much = Request::Write {
        sector: 0,
        data: &data,
    };
    assert!(disk.submit(0, too_much).is_err());
    disk.add_memory(1 << 20)?;
    assert_eq!(back_end.take_messages(), [SET_MEM_TABLE]);
    disk.submit(0, too_much)?;
    assert_eq!(disk.memory().regions().len(), 3);
    Ok(())
}
