//! Chains of images under a load that is checked: it goes on from image to image, each over the one before, up to five over a raw file.
//! Full, with an error below, killed. Needs qemu-img (Debian: qemu-utils), and root.

mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::Options;
use harness::{MIB, PATIENCE, Server, Setup, iothreads};
use serde_json::{Value, json};
use testkit::qcow2_image::{is_clean, is_not_corrupt, run, to_raw};
use testkit::{Driver, Mix, Place, Rng, Tmpfs, Workload, rounds, soak};

/// Options of the images over the raw file, and the lengths of their disks in MiB: each is as long as what is below, or longer.
const LAYERS: [(&str, u64); 5] = [
    ("cluster_size=64k", 6),
    ("cluster_size=4k,refcount_bits=64", 6),
    ("cluster_size=64k,extended_l2=on", 9),
    ("cluster_size=2M", 9),
    ("cluster_size=16k", 11),
];
/// Length of the raw file.
const BASE: u64 = 4 * MIB;
const BLOCK: u64 = 4096;

fn blocks(bytes: u64) -> Result<usize> {
    Ok(usize::try_from(bytes / BLOCK)?)
}

fn load(seed: u64, bytes: u64) -> Result<Driver> {
    Ok(Driver::new(Workload {
        seed,
        requests: 0,
        depth: 48,
        blocks: blocks(bytes)?,
        mix: Mix {
            read: 35,
            write: 40,
            write_zeroes: 10,
            discard: 8,
            flush: 7,
        },
        timeout: PATIENCE,
        ..Workload::default()
    }))
}

/// An image over another one.
fn overlay(path: &Path, below: &Path, options: &str, bytes: u64) -> Result<()> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("text");
    let format = match below
        .extension()
        .is_some_and(|extension| extension == "raw")
    {
        true => "raw",
        false => "qcow2",
    };
    let arguments = [
        "create",
        "-qfqcow2",
        "-o",
        options,
        "-F",
        format,
        "-b",
        &text(below)?,
        &text(path)?,
        &bytes.to_string(),
    ];
    run("qemu-img", &arguments)?;
    Ok(())
}

/// A chain in the making, and what is on its disk.
struct Chain {
    place: Place,
    /// From the bottom, and what they are.
    images: Vec<PathBuf>,
    driver: Driver,
    bytes: u64,
}

impl Chain {
    /// A raw file with something in it.
    fn new(seed: u64) -> Result<Self> {
        let place = Place::new();
        let base = place.file("base.raw");
        harness::sparse(&base, BASE)?;
        let mut this = Self {
            place,
            images: vec![base],
            driver: load(seed, BASE)?,
            bytes: BASE,
        };
        this.written(400, |options| options)?;
        Ok(this)
    }

    fn top(&self) -> &Path {
        self.images
            .last()
            .map_or_else(|| Path::new(""), PathBuf::as_path)
    }

    /// One more image, with nothing in it.
    fn grow(&mut self) -> Result<()> {
        let number = self.images.len();
        let (options, length) = LAYERS[number - 1];
        self.bytes = length * MIB;
        let path = self.place.file(&format!("{number}.qcow2"));
        overlay(&path, self.top(), options, self.bytes)?;
        self.images.push(path);
        self.driver.checker_mut().extend_to(blocks(self.bytes)?);
        Ok(())
    }

    fn below(&self) -> Result<Vec<Vec<u8>>> {
        let (_, below) = self.images.split_last().context("there is one")?;
        let read = below.iter().map(std::fs::read);
        Ok(read.collect::<std::io::Result<_>>()?)
    }

    /// The definition of the uppermost image: those below are what it says.
    fn definition(&self) -> Value {
        let file = json!({ "driver": "file", "node-name": "file0", "filename": self.top(), "discard": "unmap" });
        match self.images.len() {
            1 => json!({ "driver": "raw", "node-name": "disk0", "file": file }),
            _ => {
                json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": file })
            }
        }
    }

    /// Served, and written by the load; `change` changes the definition. What is below stays what it is.
    fn written(&mut self, requests: u64, change: impl Fn(Value) -> Value) -> Result<()> {
        let below = self.below()?;
        let mut server = serve(&[change(self.definition())])?;
        let mut disk = server.disk_with("vda", two_queues())?;
        self.driver.read_back(&mut disk)?;
        self.driver.plan_more(requests);
        server.run_to_end(&mut self.driver, &mut disk, |_| Ok(()))?;
        self.driver.read_back(&mut disk)?;
        ensure!(server.held("vda")?.is_empty());
        drop(disk);
        server.finish()?;
        ensure!(self.below()? == below, "what is below was written");
        self.is_whole()
    }

    /// QEMU finds nothing wrong, and every byte.
    fn is_whole(&mut self) -> Result<()> {
        if self.images.len() == 1 {
            let base = self.top().to_owned();
            return self.driver.check_image(&base);
        }
        is_clean(self.top())?;
        let raw = self.place.file("all");
        to_raw(self.top(), &raw)?;
        self.driver.check_image(&raw)
    }
}

fn two_queues() -> Options {
    Options {
        queues: 2,
        ..Options::default()
    }
}

/// A daemon with the export `vda` of the node `disk0`, on two iothreads. Whatever fails is held.
fn serve(nodes: &[Value]) -> Result<Server> {
    let mut setup = Setup::new()?.iothreads(2).with_state();
    for node in nodes {
        setup = setup.blockdev(node);
    }
    let export =
        json!({ "werror": "stop", "rerror": "stop", "num-queues": 2, "iothread": iothreads(2) });
    setup.export("vda", "disk0", export).start()
}

/// From the bottom, all at once.
fn chain(seed: u64, layers: usize, requests: u64) -> Result<Chain> {
    let mut chain = Chain::new(seed)?;
    for _ in 0..layers {
        chain.grow()?;
        chain.written(requests, |options| options)?;
    }
    Ok(chain)
}

/// One image over the other; what is below is shorter, and never written.
#[test]
fn up_to_five_images() -> Result<()> {
    for seed in 0..soak(1, 20) {
        let mut chain = chain(seed, 5, 400)?;
        // As users of LVM have it, who discard below by hand.
        chain.written(400, |mut options| {
            options["discard-no-unref"] = true.into();
            options
        })?;
        println!("{:?}", chain.driver.checker_mut().summary());
    }
    Ok(())
}

/// The same through `copy-on-read`: nothing is needed of what is below when all has been read.
#[test]
fn copied_up_under_load() -> Result<()> {
    for seed in 0..soak(1, 20) {
        let mut chain = chain(100 + seed, 3, 200)?;
        chain.grow()?;
        chain.written(400, |options| {
            let mut below = options;
            below["node-name"] = "image0".into();
            json!({ "driver": "copy-on-read", "node-name": "disk0", "file": below })
        })?;
        let top = chain.top().to_str().context("text")?;
        run("qemu-img", &["rebase", "-u", "-fqcow2", "-b", "", top])?;
        chain.is_whole()?;
    }
    Ok(())
}

/// The image above has no room for what it copies of those below: its file is the one that is named, and all goes on when there is.
#[test]
fn full_above() -> Result<()> {
    for seed in 0..soak(1, 20) {
        let mut chain = chain(200 + seed, 2, 300)?;
        let mut bytes = 2 * MIB;
        let tmpfs = Tmpfs::new(bytes)?;
        let top = tmpfs.path().join("top.qcow2");
        overlay(&top, chain.top(), "cluster_size=64k", chain.bytes)?;
        chain.images.push(top);
        let below = chain.below()?;
        let mut server = serve(&[chain.definition()])?;
        let mut disk = server.disk_with("vda", two_queues())?;
        chain.driver.plan_more(1500);
        let event = server.run_until_held(&mut chain.driver, &mut disk, "vda")?;
        harness::qcow2::is_nospace(&event)?;
        ensure!(event.data["node-name"] == "disk0", "{event:?}");
        let mut holds = 0;
        server.run_to_end(&mut chain.driver, &mut disk, |server| {
            if server.io_status("vda")? != "ok" {
                holds += 1;
                bytes += 700 << 10;
                tmpfs.resize(bytes)?;
                server.qmp.execute("cont", Value::Null)?;
            }
            Ok(())
        })?;
        ensure!(holds > 1, "{holds}");
        chain.driver.read_back(&mut disk)?;
        drop(disk);
        server.finish()?;
        ensure!(chain.below()? == below, "what is below was written");
        chain.is_whole()?;
    }
    Ok(())
}

/// What is below cannot be read for a while: by reads, and by writes that copy. They are held, the node below is named, and all is
/// as it was when they go on.
#[test]
fn an_error_below() -> Result<()> {
    for errno in [5, 121] {
        // The image between is nearly empty: with much in it hardly a request reaches the raw file, and once none of a round did.
        let mut chain = chain(300 + errno, 1, 20)?;
        chain.grow()?;
        let below = chain.below()?;
        let file = |node: &str, path: &Path| json!({ "driver": "file", "node-name": node, "filename": path });
        let images = chain.images.clone();
        let [base, middle, top] = images.as_slice() else {
            anyhow::bail!("{images:?}");
        };
        let nodes = [
            json!({ "driver": "raw", "node-name": "base0", "read-only": true,
                "file": { "driver": "blkdebug", "node-name": "debug0", "read-only": true, "image": file("file2", base) } }),
            json!({ "driver": "qcow2", "node-name": "middle0", "read-only": true, "file": file("file1", middle),
                "backing": "base0" }),
            json!({ "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "file": file("file0", top),
                "backing": "middle0" }),
        ];
        let mut server = serve(&nodes)?;
        let mut disk = server.disk_with("vda", two_queues())?;
        for _ in 0..3 {
            server.qmp.take_events(Duration::ZERO)?;
            let fails = json!({ "event": "none", "iotype": "read", "errno": errno });
            server.inject("debug0", fails)?;
            chain.driver.plan_more(300);
            let event = server.run_until_held(&mut chain.driver, &mut disk, "vda")?;
            ensure!(event.data["node-name"] == "disk0", "{event:?}");
            ensure!(event.data["x-error-node"] == "debug0", "{event:?}");
            ensure!(
                event.data["action"] == "stop" && event.data["nospace"] == false,
                "{event:?}"
            );
            ensure!(server.io_status("vda")? == "failed");
            chain
                .driver
                .go_on_for(&mut disk, Duration::from_millis(20))?;
            server.drain("debug0", &mut chain.driver, &mut disk)?;
        }
        server.run_to_end(&mut chain.driver, &mut disk, |_| Ok(()))?;
        chain.driver.read_back(&mut disk)?;
        drop(disk);
        server.finish()?;
        ensure!(chain.below()? == below, "what is below was written");
        chain.is_whole()?;
    }
    Ok(())
}

/// The daemon is killed while it copies from below, and the guest lives on: all that was acknowledged is there, flushed or not.
#[test]
fn killed_over_and_over() -> Result<()> {
    let mut chain = chain(400, 2, 200)?;
    chain.grow()?;
    let below = chain.below()?;
    let mut rng = Rng::new(400);
    let mut server = serve(&[chain.definition()])?;
    let mut disk = server.disk_with("vda", two_queues())?;
    let mut taken_over = 0;
    for round in rounds(5, 100) {
        chain.driver.plan_more(u64::from(u32::MAX));
        let time = Duration::from_micros(rng.below(60_000));
        chain.driver.go_on_for(&mut disk, time)?;
        server.daemon.kill()?;
        chain.driver.reap_rest(&mut disk)?;
        chain.driver.plan_no_more();
        taken_over += chain.driver.outstanding();
        is_not_corrupt(chain.top())?;
        server.start_again()?;
        disk = server.reconnect("vda", disk.disconnect())?;
        server.run_to_end(&mut chain.driver, &mut disk, |_| Ok(()))?;
        let read = chain.driver.read_back(&mut disk);
        read.with_context(|| format!("round {round}"))?;
    }
    ensure!(taken_over > 0, "nothing was at stake");
    drop(disk);
    server.qmp.execute("stop", Value::Null)?;
    server.daemon.terminate(PATIENCE)?;
    ensure!(chain.below()? == below, "what is below was written");
    // What the dead ones have leaked is found again.
    let name = chain.top().to_str().context("text")?.to_owned();
    run("qemu-img", &["check", "-qfqcow2", "-rleaks", &name])?;
    chain.is_whole()
}
