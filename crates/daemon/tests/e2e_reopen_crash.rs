//! `kill -9` of the daemon while a disk gets another image behind it, and after that, under a client that lives on: all that was
//! acknowledged is there, flushed or not. In a soak 100 rounds; `STANDFAST_SOAK_FROM=round` goes on. Needs qemu-img (Debian:
//! qemu-utils).

mod harness;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::Disk;
use harness::{PATIENCE, Server, Setup, iothreads};
use serde_json::{Value, json};
use testkit::cut::chain_of;
use testkit::qcow2_image::{create, is_not_corrupt, run};
use testkit::{Driver, Mix, Rng, Workload, lives, rounds};

const BLOCKS: usize = 2048;
/// After so many rounds the images and the load are others.
const LIFE: u64 = 10;

/// A disk whose top image, `top`, stays, while others come to be behind it, one after the other.
struct Stack {
    server: Server,
    driver: Driver,
    disk: Disk,
    /// The latest one.
    below: u64,
}

fn name_of(below: u64) -> String {
    format!("below{below}")
}

fn file(image: PathBuf) -> Value {
    json!({ "driver": "file", "filename": image, "discard": "unmap" })
}

impl Stack {
    /// A disk that has been written to before it got its overlay, and after it.
    fn new(seed: u64) -> Result<Self> {
        let setup = Setup::new()?.iothreads(2).with_state();
        let below = setup.path(&name_of(0));
        create(&below, "cluster_size=64k", BLOCKS as u64 * 4096)?;
        let node = json!({ "driver": "qcow2", "node-name": name_of(0), "discard": "unmap",
            "file": file(below) });
        let options = json!({ "werror": "stop", "iothread": iothreads(2) });
        let setup = setup.blockdev(&node).export("vda", &name_of(0), options);
        let server = setup.start()?;
        let disk = server.disk("vda")?;
        let driver = Driver::new(Workload {
            seed,
            requests: u64::MAX,
            blocks: BLOCKS,
            mix: Mix {
                read: 30,
                write: 55,
                write_zeroes: 8,
                discard: 6,
                flush: 1,
            },
            timeout: PATIENCE,
            ..Workload::default()
        });
        let mut stack = Self {
            server,
            driver,
            disk,
            below: 0,
        };
        stack.go_on(100)?;
        let arguments = json!({ "node-name": name_of(0), "snapshot-file": stack.server.path("top"),
            "snapshot-node-name": "top" });
        let qmp = &mut stack.server.qmp;
        qmp.execute("blockdev-snapshot-sync", arguments)?;
        stack.go_on(50)?;
        Ok(stack)
    }

    fn go_on(&mut self, milliseconds: u64) -> Result<()> {
        let time = Duration::from_millis(milliseconds);
        self.driver.go_on_for(&mut self.disk, time)
    }

    /// The uppermost node, over `backing`.
    fn top(&self, backing: Value) -> Value {
        json!({ "driver": "qcow2", "node-name": "top", "discard": "unmap",
            "file": file(self.server.path("top")), "backing": backing })
    }

    /// Others have put what is behind the top into an image of its own. Its node is there.
    fn copy_below(&mut self) -> Result<u64> {
        let next = self.below + 1;
        let (from, to) = (name_of(self.below), name_of(next));
        let [from, to] = [from, to].map(|name| self.server.path(&name));
        let to_name = to.to_str().context("a path is text")?;
        run(
            "qemu-img",
            &["convert", "-UOqcow2", &chain_of([&from]), to_name],
        )?;
        let node = json!({ "driver": "qcow2", "node-name": name_of(next), "read-only": true,
            "file": file(to) });
        self.server.qmp.execute("blockdev-add", node)?;
        Ok(next)
    }

    /// Another daemon, in whose command line the image `below` is behind the top.
    fn start_again(mut self, below: u64) -> Result<Self> {
        self.driver.reap_rest(&mut self.disk)?;
        let name = name_of(below);
        let behind = json!({ "driver": "qcow2", "node-name": name, "read-only": true,
            "file": file(self.server.path(&name)) });
        let node = self.top(behind);
        self.server.set_blockdev(&node)?;
        self.server.set_export_node("top")?;
        self.server.start_again()?;
        self.disk = self.server.reconnect("vda", self.disk.disconnect())?;
        self.below = below;
        Ok(self)
    }
}

#[derive(Debug, Default)]
struct Count {
    finished: u64,
    given_up: u64,
    taken_over: usize,
}

fn killed(mut stack: Stack, round: u64, rng: &mut Rng, count: &mut Count) -> Result<Stack> {
    let next = stack.copy_below()?;
    let wanted = json!({ "options": [stack.top(json!(name_of(next)))] });
    let is_finished = rng.below(2) == 0;
    if is_finished {
        stack.server.qmp.execute("blockdev-reopen", wanted)?;
        stack.go_on(rng.below(60))?;
    } else {
        let command = json!({ "execute": "blockdev-reopen", "arguments": wanted });
        let qmp = &mut stack.server.qmp;
        qmp.send_raw(format!("{command}\n").as_bytes())?;
        stack.go_on(rng.below(30))?;
    }
    stack.server.daemon.kill()?;
    // As long as nobody knows that it is done, either is right.
    let below = match is_finished || rng.below(2) == 0 {
        true => next,
        false => stack.below,
    };
    stack = stack.start_again(below)?;
    *match is_finished {
        true => &mut count.finished,
        false => &mut count.given_up,
    } += 1;
    count.taken_over += stack.driver.outstanding();
    stack.driver.drain(&mut stack.disk)?;
    let read = stack.driver.read_back(&mut stack.disk);
    read.with_context(|| format!("round {round}"))?;
    is_not_corrupt(&stack.server.path("top"))?;
    Ok(stack)
}

#[test]
fn another_image_comes_to_be_behind() -> Result<()> {
    let mut count = Count::default();
    for life in lives(rounds(8, 100), LIFE) {
        let seed = life.start;
        let mut stack = Stack::new(seed)?;
        let mut rng = Rng::new(seed);
        for round in life {
            let below = stack.below;
            let killed = killed(stack, round, &mut rng, &mut count);
            stack = killed.with_context(|| format!("round {round}, over {below}"))?;
        }
        drop(stack.disk.disconnect());
        stack.server.end()?;
    }
    println!("{count:?}");
    ensure!(count.finished > 0 && count.given_up > 0 && count.taken_over > 0);
    Ok(())
}
