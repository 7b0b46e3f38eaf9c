//! A real guest whose disk is taken away while requests on it are held: QEMU's `device_del`.

mod harness;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{MIB, PATIENCE, Server, Setup, eventually, sparse};
use serde_json::{Value, json};
use testkit::guest::{BOOT, GUEST_PATIENCE};
use testkit::{Guest, VhostUserBlk};

/// A daemon whose disk has less space than it says.
fn server() -> Result<(Server, PathBuf)> {
    let setup = Setup::new()?;
    let image = setup.path("disk.img");
    sparse(&image, 16 * MIB)?;
    let file = json!({ "driver": "file", "node-name": "file0", "filename": image });
    let quota = json!({ "driver": "quota", "node-name": "disk0", "file": "file0", "limit": MIB });
    let setup = setup.blockdev(&file).blockdev(&quota);
    Ok((setup.export("vda", "disk0", json!({})).start()?, image))
}

/// Fills the disk until something is held; the number of requests.
fn hold(server: &mut Server, guest: &Guest) -> Result<usize> {
    let write = "dd if=/dev/zero of=/dev/vda bs=64k count=64 oflag=direct conv=notrunc";
    guest.spawn(write)?;
    let error = server.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    ensure!(error.data["action"] == "stop", "{error:?}");
    server.qmp.wait_event("STOP", PATIENCE)?;
    let held = server.held("vda")?.len();
    ensure!(held > 0 && server.block("vda")?["x-held"] == held);
    Ok(held)
}

/// The device is gone, and QEMU keeps the connection: nothing is held for it as soon as that has been
/// looked at, and it is counted. The VM still waits for `cont`, or for another device.
fn is_dropped(server: &mut Server, guest: &mut Guest, held: usize) -> Result<()> {
    let device = |event: testkit::Event| event.data["device"].clone();
    while device(guest.qmp().wait_event("DEVICE_DELETED", PATIENCE)?) != "disk0" {}
    eventually("what was held is dropped", || {
        Ok(server.held("vda")?.is_empty())
    })?;
    let block = server.block("vda")?;
    ensure!(block["x-held"] == 0 && block["x-incident"] == Value::Null);
    ensure!(block["io-status"] == "nospace", "{block}");
    ensure!(server.stats("vda")?["x-dropped"] == held);
    ensure!(server.run_state()? == "io-error");
    Ok(())
}

/// Linux does not let go of a disk that owes it something. The administrator loses patience and resets
/// the VM: QEMU carries out then what it was asked for.
#[test]
fn what_is_held_goes_with_the_device() -> Result<()> {
    let (mut server, image) = server()?;
    let disk = VhostUserBlk::new(server.socket("vda")).reconnect(Duration::from_secs(1));
    let mut guest = Guest::builder().disk(disk).start()?;
    guest.wait_boot(BOOT)?;
    let held = hold(&mut server, &guest)?;
    guest
        .qmp()
        .execute("device_del", json!({ "id": "disk0" }))?;
    guest.system_reset(PATIENCE)?;
    is_dropped(&mut server, &mut guest, held)?;
    guest.wait_boot(BOOT)?;
    guest.run_ok("! test -e /sys/block/vda", GUEST_PATIENCE)?;

    // Another device on the same connection.
    let more = json!({ "node-name": "disk0", "limit": 32 * MIB });
    server.qmp.execute("x-quota-set", more)?;
    let device = json!({ "driver": "vhost-user-blk-pci", "chardev": "chardev0", "id": "disk1",
        "disable-legacy": "on" });
    guest.qmp().execute("device_add", device)?;
    guest.run_ok(
        "while ! test -b /dev/vda; do sleep 0.1; done
tr '\\0' x </dev/zero | \
dd of=/dev/vda bs=64k count=64 iflag=fullblock oflag=direct conv=notrunc",
        GUEST_PATIENCE,
    )?;
    server.qmp.wait_event("RESUME", PATIENCE)?;
    ensure!(server.run_state()? == "running" && server.io_status("vda")? == "ok");
    guest.check_no_io_errors()?;
    ensure!(guest.power_off(GUEST_PATIENCE)?.success());
    let found = std::fs::read(&image)?;
    ensure!(found[..4 << 20].iter().all(|&byte| byte == b'x'));
    server.end()
}

/// Turns off the slot of a disk, and its indicators: in the slot control register of the PCI Express
/// capability (0x10) of its port.
const POWER_OFF: &str = "port=$(dirname $(readlink -f /sys/block/vda/device/..))
byte() { hexdump -s $1 -n 1 -e '1/1 \"%d\"' $port/config; }
capability=$(byte 0x34)
while [ $(byte $capability) != $((0x10)) ]; do capability=$(byte $((capability + 1))); done
printf '\\361\\007' | \
dd of=$port/config bs=2 seek=$(((capability + 0x18) / 2)) conv=notrunc";

/// A guest that turns the slot off, whatever its driver says to that: the device goes without a reset.
#[test]
fn what_is_held_goes_with_the_slot() -> Result<()> {
    let (mut server, _image) = server()?;
    let chardev = format!("socket,id=chardev0,path={}", server.socket("vda").display());
    let mut guest = Guest::builder();
    for arg in [
        "-machine",
        "q35",
        "-global",
        "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        "-device",
        "pcie-root-port,id=root0,chassis=1",
        "-chardev",
        &chardev,
        "-device",
        "vhost-user-blk-pci,bus=root0,chardev=chardev0,id=disk0",
    ] {
        guest = guest.qemu_arg(arg);
    }
    let mut guest = guest.start()?;
    guest.wait_boot(BOOT)?;
    let held = hold(&mut server, &guest)?;
    guest
        .qmp()
        .execute("device_del", json!({ "id": "disk0" }))?;
    guest.run_ok(POWER_OFF, GUEST_PATIENCE)?;
    is_dropped(&mut server, &mut guest, held)?;
    server.finish()
}
