//! U-Boot as a guest: a driver that is not Linux's, on buses that Linux guests of ours do not use.
//! It makes all of a queue's descriptors that the device has, and polls instead of being called.
#![allow(clippy::tests_outside_test_module, reason = "the whole file is one")]

mod harness;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail, ensure};
use harness::{PATIENCE, Setup};
use serde_json::json;
use testkit::Daemon;

const FIRMWARE: &str = "/usr/lib/u-boot/qemu_arm64/u-boot.bin";
const SECTORS: usize = 4096;
/// Where U-Boot has memory to spare.
const BUFFER: &str = "40200000";

/// The serial line of a guest.
struct Console {
    stream: UnixStream,
    /// What has come and was not asked for yet.
    text: String,
    commands: u32,
}

impl Console {
    /// Waits for `what`; returns all up to its end.
    fn until(&mut self, what: &str) -> Result<String> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                return Ok(std::mem::replace(&mut self.text, rest));
            }
            let text = &self.text;
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("QEMU has ended; no {what:?} in {text:?}"),
                Ok(count) => self
                    .text
                    .push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) => bail!("no {what:?} in {text:?}: {error}"),
            }
        }
    }

    /// What a command prints.
    fn run(&mut self, command: &str) -> Result<String> {
        self.commands += 1;
        // Typed words are echoed, but not at the beginning of a line.
        let end = format!("end-{}", self.commands);
        writeln!(self.stream, "{command}; echo {end}")?;
        let output = self.until(&format!("\n{end}"))?;
        // A command looks for Ctrl-C while it prints, and swallows what is typed too early.
        self.until("=> ")?;
        Ok(output)
    }

    fn succeeds(&mut self, command: &str) -> Result<()> {
        let output = self.run(command)?;
        ensure!(output.contains(": OK"), "{command}: {output}");
        Ok(())
    }
}

fn content(sector: usize) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (at, pair) in bytes.chunks_exact_mut(2).enumerate() {
        let word =
            u16::try_from(sector * 257 % 65521).unwrap_or(0) ^ u16::try_from(at).unwrap_or(0);
        pair.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Finds the disk, reads from it and writes to it.
fn reads_and_writes(device: &str, arguments: &[&str]) -> Result<()> {
    let setup = Setup::new()?;
    let (image, line) = (setup.path("disk.img"), setup.path("serial"));
    let mut expected: Vec<u8> = (0..SECTORS).flat_map(content).collect();
    std::fs::write(&image, &expected)?;
    let file = json!({ "driver": "file", "node-name": "file", "filename": image });
    let mut server = setup
        .blockdev(&file)
        .export("vda", "file", json!({ "writable": true }))
        .start()?;
    let chardev = format!("socket,id=vda,path={}", server.socket("vda").display());
    let serial = format!("unix:{},server=on,wait=on", line.display());
    let qemu = Daemon::builder("qemu-system-aarch64")
        .args(["-machine", "virt,memory-backend=mem", "-cpu", "cortex-a57"])
        .args(["-m", "128M", "-net", "none", "-display", "none"])
        .args(["-monitor", "none", "-bios", FIRMWARE, "-serial", &serial])
        .args(["-object", "memory-backend-memfd,id=mem,size=128M,share=on"])
        .args(["-chardev", &chardev, "-device", device])
        .args(arguments)
        .socket(&line)
        .timeout(PATIENCE)
        .start()?;
    let stream = UnixStream::connect(&line)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut console = Console {
        stream,
        text: String::new(),
        commands: 0,
    };
    console.until("Hit any key")?;
    writeln!(console.stream, " ")?;
    console.until("=> ")?;
    console.run("virtio scan")?;
    let info = console.run("virtio info")?;
    ensure!(info.contains("(4096 x 512)"), "{info}");
    // One request that is as long as they get here, and many short ones.
    console.succeeds(&format!("virtio read {BUFFER} 10 400"))?;
    console.succeeds(&format!("virtio write {BUFFER} 800 400"))?;
    expected.copy_within(0x10 * 512..0x410 * 512, 0x800 * 512);
    for sector in 0..40 {
        console.succeeds(&format!("virtio read {BUFFER} {sector:x} 1"))?;
        console.succeeds(&format!("virtio write {BUFFER} {:x} 1", 0xfff - sector))?;
        expected.copy_within(sector * 512..(sector + 1) * 512, (0xfff - sector) * 512);
    }
    // The disk is the same after a reset of the machine.
    writeln!(console.stream, "reset")?;
    console.until("Hit any key")?;
    writeln!(console.stream, " ")?;
    console.until("=> ")?;
    console.run("virtio scan")?;
    console.succeeds(&format!("virtio read {BUFFER} 800 400"))?;
    console.succeeds(&format!("virtio write {BUFFER} 10 400"))?;
    expected.copy_within(0x800 * 512..0xc00 * 512, 0x10 * 512);
    let found = std::fs::read(&image)?;
    let differs = (0..SECTORS).find(|n| found[n * 512..][..512] != expected[n * 512..][..512]);
    ensure!(
        differs.is_none(),
        "sector {differs:?} is not what was written"
    );
    drop(qemu);
    let status = server.daemon.terminate(PATIENCE)?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// QEMU asks for an inflight region for its `queue-size`, 128; on this bus the guest makes 1024
/// descriptors. The queue was broken, and U-Boot and Linux waited for ever at the first look at the
/// disk.
#[test]
fn mmio_legacy() -> Result<()> {
    let legacy = ["-global", "virtio-mmio.force-legacy=true"];
    reads_and_writes("vhost-user-blk,chardev=vda", &legacy)
}

#[test]
fn mmio_modern() -> Result<()> {
    let modern = ["-global", "virtio-mmio.force-legacy=false"];
    reads_and_writes("vhost-user-blk,chardev=vda", &modern)
}

#[test]
fn pci_legacy() -> Result<()> {
    let device = "vhost-user-blk-pci,chardev=vda,disable-modern=on,disable-legacy=off";
    reads_and_writes(device, &[])
}

#[test]
fn pci_modern() -> Result<()> {
    let device = "vhost-user-blk-pci,chardev=vda,disable-modern=off,disable-legacy=on";
    reads_and_writes(device, &[])
}
