//! libvirt: a domain whose disks are ours, from its start to its end, with the link on a second monitor.
//! libvirtd and QEMU run as another user.

mod harness;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::{MIB, PATIENCE, Server, Setup, allocated, eventually, sparse};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::guest::{BOOT, Boot, Files, GUEST_PATIENCE, Inside, io_errors, make_ext4_image};
use testkit::{Daemon, LogEntry, Tmpfs};

/// nobody, nogroup.
const USER: u32 = 65534;
const DOMAIN: &str = "guest";

/// A libvirtd of a user of its own. Domains that it leaves behind are destroyed.
struct Libvirt {
    daemon: Daemon,
    boot: Boot,
    dir: TempDir,
}

impl Libvirt {
    fn start() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("standfast-virt-")
            .tempdir()?;
        let boot = Boot::prepare(dir.path())?;
        for name in ["config", "run", "cache", "data"] {
            fs::create_dir(dir.path().join(name))?;
        }
        for path in fs::read_dir(dir.path())? {
            chown(path?.path(), Some(USER), Some(USER))?;
        }
        chown(dir.path(), Some(USER), Some(USER))?;
        let words = Self::words(dir.path(), "libvirtd");
        let daemon = Daemon::builder(&words[0])
            .args(&words[1..])
            .socket(dir.path().join("run/libvirt/libvirt-sock"))
            .start()
            .context("libvirtd; packages libvirt-daemon, libvirt-daemon-driver-qemu")?;
        Ok(Self { daemon, boot, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that runs as that user, who has nothing outside of `dir`.
    fn words(dir: &Path, program: &str) -> Vec<String> {
        let dir = dir.display();
        let mut words: Vec<_> = ["setpriv", "--reuid=65534", "--regid=65534"]
            .into_iter()
            .chain([
                "--clear-groups",
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            ])
            .map(str::to_owned)
            .collect();
        words.push(format!("HOME={dir}"));
        for (name, at) in [
            ("CONFIG_HOME", "config"),
            ("RUNTIME_DIR", "run"),
            ("CACHE_HOME", "cache"),
            ("DATA_HOME", "data"),
        ] {
            words.push(format!("XDG_{name}={dir}/{at}"));
        }
        words.push(program.to_owned());
        words
    }

    fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let words = Self::words(self.dir.path(), "virsh");
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["--quiet", "--connect", "qemu:///session"])
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "virsh {arguments:?}: {}\nlibvirtd:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.daemon.stderr()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn state(&self) -> Result<String> {
        self.virsh(&["domstate", DOMAIN])
    }

    /// Writes an XML document for virsh; its path.
    fn document(&self, name: &str, xml: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, xml)?;
        chown(&path, Some(USER), Some(USER))?;
        path.to_str().map(str::to_owned).context("the path is text")
    }

    /// The domain of the manual (docs/vmm.md), emulated, with the serial ports of our guests.
    fn domain(&self, disk: &str) -> String {
        let Boot {
            kernel,
            initramfs,
            arguments,
        } = &self.boot;
        format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{DOMAIN}</name>
  <memory unit='MiB'>512</memory>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    {disk}
    <serial type='file'><source path='{log}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{agent}'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{link},server=on,wait=off'/>
  </qemu:commandline>
</domain>",
            kernel = kernel.display(),
            initramfs = initramfs.display(),
            log = self.path("kernel.log").display(),
            agent = self.path("agent").display(),
            link = self.path("link.qmp").display(),
        )
    }

    /// Starts the domain, to its boot.
    fn boot(&self) -> Result<Inside> {
        self.virsh(&["start", DOMAIN])?;
        let inside = Inside::connect(&self.path("agent"), &self.path("kernel.log"))?;
        inside.wait_first_boot(BOOT)?;
        Ok(inside)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // None is left, if the test has got to its end; libvirtd would leave it running.
        let _ = self.virsh(&["destroy", DOMAIN]);
    }
}

/// A disk as the manual has it.
fn disk(server: &Path, target: &str) -> String {
    format!(
        "<disk type='vhostuser' device='disk' snapshot='no'>
      <driver name='qemu' type='raw'/>
      <source type='unix' path='{}'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target dev='{target}' bus='virtio'/>
    </disk>",
        server.display()
    )
}

/// An export to that user.
fn export(setup: Setup, id: &str, node: &str) -> Setup {
    let path = setup.path(&format!("{id}.sock"));
    let addr = json!({ "type": "unix", "path": path, "owner": USER.to_string(), "group": USER.to_string() });
    setup.export(id, node, json!({ "addr": addr, "werror": "enospc" }))
}

fn has_client(server: &mut Server, id: &str) -> Result<bool> {
    let exports = server.qmp.execute("query-block-exports", Value::Null)?;
    let export = (exports.as_array().into_iter().flatten()).find(|export| export["id"] == id);
    Ok(export.context("the export is there")?["x-client"] == true)
}

/// What libvirt does on its own connection to QEMU counts here.
fn resume(libvirt: &Libvirt, server: &mut Server) -> Result<()> {
    let said = LogEntry::Command("cont".to_owned());
    server.qmp.log_mut().push(said);
    libvirt.virsh(&["resume", DOMAIN])?;
    server.wait_link_running()?;
    ensure!(libvirt.state()? == "running");
    Ok(())
}

#[test]
fn a_domain_of_libvirt() -> Result<()> {
    let libvirt = Libvirt::start()?;
    let tmpfs = Tmpfs::new(128 * MIB)?;
    let (image, second) = (tmpfs.path().join("vda.img"), tmpfs.path().join("vdb.img"));
    make_ext4_image(&image, 64 * MIB)?;
    sparse(&second, 4 * MIB)?;
    let setup = Setup::new()?;
    // The user finds sockets there whose path it knows.
    fs::set_permissions(setup.path(""), fs::Permissions::from_mode(0o711))?;
    let link = libvirt.path("link.qmp");
    let node = |name: &str, image: &Path| json!({ "driver": "file", "node-name": name, "filename": image, "cache": { "direct": true } });
    let setup = setup
        .option(
            "--object",
            json!({ "qom-type": "vmm-qemu", "id": "vm0", "path": link }),
        )
        .blockdev(&node("disk0", &image))
        .blockdev(&node("disk1", &second));
    let setup = export(export(setup, "vda", "disk0"), "vdb", "disk1");
    let mut server = setup.start()?;
    let [vda, vdb] =
        [("vda", "vda"), ("vdb", "vdb")].map(|(id, name)| disk(&server.socket(id), name));
    let domain = libvirt.document("domain.xml", &libvirt.domain(&vda))?;
    libvirt.virsh(&["define", &domain])?;
    let guest = libvirt.boot()?;
    server.wait_link_running()?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;

    // Suspended by the administrator, that is no error; the link leaves it alone.
    libvirt.virsh(&["suspend", DOMAIN])?;
    server.wait_link(&json!({ "vm": "paused", "paused-by": "other" }))?;
    ensure!(server.run_state()? == "running");
    resume(&libvirt, &mut server)?;

    // Out of space: libvirt shows the pause, and resuming there goes on here.
    let files = Files {
        dir: "/mnt/files".to_owned(),
        seed: 1,
        count: 8,
        kib: 512,
    };
    tmpfs.resize(allocated(&image)? + 2 * MIB)?;
    let writing = guest.spawn(&files.write_command())?;
    let event = server.qmp.wait_event("BLOCK_IO_ERROR", GUEST_PATIENCE)?;
    ensure!(
        event.data["action"] == "stop" && event.data["nospace"] == true,
        "{event:?}"
    );
    server.qmp.wait_event("STOP", PATIENCE)?;
    server.wait_link(&json!({ "vm": "paused", "pending": null, "paused-by": "link" }))?;
    eventually("libvirt knows of it", || Ok(libvirt.state()? == "paused"))?;
    ensure!(!server.held("vda")?.is_empty() && !writing.has_ended());
    tmpfs.resize(128 * MIB)?;
    resume(&libvirt, &mut server)?;
    let output = writing.wait(GUEST_PATIENCE)?;
    ensure!(output.status == 0, "{output:?}");

    // A disk comes and goes.
    let document = libvirt.document("vdb.xml", &vdb)?;
    libvirt.virsh(&["attach-device", DOMAIN, &document])?;
    let script = "while ! test -b /dev/vdb; do sleep 0.1; done
stamps 7 7 0 64 | dd of=/dev/vdb bs=4k iflag=fullblock oflag=direct conv=notrunc";
    guest.run_ok(script, GUEST_PATIENCE)?;
    ensure!(has_client(&mut server, "vdb")?);
    libvirt.virsh(&["detach-device", DOMAIN, &document])?;
    guest.run_ok("while test -b /dev/vdb; do sleep 0.1; done", GUEST_PATIENCE)?;
    eventually("its client has gone", || {
        Ok(!has_client(&mut server, "vdb")?)
    })?;
    let written = fs::read(&second)?;
    for (sector, found) in (0..).zip(written.chunks(512).take(64)) {
        ensure!(
            found == testkit::guest::stamp(7, 7, sector),
            "sector {sector}"
        );
    }

    // The daemon is killed, and libvirt's QEMU is back when another one listens.
    server.daemon.kill()?;
    server.start_again()?;
    eventually("the client is back", || has_client(&mut server, "vda"))?;
    guest.drop_caches(GUEST_PATIENCE)?;
    guest.verify_files(&files, GUEST_PATIENCE)?;
    server.wait_link_running()?;

    // Off, and on again.
    guest.run_ok("umount /mnt", GUEST_PATIENCE)?;
    let log = fs::read_to_string(libvirt.path("kernel.log"))?;
    libvirt.virsh(&["destroy", DOMAIN])?;
    ensure!(libvirt.state()? == "shut off");
    let guest = libvirt.boot()?;
    guest.mount("vda", "/mnt", GUEST_PATIENCE)?;
    guest.verify_files(&files, GUEST_PATIENCE)?;
    guest.run_ok("umount /mnt", GUEST_PATIENCE)?;
    guest.check_no_io_errors()?;
    ensure!(io_errors(&log).is_empty(), "{log}");
    libvirt.virsh(&["destroy", DOMAIN])?;
    libvirt.virsh(&["undefine", DOMAIN])?;
    server.finish()
}
