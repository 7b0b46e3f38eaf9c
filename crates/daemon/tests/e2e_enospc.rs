//! Real ENOSPC, by a vhost-user client against `standfastd` as a process: held, told, extended,
//! continued, verified.

mod harness;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use frontend::Disk;
use harness::{MIB, PATIENCE, Server, Setup, sparse, writes};
use serde_json::{Value, json};
use testkit::{Driver, Ext4, LoopDevice, Tmpfs};

/// The image has more than there is space for.
const IMAGE_BYTES: u64 = 24 * MIB;
const BLOCKS: usize = 6144;
const REQUESTS: u64 = 1500;

/// What runs out of space, and what must be visible then.
struct Scenario<'a> {
    node: Value,
    werror: &'a str,
    status: &'a str,
    scope: &'a str,
    image: &'a Path,
    blocks_max: usize,
}

/// Runs a workload into ENOSPC, looks at everything that must be visible, adds space by `extend`
/// and goes on. Under scope `device` a control export keeps running meanwhile.
fn hold_extend_continue(scenario: &Scenario<'_>, extend: impl Fn() -> Result<()>) -> Result<()> {
    let &Scenario {
        ref node,
        werror,
        status,
        scope,
        image,
        blocks_max,
    } = scenario;
    let mut server = Setup::new()?
        .blockdev(node)
        .export(
            "vda",
            "disk0",
            json!({ "werror": werror, "rerror": "stop", "hold-scope": scope }),
        )
        .control()
        .start()?;
    let mut disk = server.disk("vda")?;
    let mut control = server.disk("control")?;
    let requests = REQUESTS * if blocks_max == 1 { 4 } else { 1 };
    let mut driver = writes(7, requests, BLOCKS, blocks_max);

    ensure!(server.io_status("vda")? == "ok");
    let event = server.run_until_held(&mut driver, &mut disk, "vda")?;
    ensure!(
        event.data["action"] == "stop" && event.data["operation"] == "write",
        "{event:?}"
    );
    ensure!(
        event.data["nospace"] == json!(status == "nospace"),
        "{event:?}"
    );
    ensure!(event.data["node-name"] == "disk0", "{event:?}");
    ensure!(server.io_status("vda")? == status);
    ensure!(!server.held("vda")?.is_empty());
    ensure!(server.io_status("control")? == "ok");
    ensure!(server.io_status("control")? != Value::Null);
    check_freeze(&mut server, scope, &mut driver, &mut disk, &mut control)?;

    extend()?;
    cont(&mut server, scope)?;
    server.run_to_end(&mut driver, &mut disk, |server| {
        // A last piece of the old space may have been full as well.
        if server.io_status("vda")? != "ok" {
            cont(server, scope)?;
        }
        Ok(())
    })?;
    ensure!(server.io_status("vda")? == "ok");
    ensure!(server.held("vda")?.is_empty());
    let stats = server.stats("vda")?;
    ensure!(
        stats["failed_wr_operations"] == 0,
        "a held failure is not the client's: {stats}"
    );
    driver.read_back(&mut disk)?;
    driver.check_image(image)?;
    let summary = driver.finish(&mut disk)?;
    println!("{summary:?}");
    drop((disk, control));
    server.finish()
}

fn cont(server: &mut Server, scope: &str) -> Result<()> {
    if scope == "vm" {
        server.qmp.execute("cont", Value::Null)?;
    } else {
        server
            .qmp
            .execute("x-block-export-cont", json!({ "id": "vda" }))?;
    }
    Ok(())
}

/// While something is held: who goes on and who does not.
fn check_freeze(
    server: &mut Server,
    scope: &str,
    driver: &mut Driver,
    disk: &mut Disk,
    control: &mut Disk,
) -> Result<()> {
    if scope == "vm" {
        server.qmp.wait_event("STOP", PATIENCE)?;
        ensure!(server.run_state()? == "io-error");
        // What is in flight ends, one by one; from there on nothing completes, on no export.
        while driver.reap_within(disk, Duration::from_millis(200))? > 0 {}
        driver.fill(disk)?;
        ensure!(
            driver.reap_within(disk, Duration::from_millis(200))? == 0,
            "vda goes on"
        );
        let read = frontend::Request::Read {
            sector: 0,
            len: 4096,
        };
        control.submit(0, read)?;
        control.kick(0)?;
        ensure!(
            control.wait(0, Duration::from_millis(200))?.is_none(),
            "control goes on"
        );
    } else {
        ensure!(server.run_state()? == "running");
        ensure!(
            server
                .qmp
                .wait_event("STOP", Duration::from_millis(50))
                .is_err()
        );
        server.control_progresses(control)?;
        if scope == "request" {
            // What is not held goes on here too: in the end only what is held is outstanding.
            let deadline = Instant::now() + PATIENCE;
            while driver.outstanding() > server.held("vda")?.len() {
                ensure!(Instant::now() < deadline, "{} wait", driver.outstanding());
                driver.reap_within(disk, Duration::from_millis(20))?;
            }
            let read = frontend::Request::Read {
                sector: 0,
                len: 4096,
            };
            let token = disk.submit(0, read)?;
            disk.kick(0)?;
            let completion = disk.wait(0, PATIENCE)?;
            ensure!(
                completion.is_some_and(|completion| completion.token == token),
                "a read waits under scope request"
            );
        }
    }
    Ok(())
}

fn file(path: &Path, direct: bool) -> Value {
    json!({ "driver": "file", "node-name": "disk0", "filename": path,
        "cache": { "direct": direct } })
}

fn on_tmpfs(direct: bool, scope: &str) -> Result<()> {
    let tmpfs = Tmpfs::new(8 * MIB)?;
    let image = tmpfs.path().join("disk0.img");
    sparse(&image, IMAGE_BYTES)?;
    let scenario = Scenario {
        node: file(&image, direct),
        werror: "enospc",
        status: "nospace",
        scope,
        image: &image,
        blocks_max: 16,
    };
    hold_extend_continue(&scenario, || tmpfs.resize(40 * MIB))
}

#[test]
fn tmpfs_buffered_scope_vm() -> Result<()> {
    on_tmpfs(false, "vm")
}

#[test]
fn tmpfs_direct_scope_device() -> Result<()> {
    on_tmpfs(true, "device")
}

#[test]
fn ext4_in_a_small_loop_device() -> Result<()> {
    let ext4 = Ext4::new(32 * MIB)?;
    let image = ext4.path().join("disk0.img");
    sparse(&image, IMAGE_BYTES)?;
    // Other people's files fill the volume; deleting one is how space comes back.
    let ballast = ext4.path().join("ballast");
    let free = rustix::fs::statvfs(ext4.path())?;
    let size = free.f_bavail * free.f_frsize - 6 * MIB;
    std::fs::write(&ballast, vec![0x5a; usize::try_from(size)?])?;
    let scenario = Scenario {
        node: file(&image, true),
        werror: "enospc",
        status: "nospace",
        scope: "request",
        image: &image,
        blocks_max: 16,
    };
    hold_extend_continue(&scenario, || Ok(std::fs::remove_file(&ballast)?))
}

/// A thin block device: a loop device over a sparse file on a size-limited tmpfs.
struct Thin {
    device: LoopDevice,
    tmpfs: Tmpfs,
}

impl Thin {
    /// The loop driver takes a short write below it for a whole one (lo_complete_rq in the kernel):
    /// a loss that no daemon can see. So each request must be one page, which tmpfs writes wholly
    /// or not at all, and must not be merged with others.
    fn new() -> Result<Self> {
        let tmpfs = Tmpfs::new(8 * MIB)?;
        let backing = tmpfs.path().join("thin");
        sparse(&backing, IMAGE_BYTES)?;
        let device = LoopDevice::new(&backing, true)?;
        let name = device.path().file_name().context("a device has a name")?;
        let queue = Path::new("/sys/block").join(name).join("queue");
        std::fs::write(queue.join("nomerges"), "2")?;
        Ok(Self { device, tmpfs })
    }

    fn node(&self, direct: bool) -> Value {
        json!({ "driver": "host_device", "node-name": "disk0", "filename": self.device.path(),
            "cache": { "direct": direct } })
    }
}

fn on_thin_device(scope: &str) -> Result<()> {
    let thin = Thin::new()?;
    let scenario = Scenario {
        node: thin.node(true),
        werror: "enospc",
        status: "nospace",
        scope,
        image: thin.device.path(),
        blocks_max: 1,
    };
    hold_extend_continue(&scenario, || thin.tmpfs.resize(40 * MIB))
}

#[test]
fn thin_block_device_direct_scope_vm() -> Result<()> {
    on_thin_device("vm")
}

#[test]
fn thin_block_device_direct_scope_device() -> Result<()> {
    on_thin_device("device")
}

/// On a buffered thin device writes succeed into the page cache and only the flush fails. Linux
/// then takes the lost pages for clean: a second flush would "succeed". QEMU latches such a file;
/// so do we: the flush is held, `cont` is refused and names node and remedy, until the operator
/// accepts the loss.
#[test]
fn thin_block_device_buffered_latches() -> Result<()> {
    let thin = Thin::new()?;
    let mut server = Setup::new()?
        .blockdev(&thin.node(false))
        .export(
            "vda",
            "disk0",
            json!({ "werror": "stop", "rerror": "stop", "hold-scope": "device" }),
        )
        .control()
        .start()?;
    // That of a stop policy on a buffered node.
    server.daemon.wait_for_stderr("disk0", PATIENCE)?;
    let mut disk = server.disk("vda")?;
    let mut control = server.disk("control")?;
    let data = vec![0xa5; 128 << 10];
    for chunk in 0..(IMAGE_BYTES / (128 << 10)) {
        let write = frontend::Request::Write {
            sector: chunk * 256,
            data: &data,
        };
        let completion = disk.execute(0, write, PATIENCE)?;
        ensure!(
            completion.is_ok(),
            "a buffered write fails: {}",
            completion.status
        );
    }
    let flush = disk.submit(0, frontend::Request::Flush)?;
    disk.kick(0)?;
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", PATIENCE)?;
    ensure!(
        event.data["operation"] == "write" && event.data["action"] == "stop",
        "{event:?}"
    );
    ensure!(server.held("vda")?.len() == 1);
    server.control_progresses(&mut control)?;
    thin.tmpfs.resize(40 * MIB)?;

    // The refusal changes nothing.
    let before = server.block("vda")?;
    for (command, arguments) in [
        ("cont", Value::Null),
        ("x-block-export-cont", json!({ "id": "vda" })),
    ] {
        let refused = server.qmp.execute(command, arguments);
        let text = refused.expect_err("cont must be refused").to_string();
        ensure!(
            text.contains("disk0") && text.contains("x-node-accept-loss"),
            "{command}: {text}"
        );
    }
    ensure!(server.block("vda")? == before);
    ensure!(
        disk.wait(0, Duration::from_millis(200))?.is_none(),
        "the flush was completed"
    );

    server
        .qmp
        .execute("x-node-accept-loss", json!({ "node-name": "disk0" }))?;
    let completion = disk.wait(0, PATIENCE)?;
    ensure!(
        completion.is_some_and(|c| c.token == flush && !c.is_ok()),
        "the operator accepted the loss: the flush fails"
    );
    server.qmp.execute("cont", Value::Null)?;
    ensure!(server.io_status("vda")? == "ok");
    // From here on the disk is an ordinary one again.
    let write = frontend::Request::Write {
        sector: 0,
        data: &data,
    };
    ensure!(disk.execute(0, write, PATIENCE)?.is_ok());
    ensure!(disk.execute(0, frontend::Request::Flush, PATIENCE)?.is_ok());
    let nothing = server
        .qmp
        .execute("x-node-accept-loss", json!({ "node-name": "disk0" }));
    ensure!(nothing.is_err(), "there is no loss left to accept");
    drop((disk, control));
    server.finish()
}

/// All of it once more, without io_uring.
#[test]
fn again_on_threads() {
    testkit::engine::again_on_threads();
}
