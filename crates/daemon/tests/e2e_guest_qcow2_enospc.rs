//! A real guest whose qcow2 image finds no space: on a tmpfs that is full, on a device that is grown, and on one that has lost its end,
//! which is no want of space. Held, extended, continued; the daemon is killed meanwhile. The guest has all of its files. In a soak 20 rounds of
//! each; `STANDFAST_SOAK_FROM=round` goes on. Needs qemu-img (Debian: qemu-utils), and root.

mod harness;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use block::RunState;
use harness::qcow2::{
    boot, boot_and_mount, check_ext4, in_file, is_nospace, make_ext4, on_device, options, serve,
};
use harness::{MIB, PATIENCE, Server, allocated, sparse};
use serde_json::Value;
use testkit::guest::{Files, GUEST_PATIENCE, promptly, stamp};
use testkit::qcow2_image::{create, is_clean, is_not_corrupt, run, to_raw};
use testkit::{Guest, LoopDevice, Place, Rng, Tmpfs, lives, rounds, wait_until};

const DISK_BYTES: u64 = 96 * MIB;
/// After so many rounds image and guest are others.
const LIFE: u64 = 5;
const PLENTY: u64 = 4 * DISK_BYTES;

/// Where the image is, and what is wrong with that.
enum Storage {
    Full {
        tmpfs: Tmpfs,
        image: PathBuf,
    },
    Grows {
        device: LoopDevice,
        file: PathBuf,
        bytes: u64,
        _place: Place,
    },
    Shrinks {
        device: LoopDevice,
        _place: Place,
    },
}

impl Storage {
    fn full() -> Result<Self> {
        let tmpfs = Tmpfs::new(PLENTY)?;
        let image = tmpfs.path().join("disk0.qcow2");
        Ok(Self::Full { tmpfs, image })
    }

    /// Has room for a file system without files.
    fn grows() -> Result<Self> {
        let place = Place::new();
        let (file, bytes) = (place.file("device"), 3 * MIB);
        sparse(&file, bytes)?;
        Ok(Self::Grows {
            device: LoopDevice::new(&file, true)?,
            file,
            bytes,
            _place: place,
        })
    }

    fn shrinks() -> Result<Self> {
        let place = Place::new();
        let file = place.file("device");
        sparse(&file, PLENTY)?;
        Ok(Self::Shrinks {
            device: LoopDevice::new(&file, true)?,
            _place: place,
        })
    }

    fn image(&self) -> &Path {
        match self {
            Self::Full { image, .. } => image,
            Self::Grows { device, .. } | Self::Shrinks { device, .. } => device.path(),
        }
    }

    fn node(&self) -> Value {
        match self {
            Self::Full { image, .. } => in_file(image, true),
            Self::Grows { device, .. } | Self::Shrinks { device, .. } => on_device(device.path()),
        }
    }

    /// From now on something is missing.
    fn spoil(&self, rng: &mut Rng) -> Result<()> {
        match self {
            Self::Full { tmpfs, image } => tmpfs.resize(allocated(image)? + rng.below(MIB)),
            // It is as long as the last round needed.
            Self::Grows { .. } => Ok(()),
            // The first tables are there; what comes new lies behind.
            Self::Shrinks { device, .. } => device.limit(MIB + rng.below(2048) * 512),
        }
    }

    /// There is more, or all of it. `times`: how often it has been held in this round.
    fn mend(&mut self, times: u64) -> Result<()> {
        match self {
            Self::Full { tmpfs, image } if times < 3 => {
                tmpfs.resize(allocated(image)? + (300 << 10))
            }
            Self::Full { tmpfs, .. } => tmpfs.resize(PLENTY),
            Self::Grows {
                device,
                file,
                bytes,
                ..
            } => {
                *bytes += MIB;
                let file = OpenOptions::new().write(true).open(file)?;
                file.set_len(*bytes)?;
                device.update_size()
            }
            Self::Shrinks { device, .. } => device.limit(0),
        }
    }

    /// What errors have said is so.
    fn is_told(&self, server: &mut Server) -> Result<()> {
        for event in server.qmp.take_events(Duration::ZERO)? {
            match self {
                _ if event.name != "BLOCK_IO_ERROR" => {}
                Self::Shrinks { .. } => ensure!(
                    event.data["nospace"] == false && event.data["x-cause"] == "backing-gone",
                    "{event:?}"
                ),
                _ => is_nospace(&event)?,
            }
        }
        Ok(())
    }

    /// What `query-block` says while something is held.
    fn status(&self) -> &'static str {
        match self {
            Self::Shrinks { .. } => "failed",
            _ => "nospace",
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    rounds: u64,
    held: u64,
    killed: u64,
    files: u64,
    /// From when it was seen until it had been mended.
    longest: Duration,
}

/// A script in the guest comes to its end, however often it is held: what it does, or what the guest writes on its own meanwhile. The daemon
/// that holds the first of it may be killed.
fn done(
    server: &mut Server,
    guest: &mut Guest,
    storage: &mut Storage,
    (script, kills): (&str, bool),
    count: &mut Count,
) -> Result<()> {
    let job = guest.spawn(script)?;
    let mut times = 0;
    wait_until("the guest is done", GUEST_PATIENCE, || {
        if job.has_ended() || server.run_state()? != "io-error" {
            return Ok(job.has_ended());
        }
        let seen = Instant::now();
        times += 1;
        storage.is_told(server)?;
        ensure!(server.io_status("vda")? == storage.status());
        ensure!(!server.held("vda")?.is_empty());
        if kills && times == 1 {
            // The state is written beside the events, not before them.
            wait_until("the state is saved", PATIENCE, || {
                let saved = server.saved().ok().flatten();
                Ok(saved.is_some_and(|saved| saved.run_state == RunState::IoError))
            })?;
            server.daemon.kill()?;
            if let Storage::Shrinks { .. } = storage {
                // Nobody can open what is gone.
                storage.mend(times)?;
            }
            is_not_corrupt(storage.image())?;
            server.start_again()?;
            wait_until("it is held again", PATIENCE, || {
                Ok(!server.held("vda")?.is_empty() && server.run_state()? == "io-error")
            })?;
            storage.mend(times)?;
            server.qmp.execute("cont", Value::Null)?;
            count.killed += 1;
        } else {
            promptly(guest.qmp(), "stop")?;
            storage.mend(times)?;
            server.qmp.execute("cont", Value::Null)?;
            promptly(guest.qmp(), "cont")?;
        }
        count.longest = count.longest.max(seen.elapsed());
        Ok(false)
    })
    .with_context(|| server.told("vda"))?;
    // What was in flight when it went on may have told of it since.
    storage.is_told(server)?;
    let output = job.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");
    count.held += times;
    Ok(())
}

/// Rounds of writing; in all but the first of an image the daemon is killed while the storage fails.
fn rounds_on(
    new: fn() -> Result<Storage>,
    write_through: impl Fn(u64) -> bool,
    seed: u64,
) -> Result<()> {
    let mut count = Count::default();
    for life in lives(rounds(2, 20), LIFE) {
        let mut storage = new()?;
        let number = life.start / LIFE;
        let write_through = write_through(number);
        make_ext4(storage.image(), options(number), DISK_BYTES)?;
        let mut server = serve(&storage.node(), write_through)?;
        let mut guest = boot_and_mount(&mut server, true)?;
        let mut sets = Vec::new();
        for round in life {
            let mut rng = Rng::new(seed << 32 | round);
            let files = Files {
                dir: format!("/mnt/set{round}"),
                seed: u32::try_from(round)?,
                count: 6,
                kib: 512,
            };
            storage.spoil(&mut rng)?;
            let kills = round % LIFE > 0;
            let writer = (&*files.write_command(), kills);
            let ended = done(&mut server, &mut guest, &mut storage, writer, &mut count);
            ended.with_context(|| format!("round {round}"))?;
            sets.push(files);
            count.rounds += 1;
        }
        for files in &sets {
            let reader = (&*files.verify_command(), false);
            done(&mut server, &mut guest, &mut storage, reader, &mut count)?;
            count.files += u64::from(files.count);
        }
        let unmount = ("umount /mnt", false);
        done(&mut server, &mut guest, &mut storage, unmount, &mut count)?;
        ensure!(server.io_status("vda")? == "ok" && server.held("vda")?.is_empty());
        ensure!(server.stats("vda")?["failed_wr_operations"] == 0);
        guest.check_no_io_errors()?;
        ensure!(guest.power_off(GUEST_PATIENCE)?.success());
        server.finish()?;
        // A daemon that is killed may leave what it had counted already.
        if is_not_corrupt(storage.image())? {
            ensure!(count.killed > 0, "leaks");
            let name = storage.image().to_str().context("text")?;
            run("qemu-img", &["check", "-qfqcow2", "-rleaks", name])?;
        }
        is_clean(storage.image())?;
        check_ext4(storage.image())?;
        println!("{count:?}");
    }
    ensure!(
        count.held >= count.rounds,
        "not held in every round: {count:?}"
    );
    Ok(())
}

#[test]
fn a_tmpfs_that_is_full() -> Result<()> {
    rounds_on(Storage::full, |life| life % 2 == 1, 1)
}

/// As oVirt does it: the device becomes longer when it is full.
#[test]
fn a_device_that_grows() -> Result<()> {
    rounds_on(Storage::grows, |life| life % 2 == 0, 2)
}

/// A device that has become shorter is no device that is full: part of the image is gone, and is there again later.
#[test]
fn a_device_that_shrinks() -> Result<()> {
    rounds_on(Storage::shrinks, |life| life % 2 == 0, 3)
}

/// Bytes of the disk that a step of the test below writes.
const STEP_BYTES: u64 = 2 * MIB;

/// The script that writes step `number` around the guest's page cache, and flushes nothing.
fn step(number: u64) -> String {
    format!(
        "stamps {number} 0 0 {} >/tmp/step || exit
dd if=/tmp/step of=/dev/vda bs=64k seek={} oflag=direct conv=notrunc status=none",
        STEP_BYTES / 512,
        number * (STEP_BYTES >> 16)
    )
}

/// The data have room, and what says where they are has none: the guest's flush waits for it. And the other way round: the write waits.
#[test]
fn tables_find_no_room_apart_from_data() -> Result<()> {
    const FLUSH: &str = "dd if=/dev/zero of=/dev/vda count=0 conv=fsync,notrunc status=none";
    let (tmpfs, place) = (Tmpfs::new(PLENTY)?, Place::new());
    let image = tmpfs.path().join("disk0.qcow2");
    // A block of counts is a cluster, and is enough for 2 MiB.
    create(&image, "cluster_size=4k,refcount_bits=64", DISK_BYTES)?;
    let mut server = serve(&in_file(&image, true), false)?;
    let guest = boot(&mut server, true)?;
    let rounds = rounds(2, 20);
    for round in rounds.clone() {
        guest.run_ok(&step(2 * round), GUEST_PATIENCE)?;
        for (room, script, operation) in [
            (0, FLUSH.to_owned(), "flush"),
            (STEP_BYTES / 4, step(2 * round + 1), "write"),
        ] {
            tmpfs.resize(allocated(&image)? + room)?;
            let waits = guest.spawn(&script)?;
            let event = server.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
            is_nospace(&event)?;
            server.qmp.wait_event("STOP", PATIENCE)?;
            let held = server.held("vda")?;
            let is_it = |held: &Value| held["operation"] == operation && held["cause"] == "nospace";
            ensure!(!held.is_empty() && held.iter().all(is_it), "{held:?}");
            ensure!(!waits.has_ended());
            tmpfs.resize(PLENTY)?;
            server.qmp.execute("cont", Value::Null)?;
            let output = waits.wait(GUEST_PATIENCE)?;
            ensure!(output.status == 0, "{output:?}");
            server.qmp.take_events(Duration::ZERO)?;
        }
        guest.run_ok(FLUSH, GUEST_PATIENCE)?;
    }
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()?;
    is_clean(&image)?;
    let raw = place.file("raw");
    to_raw(&image, &raw)?;
    let content = std::fs::read(&raw)?;
    for number in rounds.start * 2..rounds.end * 2 {
        let at = usize::try_from(number * STEP_BYTES)?;
        let sectors = content[at..][..usize::try_from(STEP_BYTES)?].chunks(512);
        for (sector, found) in sectors.enumerate() {
            let expected = stamp(u32::try_from(number)?, 0, sector as u64);
            ensure!(found == expected, "step {number}, sector {sector}");
        }
    }
    Ok(())
}
