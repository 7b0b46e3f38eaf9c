//! `stop` and `cont` on QEMU's own monitor, over and over: QEMU asks for the rings and gives them
//! back each time, under load and while requests are held.

mod harness;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{MIB, PATIENCE, Server, Setup, sparse};
use serde_json::{Value, json};
use testkit::guest::{
    BOOT, DirectWriters, Files, GUEST_PATIENCE, buffered_writers, make_ext4_image, promptly,
};
use testkit::{Guest, Rng, Tmpfs, VhostUserBlk, soak, wait_until};

#[test]
fn a_guest_is_stopped_again_and_again_while_it_writes() -> Result<()> {
    let setup = Setup::new()?;
    let image = setup.path("disk0.img");
    make_ext4_image(&image, 256 * MIB)?;
    let mut server = setup
        .blockdev(
            &json!({ "driver": "file", "node-name": "disk0", "filename": image,
            "cache": { "direct": true } }),
        )
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop" }),
        )
        .start()?;
    let mut guest = Guest::builder()
        .disk(VhostUserBlk::new(server.socket("vda")))
        .start()?;
    guest.wait_boot(BOOT)?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    // Dirty pages go to the disk early, so that there is always something under way.
    guest.run_ok(
        "cd /proc/sys/vm; echo 1048576 >dirty_background_bytes; echo 4194304 >dirty_bytes
echo 20 >dirty_writeback_centisecs; echo 50 >dirty_expire_centisecs",
        GUEST_PATIENCE,
    )?;
    let files = Files {
        dir: "/mnt/set".into(),
        seed: 6,
        count: 6,
        kib: 1024,
    };
    let script = buffered_writers(&files);
    // The same files over and over, until the cycles are over.
    let writing = guest.spawn(&format!(
        "while [ ! -e /run/enough ]; do
{script}
echo round
done
{script}
sync"
    ))?;
    let mut rng = Rng::new(41);
    let cycles = soak(10, 100);
    let (mut longest, mut written) = (Duration::ZERO, 0);
    for _ in 0..cycles {
        let before = written_bytes(&mut server)?;
        wait_until("the guest writes", GUEST_PATIENCE, || {
            Ok(written_bytes(&mut server)? > before)
        })?;
        sleep(Duration::from_millis(rng.below(100)));
        longest = longest.max(promptly(guest.qmp(), "stop")?);
        let stopped = written_bytes(&mut server)?;
        sleep(Duration::from_millis(rng.below(100)));
        ensure!(
            written_bytes(&mut server)? == stopped,
            "a stopped VM writes"
        );
        longest = longest.max(promptly(guest.qmp(), "cont")?);
        written = stopped;
    }
    guest.run_ok("touch /run/enough", GUEST_PATIENCE)?;
    let output = writing.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");
    println!("{cycles} cycles, {written} bytes written, the longest command took {longest:?}");
    guest.verify_files(&files, GUEST_PATIENCE)?;
    guest.check_no_io_errors()?;
    ensure!(server.run_state()? == "running" && server.io_status("vda")? == "ok");
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()
}

fn written_bytes(server: &mut Server) -> Result<u64> {
    let stats = server.stats("vda")?;
    stats["wr_bytes"]
        .as_u64()
        .with_context(|| stats.to_string())
}

const WRITERS: DirectWriters = DirectWriters {
    seed: 7,
    writers: 80,
    pages: 4,
};

/// A raw disk on a tmpfs of its own without any space, one per scope.
struct Raw {
    image: PathBuf,
    tmpfs: Tmpfs,
}

impl Raw {
    fn new() -> Result<Self> {
        let tmpfs = Tmpfs::new(4096)?;
        let image = tmpfs.path().join("raw.img");
        sparse(&image, WRITERS.bytes())?;
        std::fs::write(tmpfs.path().join("ballast"), vec![1; 4096])?;
        Ok(Self { image, tmpfs })
    }
}

#[test]
fn a_guest_is_stopped_while_much_is_held() -> Result<()> {
    let scopes = ["request", "device", "vm"];
    let mut setup = Setup::new()?;
    let mut disks = Vec::new();
    for (index, scope) in scopes.into_iter().enumerate() {
        let (raw, node, id) = (Raw::new()?, format!("disk{index}"), format!("vd{index}"));
        setup = setup
            .blockdev(&json!({ "driver": "file", "node-name": node, "filename": raw.image }))
            .export(
                &id,
                &node,
                json!({ "werror": "stop", "rerror": "stop", "hold-scope": scope,
                    "configure-mem-slots": scope == "request" }),
            );
        disks.push((id, raw));
    }
    let mut server = setup.start()?;
    let mut builder = Guest::builder();
    for (id, _) in &disks {
        builder = builder.disk(VhostUserBlk::new(server.socket(id)));
    }
    let mut guest = builder.start()?;
    guest.wait_boot(BOOT)?;
    for ((scope, (id, raw)), name) in scopes.into_iter().zip(&disks).zip(["vda", "vdb", "vdc"]) {
        let writing = guest.spawn(&WRITERS.script(name))?;
        writing.wait_line("started", GUEST_PATIENCE)?;
        server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
        // Under `request` each is tried, fails and is held; else what is behind the first waits.
        let inflight = format!("awk '{{ print $1 + $2 }}' /sys/block/{name}/inflight");
        wait_until("64 requests wait", GUEST_PATIENCE, || {
            let waiting: u64 = guest.run_ok(&inflight, GUEST_PATIENCE)?.parse()?;
            let held = server.held(id)?.len();
            Ok(waiting >= 64 && (scope != "request" || held >= 64))
        })?;
        let held = server.held(id)?.len();
        ensure!(held > 0);
        let mut longest = Duration::ZERO;
        let cycles = soak(4, 30);
        for _ in 0..cycles {
            for command in ["stop", "query-status", "cont"] {
                longest = longest.max(promptly(guest.qmp(), command)?);
                promptly(&mut server.qmp, "query-block")?;
            }
        }
        ensure!(!writing.has_ended());
        ensure!(server.held(id)?.len() >= held, "something held is gone");
        // Space comes while the VM is stopped.
        promptly(guest.qmp(), "stop")?;
        raw.tmpfs.resize(2 * WRITERS.bytes())?;
        let begin = Instant::now();
        promptly(&mut server.qmp, "cont")?;
        promptly(guest.qmp(), "cont")?;
        let output = writing.wait(GUEST_PATIENCE)?;
        ensure!(output.status == 0, "{output:?}");
        println!(
            "{scope}: {held} held, {cycles} cycles, the longest command took {longest:?}; done \
             {:?} after cont",
            begin.elapsed()
        );
        guest.run_ok("sync", GUEST_PATIENCE)?;
        WRITERS.check(&raw.image)?;
        ensure!(server.held(id)?.is_empty() && server.io_status(id)? == "ok");
        let state = server.qmp.execute("query-status", Value::Null)?;
        ensure!(state["status"] == "running", "{state}");
    }
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    server.finish()
}
