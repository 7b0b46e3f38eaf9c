//! The front end against qemu-storage-daemon, an independent back end.
//!
//! It shows that the front end speaks the protocol as others understand it, and that the checker
//! passes a correct disk. qemu-storage-daemon offers no inflight region.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use frontend::protocol::{STATUS_IOERR, feature};
use frontend::ring::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use frontend::{Disk, FrontendError, Options, RawChain, Request, Segment, Shape, SubmitError};
use serde_json::{Value, json};
use standfast_testkit::{Daemon, Driver, Mix, Pattern, Qmp, Workload};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);
const IMAGE_BYTES: u64 = 8 << 20;

/// A storage daemon with one exported raw image of zeroes, and its monitor.
struct Storage {
    daemon: Daemon,
    dir: TempDir,
}

impl Storage {
    fn start(queues: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        File::create(dir.path().join("image"))?.set_len(IMAGE_BYTES)?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let daemon = Daemon::builder("qemu-storage-daemon")
            .args([
                "--chardev",
                &format!("socket,id=m,path={},server=on,wait=off", at("qmp")),
            ])
            .args(["--monitor", "m"])
            .arg("--blockdev")
            .arg(format!(
                "file,node-name=f,filename={},discard=unmap",
                at("image")
            ))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,\
                 num-queues={queues}",
                at("disk")
            ))
            .socket(at("disk"))
            .socket(at("qmp"))
            .start()?;
        Ok(Self { daemon, dir })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn disk(&self, options: Options) -> Result<Disk, FrontendError> {
        Disk::connect(self.dir.path().join("disk"), options)
    }

    fn image_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        File::open(self.image())?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

fn execute(disk: &mut Disk, request: Request<'_>) -> Result<Vec<u8>> {
    let completion = disk.execute(0, request, TIMEOUT)?;
    ensure!(
        completion.is_ok(),
        "{request:?}: status {}",
        completion.status
    );
    ensure!(disk.violations().is_empty(), "{:?}", disk.violations());
    Ok(completion.data)
}

#[test]
fn negotiation_and_configuration() -> Result<()> {
    let storage = Storage::start(3)?;
    let disk = storage.disk(Options {
        queues: 2,
        ..Options::default()
    })?;
    let needed = feature::VERSION_1 | feature::EVENT_IDX | feature::FLUSH | feature::DISCARD;
    assert_eq!(disk.features() & needed, needed);
    assert_eq!(disk.config().capacity_bytes(), IMAGE_BYTES);
    assert_eq!((disk.config().num_queues, disk.config().blk_size), (3, 512));
    assert!(disk.inflight().is_none());
    drop(disk);

    let plain = Options {
        event_idx: false,
        indirect: false,
        ..Options::default()
    };
    let disk = storage.disk(Options {
        features_mask: !feature::DISCARD,
        ..plain
    })?;
    let refused = feature::EVENT_IDX | feature::INDIRECT_DESC | feature::DISCARD;
    assert_eq!(disk.features() & refused, 0);
    drop(disk);

    let error = storage
        .disk(Options {
            queues: 4,
            ..Options::default()
        })
        .err()
        .context("4 of 3")?;
    assert!(error.to_string().contains("the device has 3"), "{error}");
    Ok(())
}

#[test]
fn every_request_type_does_what_it_says() -> Result<()> {
    let storage = Storage::start(1)?;
    for (event_idx, indirect) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut disk = storage.disk(Options {
            event_idx,
            indirect,
            ..Options::default()
        })?;
        let data: Vec<u8> = (0..16384_u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        execute(
            &mut disk,
            Request::Write {
                sector: 8,
                data: &data,
            },
        )?;
        assert_eq!(
            execute(
                &mut disk,
                Request::Read {
                    sector: 8,
                    len: 16384
                }
            )?,
            data
        );
        execute(&mut disk, Request::Flush)?;
        assert_eq!(storage.image_bytes(4096, 16384)?, data);

        execute(&mut disk, Request::WriteZeroes(&[Segment::new(8, 8)]))?;
        execute(
            &mut disk,
            Request::WriteZeroes(&[Segment::new(16, 8).unmap()]),
        )?;
        execute(&mut disk, Request::Discard(&[Segment::new(24, 8)]))?;
        assert_eq!(storage.image_bytes(4096, 12288)?, vec![0; 12288]);
        assert_eq!(storage.image_bytes(16384, 4096)?, data[12288..]);

        let id = execute(&mut disk, Request::GetId)?;
        assert!(id.starts_with(b"vhost_user_blk\0"), "{id:?}");

        let beyond = Request::Read {
            sector: IMAGE_BYTES / 512,
            len: 512,
        };
        assert_eq!(disk.execute(0, beyond, TIMEOUT)?.status, STATUS_IOERR);
        let unknown = Request::Other {
            kind: 77,
            sector: 0,
            payload: &[],
        };
        assert!(!disk.execute(0, unknown, TIMEOUT)?.is_ok());
        assert_eq!(disk.outstanding(0), 0);
    }
    Ok(())
}

#[test]
fn data_spread_over_descriptors_and_shifted_in_memory_arrive_whole() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options {
        buffer_shift: 7,
        ..Options::default()
    })?;
    let data: Vec<u8> = (0..65536_u32)
        .map(|i| i.to_le_bytes()[1] ^ i.to_le_bytes()[0])
        .collect();
    for (segments, indirect) in [(1, false), (5, true), (100, true), (120, false)] {
        let shape = Shape { segments, indirect };
        disk.submit_shaped(
            0,
            Request::Write {
                sector: 0,
                data: &data,
            },
            shape,
        )?;
        disk.kick(0)?;
        assert!(disk.wait(0, TIMEOUT)?.context("write")?.is_ok());
        disk.submit_shaped(
            0,
            Request::Read {
                sector: 0,
                len: 65536,
            },
            shape,
        )?;
        disk.kick(0)?;
        let read = disk.wait(0, TIMEOUT)?.context("read")?;
        assert!(
            read.is_ok() && read.data == data,
            "{segments} segments, indirect {indirect}"
        );
    }
    assert_eq!(disk.violations(), []);
    Ok(())
}

#[test]
fn a_full_queue_says_so_and_goes_on() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options {
        queue_size: 16,
        indirect: false,
        ..Options::default()
    })?;
    for _ in 0..8 {
        disk.submit(0, Request::Flush)?;
    }
    assert_eq!(disk.submit(0, Request::Flush), Err(SubmitError::QueueFull));
    disk.kick(0)?;
    for _ in 0..8 {
        assert!(disk.wait(0, TIMEOUT)?.context("flush")?.is_ok());
    }
    disk.submit(0, Request::Flush)?;
    disk.kick(0)?;
    assert!(disk.wait(0, TIMEOUT)?.context("flush")?.is_ok());
    Ok(())
}

#[test]
fn random_load_at_every_depth_and_with_every_feature_set() -> Result<()> {
    let storage = Storage::start(2)?;
    let variants = [
        (1, true, true, 1),
        (1, false, false, 8),
        (2, true, false, 128),
        (2, false, true, 128),
    ];
    for (seed, (queues, event_idx, indirect, depth)) in (100..).zip(variants) {
        File::options()
            .write(true)
            .open(storage.image())?
            .set_len(0)?;
        File::options()
            .write(true)
            .open(storage.image())?
            .set_len(IMAGE_BYTES)?;
        let options = Options {
            queues,
            event_idx,
            indirect,
            ..Options::default()
        };
        let mut disk = storage.disk(options)?;
        let pattern = if depth == 8 {
            Pattern::SECTOR
        } else {
            Pattern::PAGE
        };
        let requests = if depth == 1 { 300 } else { 1000 };
        let workload = Workload {
            seed,
            depth,
            requests,
            pattern,
            ..Workload::default()
        };
        let summary = Driver::new(workload).run(&mut disk)?;
        assert_eq!((summary.planned, summary.succeeded), (requests, requests));
    }
    Ok(())
}

#[test]
fn stop_and_start_lose_nothing() -> Result<()> {
    let storage = Storage::start(2)?;
    let mut disk = storage.disk(Options {
        queues: 2,
        ..Options::default()
    })?;
    let workload = Workload {
        seed: 7,
        requests: 800,
        depth: 24,
        ..Workload::default()
    };
    let mut driver = Driver::new(workload);
    while !driver.is_exhausted() {
        driver.fill(&mut disk)?;
        driver.reap(&mut disk)?;
        // The back end must be idle: qemu-storage-daemon closes the call descriptor under requests
        // in flight, and then panics at their completion.
        driver.drain(&mut disk)?;
        let started = Instant::now();
        let bases = disk.stop()?;
        assert!(
            started.elapsed() < TIMEOUT,
            "stop took {:?}",
            started.elapsed()
        );
        assert_eq!(bases.len(), 2);
        assert!(disk.stop().is_err());
        disk.start()?;
    }
    driver.read_back(&mut disk)?;
    driver.check_image(&storage.image())?;
    driver.finish(&mut disk)?;
    Ok(())
}

#[test]
fn requests_submitted_while_stopped_are_served_after_the_start() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options::default())?;
    disk.stop()?;
    let tokens = [
        disk.submit(0, Request::GetId)?,
        disk.submit(0, Request::Flush)?,
    ];
    disk.kick(0)?;
    assert!(disk.wait(0, Duration::from_millis(100))?.is_none());
    disk.start()?;
    let mut done = [(); 2].map(|()| disk.wait(0, TIMEOUT).ok().flatten().map(|done| done.token));
    done.sort();
    assert_eq!(done, tokens.map(Some));
    assert_eq!(disk.violations(), []);
    Ok(())
}

#[test]
fn reset_and_reconnect_start_with_the_same_disk() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options::default())?;
    let workload = Workload {
        seed: 11,
        requests: 600,
        depth: 16,
        mix: Mix {
            flush: 0,
            ..Mix::default()
        },
        ..Workload::default()
    };
    let mut driver = Driver::new(workload);
    for round in 0.. {
        driver.fill(&mut disk)?;
        driver.reap(&mut disk)?;
        driver.drain(&mut disk)?;
        if driver.is_exhausted() {
            break;
        }
        if round % 2 == 0 {
            assert_eq!(disk.reset()?, []);
        } else {
            let state = disk.disconnect();
            disk = Disk::reconnect(state, storage.dir.path().join("disk"))
                .map_err(|(error, _)| error)?;
        }
    }
    driver.read_back(&mut disk)?;
    driver.finish(&mut disk)?;
    Ok(())
}

#[test]
fn what_was_submitted_but_never_seen_is_dropped_by_a_reset() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options::default())?;
    disk.stop()?;
    let token = disk.submit(
        0,
        Request::Read {
            sector: 0,
            len: 4096,
        },
    )?;
    assert_eq!(disk.reset()?, [token]);
    assert_eq!(disk.outstanding(0), 0);
    execute(
        &mut disk,
        Request::Read {
            sector: 0,
            len: 4096,
        },
    )?;
    assert_eq!(disk.check_dropped(), Ok(()));
    disk.forget_dropped();
    Ok(())
}

#[test]
fn a_raw_chain_is_sent_as_it_is() -> Result<()> {
    let storage = Storage::start(1)?;
    let mut disk = storage.disk(Options::default())?;
    let block = disk.memory_mut().allocate(4096).context("memory")?;
    let (header, data, status) = (
        block.address(),
        block.address() + 512,
        block.address() + 2048,
    );
    disk.memory().write(header, &[0; 16])?;
    let part = |address, len, flags, next| Descriptor {
        address,
        len,
        flags,
        next,
    };
    let chain = RawChain {
        descriptors: vec![
            part(header, 5, DESC_F_NEXT, 1),
            part(header + 5, 11, DESC_F_NEXT, 3),
            part(status, 1, DESC_F_WRITE, 0),
            part(data, 512, DESC_F_NEXT | DESC_F_WRITE, 2),
        ],
        status: Some(status),
    };
    disk.memory().fill(data, 512, 0xff)?;
    disk.submit(0, Request::Raw(&chain))?;
    disk.kick(0)?;
    let completion = disk.wait(0, TIMEOUT)?.context("raw chain")?;
    assert!(completion.is_ok());
    let mut found = [1; 512];
    disk.memory().read(data, &mut found)?;
    assert_eq!(found, [0; 512]);
    assert_eq!(disk.violations(), []);
    Ok(())
}

#[test]
fn a_dead_back_end_is_noticed_and_a_new_one_taken() -> Result<()> {
    let mut storage = Storage::start(1)?;
    let mut disk = storage.disk(Options::default())?;
    storage.daemon.kill()?;
    disk.submit(0, Request::Flush)?;
    disk.kick(0)?;
    let error = disk.wait(0, TIMEOUT).err().context("the daemon is dead")?;
    assert!(matches!(error, FrontendError::Closed { .. }), "{error}");
    let state = disk.disconnect();
    let (error, state) = Disk::reconnect(state, storage.dir.path().join("disk"))
        .err()
        .context("nobody listens")?;
    assert!(matches!(error, FrontendError::Connect { .. }), "{error}");

    let other = Storage::start(1)?;
    let mut disk = Disk::reconnect(state, other.dir.path().join("disk")).map_err(|(e, _)| e)?;
    assert!(disk.wait(0, TIMEOUT)?.context("the flush")?.is_ok());
    Ok(())
}

#[test]
fn configuration_changes_and_monitor() -> Result<()> {
    let mut storage = Storage::start(1)?;
    let mut qmp = Qmp::connect(storage.dir.path().join("qmp"))?;
    let exports = qmp.execute("query-block-exports", Value::Null)?;
    assert_eq!(exports[0]["id"], "e");
    let error = qmp.execute("block_resize", json!({ "node-name": "x", "size": 1 }));
    let error = error.err().context("there is no such node")?;
    let (class, desc) = error.command().context("an error of the command")?;
    assert_eq!(
        (class, desc.contains("node-name='x'")),
        ("GenericError", true),
        "{desc}"
    );

    let mut disk = storage.disk(Options::default())?;
    for on in [true, false] {
        disk.set_write_cache(on)?;
        assert_eq!(disk.refresh_config()?.wce, u8::from(on));
    }
    assert_eq!(disk.take_config_changes()?, 0);
    drop(disk);

    qmp.execute("block-export-del", json!({ "id": "e" }))?;
    let deleted = qmp.wait_event("BLOCK_EXPORT_DELETED", TIMEOUT)?;
    assert_eq!(deleted.data["id"], "e");
    assert_eq!(qmp.log().check_order(true), Ok(()));
    drop(qmp);
    assert_eq!(storage.daemon.terminate(TIMEOUT)?.code(), Some(0));
    Ok(())
}
