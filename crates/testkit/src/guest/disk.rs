//! The guest's disks, as QEMU's options.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A vhost-user-blk disk. Its server must listen when the guest is started.
#[derive(Debug, Clone)]
pub struct VhostUserBlk {
    socket: PathBuf,
    queues: Option<u16>,
    reconnect: Option<Duration>,
}

/// A virtio-blk disk that QEMU serves itself, from a raw image: what QEMU's own error policy does.
#[derive(Debug, Clone)]
pub struct VirtioBlk {
    image: PathBuf,
    werror: String,
    rerror: String,
    direct: bool,
    qcow2: bool,
}

/// A disk of either kind.
#[derive(Debug, Clone)]
pub enum Disk {
    /// Served by a vhost-user server.
    VhostUserBlk(VhostUserBlk),
    /// Served by QEMU.
    VirtioBlk(VirtioBlk),
}

/// QEMU's version: major, minor.
pub(super) type Version = (u32, u32);

impl VhostUserBlk {
    /// A disk served on `socket`. QEMU asks for as many queues as there are CPUs, and does not
    /// reconnect.
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
            queues: None,
            reconnect: None,
        }
    }

    /// Number of queues.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Lets QEMU reconnect after that long, in whole seconds (rounded up) before QEMU 9.2.
    #[must_use]
    pub fn reconnect(mut self, after: Duration) -> Self {
        self.reconnect = Some(after);
        self
    }
}

impl VirtioBlk {
    /// A disk with QEMU's default policies that bypasses the host's page cache.
    #[must_use]
    pub fn new(image: impl AsRef<Path>) -> Self {
        Self {
            image: image.as_ref().to_owned(),
            werror: "enospc".into(),
            rerror: "report".into(),
            direct: true,
            qcow2: false,
        }
    }

    /// Policy of writes.
    #[must_use]
    pub fn werror(mut self, policy: &str) -> Self {
        self.werror = policy.into();
        self
    }

    /// Policy of reads.
    #[must_use]
    pub fn rerror(mut self, policy: &str) -> Self {
        self.rerror = policy.into();
        self
    }

    /// The image is a block device with qcow2 on it; the node below the format is called `host<index>`.
    #[must_use]
    pub fn qcow2_on_device(mut self) -> Self {
        self.qcow2 = true;
        self
    }

    /// Uses the host's page cache; for an image on a file system without O_DIRECT.
    #[must_use]
    pub fn buffered(mut self) -> Self {
        self.direct = false;
        self
    }
}

impl From<VhostUserBlk> for Disk {
    fn from(disk: VhostUserBlk) -> Self {
        Self::VhostUserBlk(disk)
    }
}

impl From<VirtioBlk> for Disk {
    fn from(disk: VirtioBlk) -> Self {
        Self::VirtioBlk(disk)
    }
}

impl Disk {
    /// Whether the options depend on QEMU's version.
    pub(super) fn needs_version(&self) -> bool {
        matches!(self, Self::VhostUserBlk(disk) if disk.reconnect.is_some())
    }

    /// Options for the disk number `index`. The device is called `disk<index>`.
    pub(super) fn arguments(&self, index: usize, version: Version) -> Vec<String> {
        let (back_end, device) = match self {
            Self::VhostUserBlk(disk) => {
                let path = escape(&disk.socket);
                let mut chardev = format!("socket,id=chardev{index},path={path}");
                if let Some(after) = disk.reconnect {
                    chardev.push_str(&reconnect(after, version));
                }
                let mut device = format!("vhost-user-blk-pci,chardev=chardev{index}");
                if let Some(queues) = disk.queues {
                    device.push_str(&format!(",num-queues={queues}"));
                }
                (vec!["-chardev".into(), chardev], device)
            }
            Self::VirtioBlk(disk) => {
                let path = escape(&disk.image);
                let direct = if disk.direct { "on" } else { "off" };
                let (driver, name) = match disk.qcow2 {
                    true => ("host_device", "host"),
                    false => ("file", "node"),
                };
                let mut nodes = vec![
                    "-blockdev".into(),
                    format!(
                        "driver={driver},node-name={name}{index},filename={path},\
                         cache.direct={direct},discard=unmap"
                    ),
                ];
                if disk.qcow2 {
                    let format = format!("driver=qcow2,node-name=node{index},file=host{index}");
                    nodes.extend(["-blockdev".into(), format]);
                }
                let (werror, rerror) = (&disk.werror, &disk.rerror);
                let device =
                    format!("virtio-blk-pci,drive=node{index},werror={werror},rerror={rerror}");
                (nodes, device)
            }
        };
        let device = format!("{device},id=disk{index},disable-legacy=on");
        back_end
            .into_iter()
            .chain(["-device".into(), device])
            .collect()
    }
}

fn reconnect(after: Duration, version: Version) -> String {
    if version >= (9, 2) {
        format!(",reconnect-ms={}", after.as_millis().max(1))
    } else {
        format!(",reconnect={}", after.as_millis().div_ceil(1000).max(1))
    }
}

/// A path as a value in a comma separated list of options.
pub(super) fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The version in what `qemu-system-x86_64 --version` prints.
pub(super) fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.split("version ").nth(1)?;
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_spelled_as_the_version_wants_them() {
        let disk = VhostUserBlk::new("/tmp/a,b").queues(4);
        let disk = Disk::from(disk.reconnect(Duration::from_millis(1500)));
        let device = "vhost-user-blk-pci,chardev=chardev2,num-queues=4,id=disk2,disable-legacy=on";
        let chardev = |reconnect| format!("socket,id=chardev2,path=/tmp/a,,b{reconnect}");
        let expected =
            |reconnect| ["-chardev", &chardev(reconnect), "-device", device].map(String::from);
        assert_eq!(disk.arguments(2, (7, 2)), expected(",reconnect=2"));
        assert_eq!(disk.arguments(2, (9, 1)), expected(",reconnect=2"));
        assert_eq!(disk.arguments(2, (9, 2)), expected(",reconnect-ms=1500"));
        assert_eq!(disk.arguments(2, (10, 0)), expected(",reconnect-ms=1500"));
        assert!(disk.needs_version());
        let disk = Disk::from(VhostUserBlk::new("/s"));
        let device = "vhost-user-blk-pci,chardev=chardev0,id=disk0,disable-legacy=on";
        assert_eq!(disk.arguments(0, (7, 2))[3], device);
    }

    #[test]
    fn a_disk_of_qemu_itself() {
        let disk = Disk::from(
            VirtioBlk::new("/i")
                .werror("stop")
                .rerror("ignore")
                .buffered(),
        );
        assert!(!disk.needs_version());
        assert_eq!(
            disk.arguments(0, (0, 0)),
            [
                "-blockdev",
                "driver=file,node-name=node0,filename=/i,cache.direct=off,discard=unmap",
                "-device",
                "virtio-blk-pci,drive=node0,werror=stop,rerror=ignore,id=disk0,disable-legacy=on",
            ]
        );
    }

    #[test]
    fn a_format_on_a_device() {
        let disk = Disk::from(VirtioBlk::new("/dev/loop7").qcow2_on_device());
        let arguments = disk.arguments(1, (0, 0));
        assert_eq!(
            arguments[..4],
            [
                "-blockdev",
                "driver=host_device,node-name=host1,filename=/dev/loop7,cache.direct=on,discard=unmap",
                "-blockdev",
                "driver=qcow2,node-name=node1,file=host1",
            ]
        );
        assert!(arguments[5].contains("drive=node1,"), "{arguments:?}");
    }

    #[test]
    fn versions() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(debian), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.0"), Some((10, 0)));
        assert_eq!(parse_version("nonsense"), None);
    }
}
