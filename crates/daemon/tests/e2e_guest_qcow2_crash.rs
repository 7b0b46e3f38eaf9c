//! `kill -9` of the daemon at any moment while a real guest writes to a qcow2 image: it is not corrupt, and what the guest was promised is
//! there. In a soak 100 rounds of each; `STANDFAST_SOAK_FROM=round` goes on. Needs qemu-img (Debian: qemu-utils).

mod harness;

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::qcow2::{boot_and_mount, check_ext4, in_file, make_ext4, options, serve};
use harness::{MIB, Server};
use testkit::guest::{Files, GUEST_PATIENCE, Job, buffered_writers};
use testkit::qcow2_image::{is_clean, is_not_corrupt, run};
use testkit::{Guest, Place, Rng, lives, rounds};

const DISK_BYTES: u64 = 96 * MIB;
/// After so many rounds image and guest are others.
const LIFE: u64 = 10;
/// Of so many rounds the files are kept; then their space is given back, and used again.
const KEPT: usize = 3;

/// What the writers of a round leave.
fn files(round: u64, count: u32) -> Result<Files> {
    Ok(Files {
        dir: format!("/mnt/set{round}"),
        seed: u32::try_from(round)?,
        count,
        kib: 128,
    })
}

/// Has been killed, and what it left is not corrupt.
fn kill(server: &mut Server, image: &Path) -> Result<bool> {
    server.daemon.kill()?;
    is_not_corrupt(image)
}

/// The image after an end in order: nothing is wrong but what the dead ones have leaked, and that is found.
fn is_whole(image: &Path) -> Result<()> {
    is_not_corrupt(image)?;
    let name = image.to_str().context("text")?;
    run("qemu-img", &["check", "-qfqcow2", "-rleaks", name])?;
    is_clean(image)?;
    check_ext4(image)
}

/// The latest files are there. The oldest are looked at again, and go.
fn look(guest: &Guest, kept: &mut Vec<Files>) -> Result<()> {
    if let Some(latest) = kept.last() {
        guest.verify_files(latest, GUEST_PATIENCE)?;
    }
    while kept.len() > KEPT {
        let oldest = kept.remove(0);
        guest.verify_files(&oldest, GUEST_PATIENCE)?;
        let Files { dir, .. } = oldest;
        guest.run_ok(
            &format!("rm -r {dir} && sync && fstrim /mnt"),
            GUEST_PATIENCE,
        )?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Count {
    killed: u64,
    leaks: u64,
    files: u64,
    /// The longest round of all.
    longest: Duration,
}

impl Count {
    fn round(&mut self, round: u64, begin: Instant, leaks: bool) {
        self.killed += 1;
        self.leaks += u64::from(leaks);
        self.longest = self.longest.max(begin.elapsed());
        if self.killed.is_multiple_of(LIFE) {
            println!(
                "{self:?}; a soak goes on with STANDFAST_SOAK_FROM={}",
                round + 1
            );
        }
    }
}

/// QEMU reconnects, and the guest does not notice: what a daemon has acknowledged and not flushed is there for the next, since it was recorded. The
/// guest has a write cache, and is told of nothing: what it lost would be found when its own memory has it no more.
#[test]
fn the_guest_lives_on() -> Result<()> {
    let mut count = Count::default();
    for life in lives(rounds(2, 100), LIFE) {
        let place = Place::new();
        let image = place.file("disk0.qcow2");
        make_ext4(&image, options(life.start / LIFE), DISK_BYTES)?;
        let mut server = serve(&in_file(&image, life.start % 20 == 0), false)?;
        let guest = boot_and_mount(&mut server, true)?;
        let mut kept: Vec<Files> = Vec::new();
        for round in life {
            let begin = Instant::now();
            let mut rng = Rng::new(1 << 32 | round);
            let files = files(round, 6)?;
            let script = match round % 2 {
                0 => files.write_command(),
                _ => format!("{}\nsync", buffered_writers(&files)),
            };
            let writing = guest.spawn(&script)?;
            sleep(Duration::from_millis(rng.below(1500)));
            let leaks = kill(&mut server, &image).with_context(|| format!("round {round}"))?;
            server.start_again()?;
            let output = writing.wait(GUEST_PATIENCE);
            let output =
                output.with_context(|| format!("round {round}: {}", server.told("vda")))?;
            ensure!(output.status == 0, "round {round}: {output:?}");
            kept.push(files);
            count.files += 6;
            look(&guest, &mut kept).with_context(|| format!("round {round}"))?;
            count.round(round, begin, leaks);
        }
        for files in &kept {
            guest.verify_files(files, GUEST_PATIENCE)?;
        }
        guest.check_no_io_errors()?;
        ensure!(guest.power_off(GUEST_PATIENCE)?.success());
        server.finish()?;
        is_whole(&image)?;
    }
    println!("{count:?}");
    Ok(())
}

/// How many files a writer has told of.
fn synced(writing: &Job) -> Result<u32> {
    let lines = writing.lines();
    Ok(u32::try_from(
        lines
            .iter()
            .filter(|line| line.starts_with("synced"))
            .count(),
    )?)
}

/// As when the power goes: what the guest had synced is there at its next boot.
#[test]
fn the_guest_dies_with_it() -> Result<()> {
    let mut count = Count::default();
    for life in lives(rounds(2, 100), LIFE) {
        let place = Place::new();
        let image = place.file("disk0.qcow2");
        make_ext4(&image, options(life.start / LIFE), DISK_BYTES)?;
        let mut server = serve(&in_file(&image, life.start % 20 == 0), false)?;
        let mut kept: Vec<Files> = Vec::new();
        for round in life {
            let begin = Instant::now();
            let mut rng = Rng::new(2 << 32 | round);
            let guest = boot_and_mount(&mut server, false);
            let guest = guest.with_context(|| format!("round {round}"))?;
            look(&guest, &mut kept).with_context(|| format!("round {round}"))?;
            // With much in the background that nobody waits for.
            let noise = buffered_writers(&Files {
                dir: "/mnt/noise".to_owned(),
                ..files(1000 + round, 2)?
            });
            guest.spawn(&noise)?;
            let writing = guest.spawn(&files(round, 1000)?.write_command())?;
            writing.wait_line("synced 0", GUEST_PATIENCE)?;
            sleep(Duration::from_millis(rng.below(2000)));
            guest.check_no_io_errors()?;
            let leaks = kill(&mut server, &image).with_context(|| format!("round {round}"))?;
            let synced = synced(&writing)?;
            drop(guest);
            count.files += u64::from(synced);
            kept.push(files(round, synced)?);
            server.start_again()?;
            count.round(round, begin, leaks);
        }
        let guest = boot_and_mount(&mut server, false)?;
        for files in &kept {
            guest.verify_files(files, GUEST_PATIENCE)?;
        }
        guest.check_no_io_errors()?;
        ensure!(guest.power_off(GUEST_PATIENCE)?.success());
        server.finish()?;
        is_whole(&image)?;
    }
    println!("{count:?}");
    Ok(())
}
