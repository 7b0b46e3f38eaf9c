//! A real QEMU that is paused by its storage: the guest's clock stands still, whoever resumes it,
//! however much is held.

mod harness;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::vmm::{Resumer, link_monitor, qemu_state};
use harness::{MIB, Setup, allocated, sparse};
use rustix::process::Signal;
use serde_json::json;
use testkit::guest::{BOOT, DirectWriters, Files, GUEST_PATIENCE, make_ext4_image};
use testkit::{Guest, Tmpfs, VhostUserBlk, soak, wait_until};

/// How long a VM is paused.
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn the_clock_of_a_guest_out_of_space_stands_still() -> Result<()> {
    let tmpfs = Tmpfs::new(128 * MIB)?;
    let image = tmpfs.path().join("disk0.img");
    make_ext4_image(&image, 64 * MIB)?;
    let setup = Setup::new()?.link();
    let link = setup.link_socket();
    let mut server = setup
        .blockdev(
            &json!({ "driver": "file", "node-name": "disk0", "filename": image,
            "cache": { "direct": true } }),
        )
        .export("vda", "disk0", json!({ "werror": "enospc" }))
        .start()?;
    // A clock that QEMU keeps: how fast the TSC is a guest finds out at boot, and on a busy machine it
    // errs by as much as two.
    let guest = Guest::builder().kernel_arg("clocksource=hpet");
    let guest = guest.disk(VhostUserBlk::new(server.socket("vda")));
    let mut guest = link_monitor(guest, &link).start()?;
    guest.wait_boot(BOOT)?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    server.wait_link_running()?;

    let mut sets = Vec::new();
    for (seed, resumer) in [(1, Resumer::Daemon), (2, Resumer::Qemu)] {
        let files = Files {
            dir: format!("/mnt/{seed}"),
            seed,
            count: 8,
            kib: 512,
        };
        tmpfs.resize(allocated(&image)? + 2 * MIB)?;
        // The clock is read before the begin and after the end of what is measured here: what the
        // guest's differs by is at least what it did not see.
        let begin = Instant::now();
        let before = guest.uptime(GUEST_PATIENCE)?;
        let writing = guest.spawn(&files.write_command())?;
        server.wait_paused_by_error(&mut guest, "vda")?;
        let lines = writing.lines().len();
        std::thread::sleep(PAUSE);
        ensure!(qemu_state(&mut guest)? == "paused");
        ensure!(!writing.has_ended() && writing.lines().len() == lines);
        tmpfs.resize(128 * MIB)?;
        server.cont_by(&mut guest, resumer)?;
        let output = writing.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "{output:?}");
        let seen = guest.uptime(GUEST_PATIENCE)? - before;
        let passed = begin.elapsed();
        println!("{resumer:?}: {passed:?} passed, the guest saw {seen:?}");
        ensure!(seen + PAUSE <= passed + Duration::from_millis(20));
        sets.push(files);
    }
    guest.drop_caches(GUEST_PATIENCE)?;
    for files in &sets {
        guest.verify_files(files, GUEST_PATIENCE)?;
    }
    guest.check_no_io_errors()?;
    ensure!(server.io_status("vda")? == "ok" && server.held("vda")?.is_empty());
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()
}

/// Most requests that QEMU 7.2 lets a guest have under way in one queue.
const DEPTH: u64 = 128;

#[test]
fn held_from_one_to_a_full_queue() -> Result<()> {
    let mut setup = Setup::new()?
        .link()
        .option("--object", "iothread,id=io0")
        .option("--object", "iothread,id=io1");
    let link = setup.link_socket();
    let mut disks = Vec::new();
    for (id, name, queues) in [("one", "vda", 1), ("two", "vdb", 2)] {
        let tmpfs = Tmpfs::new(4096)?;
        let image = tmpfs.path().join("raw.img");
        std::fs::write(tmpfs.path().join("ballast"), vec![1; 4096])?;
        setup = setup
            .blockdev(&json!({ "driver": "file", "node-name": id, "filename": &image }))
            .export(
                id,
                id,
                // Writes that are to be durable go through the ring, also to a file in memory: all that
                // are in flight at the first failure fail, too.
                json!({ "werror": "stop", "num-queues": queues, "iothread": ["io0", "io1"],
                    "writethrough": true }),
            );
        sparse(&image, 4 * MIB)?;
        disks.push((id, name, queues, tmpfs, image));
    }
    let mut server = setup.start()?;
    let mut guest = Guest::builder().cpus(2);
    for (id, _, queues, _, _) in &disks {
        guest = guest.disk(VhostUserBlk::new(server.socket(id)).queues(*queues));
    }
    let mut guest = link_monitor(guest, &link).start()?;
    guest.wait_boot(BOOT)?;
    server.wait_link_running()?;

    let mut counts = Vec::new();
    for round in 0..soak(3, 21) {
        let (id, name, _, tmpfs, image) = &disks[usize::try_from(round % 2)?];
        let resumer = [Resumer::Daemon, Resumer::Qemu][usize::try_from((round + round / 2) % 2)?];
        // 1, 128, and all sizes between in a soak.
        let size = if round == 0 {
            1
        } else {
            (DEPTH * 2 / (round + 1)).min(DEPTH)
        };
        let writers = DirectWriters {
            seed: u32::try_from(round)?,
            writers: size,
            pages: 2,
        };
        let file = std::fs::File::options().write(true).open(image)?;
        file.set_len(0)?;
        file.set_len(4 * MIB)?;
        tmpfs.resize(4096)?;
        // As many as there are wait in the queues when the daemon sees them.
        server.daemon.signal(Signal::STOP)?;
        let writing = guest.spawn(&writers.script(name))?;
        let inflight = format!("awk '{{ print $1 + $2 }}' /sys/block/{name}/inflight");
        wait_until("the requests wait", GUEST_PATIENCE, || {
            let waiting: u64 = guest.run_ok(&inflight, GUEST_PATIENCE)?.parse()?;
            Ok(waiting >= size)
        })?;
        server.daemon.signal(Signal::CONT)?;
        server.wait_paused_by_error(&mut guest, id)?;
        // Until all of it has failed.
        std::thread::sleep(Duration::from_millis(200));
        let held = server.held(id)?.len();
        tmpfs.resize(16 * MIB)?;
        server.cont_by(&mut guest, resumer)?;
        let output = writing.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "{output:?}");
        guest.run_ok("sync", GUEST_PATIENCE)?;
        writers
            .check(image)
            .with_context(|| format!("round {round}"))?;
        ensure!(server.held(id)?.is_empty() && server.io_status(id)? == "ok");
        println!("round {round}: {size} writers on '{id}', {held} held, cont by {resumer:?}");
        counts.push(held);
    }
    ensure!(counts.contains(&1), "{counts:?}");
    // Which queue of 'two' fails first stops the other before it is looked at, and how the guest divides
    // its writers between the two is its own affair: 'one' alone is sure to bring many.
    ensure!(counts.iter().any(|&held| held >= 32), "{counts:?}");
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()
}
