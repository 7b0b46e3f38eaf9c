//! The loads of a benchmark run: what is asked of whom.

use crate::client::Operation;
use crate::qcow2;
use crate::server::{Server, Setup};
use std::path::Path;

/// What the disk lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    /// Nothing: what the protocol and the queue cost.
    Null,
    /// A file on tmpfs: what copying costs.
    Tmpfs,
    /// A written file on a real file system, opened with O_DIRECT.
    Disk,
    /// The same as a qcow2 image: what the format costs where all clusters are allocated.
    Qcow2,
    /// A qcow2 image there without any cluster, made anew each time: first writes.
    Qcow2Fresh,
    /// Five qcow2 images over each other, each with a fifth of what is read.
    Qcow2Chain,
    /// A qcow2 image over that of [`Self::Qcow2`], made anew each time: first writes, each of which copies the rest of its
    /// cluster.
    Qcow2Overlay,
    /// The image of [`Self::Qcow2`] with its clusters in a file of their own.
    Qcow2Data,
    /// A qcow2 image of 1 TiB, whose tables are longer than what is remembered of them.
    Qcow2Large,
}

impl Storage {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Null,
        Self::Tmpfs,
        Self::Disk,
        Self::Qcow2,
        Self::Qcow2Fresh,
        Self::Qcow2Chain,
        Self::Qcow2Overlay,
        Self::Qcow2Data,
        Self::Qcow2Large,
    ];

    /// Whether it is an image in a format.
    pub fn is_qcow2(self) -> bool {
        !matches!(self, Self::Null | Self::Tmpfs | Self::Disk)
    }

    /// The rival of our engine *threads*: qemu-storage-daemon with the engine of that name, which is
    /// what it has on tmpfs in any case.
    pub fn threads_rival(self) -> Server {
        match self {
            Self::Null | Self::Tmpfs => Server::Qemu,
            Self::Disk
            | Self::Qcow2
            | Self::Qcow2Fresh
            | Self::Qcow2Chain
            | Self::Qcow2Overlay
            | Self::Qcow2Data
            | Self::Qcow2Large => Server::QemuThreads,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null-co",
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
            Self::Qcow2 => "qcow2",
            Self::Qcow2Fresh => "qcow2-fresh",
            Self::Qcow2Chain => "qcow2-chain",
            Self::Qcow2Overlay => "qcow2-overlay",
            Self::Qcow2Data => "qcow2-data",
            Self::Qcow2Large => "qcow2-1t",
        }
    }

    /// The argument of `--blockdev`: `file` is the image, where there is one.
    ///
    /// qemu-storage-daemon gets what suits it best: threads on tmpfs (its default), io_uring on
    /// the disk.
    fn blockdev(self, server: Server, file: &Path) -> String {
        let name = file.display();
        match (self, server) {
            (Self::Null, _) => "driver=null-co,node-name=disk,size=1073741824".to_owned(),
            (Self::Tmpfs, _) => format!("driver=file,node-name=disk,filename={name}"),
            (Self::Disk, Server::Qemu) => {
                format!("driver=file,node-name=disk,filename={name},cache.direct=on,aio=io_uring")
            }
            (Self::Disk, _) | (_, Server::StandfastRaw) => {
                format!("driver=file,node-name=disk,filename={name},cache.direct=on")
            }
            (Self::Qcow2Data, Server::Qemu) => {
                // The image names its data file: it would be threads by that.
                let data = qcow2::data_of(file);
                let options = format!(
                    ",cache.direct=on,file.aio=io_uring,data-file.driver=file,\
                     data-file.filename={},data-file.aio=io_uring",
                    data.display()
                );
                qcow2::blockdev(file, &options)
            }
            (_, Server::Qemu) => qcow2::blockdev(file, ",cache.direct=on,file.aio=io_uring"),
            (_, _) => qcow2::blockdev(file, ",cache.direct=on"),
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// What the disk lies on.
    pub storage: Storage,
    /// What the requests do.
    pub operation: Operation,
    /// Bytes per request, as they are typed.
    pub size: &'static str,
    /// Requests outstanding on each queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// Iothreads of ours that serve them in turn; the rival has one.
    pub iothreads: u16,
    /// The client polls, or else it waits for calls.
    pub poll: bool,
}

impl Spec {
    /// Its name: `tmpfs.randread.4k.d32`; `.wait` if the client waits, `.q4` for four queues, `.t2` for two iothreads.
    pub fn name(&self) -> String {
        let Self {
            storage,
            operation,
            size,
            depth,
            ..
        } = self;
        let operation = operation.name();
        let mut name = format!("{}.{operation}.{size}.d{depth}", storage.name());
        if self.queues > 1 {
            name += &format!(".q{}", self.queues);
        }
        if self.iothreads > 1 {
            name += &format!(".t{}", self.iothreads);
        }
        if !self.poll {
            name += ".wait";
        }
        name
    }
}

impl Spec {
    /// Whose figures are compared; the first one is ours, the second one the rival. What policy costs
    /// is asked where everything else costs least.
    pub fn servers(&self) -> &'static [Server] {
        use Server::{
            Qemu, QemuThreads, Standfast, StandfastRaw, StandfastReport, StandfastThreads,
        };
        match self.storage {
            Storage::Null if self.depth == 32 && self.queues == 1 => {
                &[Standfast, Qemu, StandfastReport, StandfastThreads]
            }
            Storage::Disk if self.compares_threads() => {
                &[Standfast, Qemu, QemuThreads, StandfastThreads]
            }
            Storage::Disk => &[Standfast, Qemu, QemuThreads],
            Storage::Null | Storage::Tmpfs if self.compares_threads() => {
                &[Standfast, Qemu, StandfastThreads]
            }
            Storage::Null | Storage::Tmpfs => &[Standfast, Qemu],
            Storage::Qcow2Overlay => &[Standfast, Qemu],
            Storage::Qcow2
            | Storage::Qcow2Fresh
            | Storage::Qcow2Chain
            | Storage::Qcow2Data
            | Storage::Qcow2Large => &[Standfast, Qemu, StandfastRaw],
        }
    }

    /// Whether our engine *threads* is compared with the rival's, too: single requests, and many.
    pub fn compares_threads(&self) -> bool {
        !self.storage.is_qcow2()
            && self.size == "4k"
            && self.poll
            && self.queues == 1
            && matches!(self.depth, 1 | 32)
    }

    /// What a server is told to serve: `file` is the image, where there is one.
    pub fn setup(&self, server: Server, file: &Path) -> Setup {
        let mut setup = Setup::new(server, self.storage.blockdev(server, file));
        setup.queues = self.queues;
        // What it costs to lose nothing in a crash is part of what first writes cost.
        setup.state = server == Server::Standfast && self.storage.is_qcow2();
        if server.is_ours() && self.iothreads > 1 {
            for number in 0..self.iothreads {
                setup
                    .more
                    .extend(["--object".into(), format!("iothread,id=io{number}")]);
                setup.export += &format!(",iothread.{number}=io{number}");
            }
        }
        setup
    }
}

/// Every load, by storage.
pub fn all() -> Vec<Spec> {
    let plain = [Storage::Null, Storage::Tmpfs, Storage::Disk];
    (plain.into_iter().flat_map(plain_loads))
        .chain(qcow2_loads())
        .collect()
}

/// Of one queue on one iothread, whose client polls.
fn one(storage: Storage, operation: Operation, size: &'static str, depth: u16) -> Spec {
    Spec {
        storage,
        operation,
        size,
        depth,
        queues: 1,
        iothreads: 1,
        poll: true,
    }
}

fn plain_loads(storage: Storage) -> Vec<Spec> {
    use Operation::{Randread, Randwrite, Read, Write};
    let mut loads = Vec::new();
    for operation in [Randread, Randwrite] {
        let of = |depth| one(storage, operation, "4k", depth);
        loads.push(of(1));
        loads.push(Spec {
            poll: false,
            ..of(1)
        });
        loads.push(of(32));
        loads.push(of(128));
        if storage == Storage::Null {
            loads.push(Spec {
                queues: 4,
                ..of(32)
            });
        }
    }
    loads.extend([Read, Write].map(|operation| one(storage, operation, "128k", 16)));
    loads
}

fn qcow2_loads() -> Vec<Spec> {
    use Operation::{Randread, Randwrite, Read, Write};
    use Storage::{Qcow2, Qcow2Chain, Qcow2Data, Qcow2Fresh, Qcow2Large, Qcow2Overlay};
    let mut loads = Vec::new();
    for (random, sequential) in [(Randread, Read), (Randwrite, Write)] {
        loads.push(one(Qcow2, random, "4k", 1));
        loads.push(one(Qcow2, random, "4k", 32));
        loads.push(Spec {
            queues: 4,
            iothreads: 2,
            ..one(Qcow2, random, "4k", 32)
        });
        loads.push(one(Qcow2, sequential, "128k", 16));
    }
    // A cluster each; one cluster for sixteen that come at once; a whole one each.
    loads.push(one(Qcow2Fresh, Randwrite, "4k", 32));
    loads.push(one(Qcow2Fresh, Write, "4k", 32));
    loads.push(one(Qcow2Fresh, Write, "64k", 16));
    for depth in [1, 32] {
        loads.push(one(Qcow2Chain, Randread, "4k", depth));
        loads.push(one(Qcow2Overlay, Randwrite, "4k", depth));
        loads.push(one(Qcow2Data, Randread, "4k", depth));
        loads.push(one(Qcow2Data, Randwrite, "4k", depth));
    }
    loads.push(one(Qcow2Large, Randread, "4k", 1));
    loads.push(one(Qcow2Large, Randread, "4k", 32));
    loads
}

/// Those whose name contains one of the words; all if there are no words.
pub fn chosen(words: &[String]) -> Vec<Spec> {
    let wanted = |spec: &Spec| {
        let name = spec.name();
        words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
    };
    all().into_iter().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn our_threads_meet_their_rival_in_one_run() {
        let compared: Vec<_> = (all().into_iter()).filter(Spec::compares_threads).collect();
        assert_eq!(compared.len(), 3 * 2 * 2);
        for spec in compared {
            for server in [Server::StandfastThreads, spec.storage.threads_rival()] {
                assert!(spec.servers().contains(&server), "{}", spec.name());
            }
        }
    }

    #[test]
    fn names_are_unique_and_choose() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(Spec::name).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.contains("null-co.randwrite.4k.d32.q4"));
        assert!(names.contains("disk.randread.4k.d1.wait"));
        assert!(names.contains("qcow2.randread.4k.d32.q4.t2"));
        assert!(names.contains("qcow2-data.randwrite.4k.d32"));
        assert_eq!(chosen(&["tmpfs".into()]).len(), 10);
        assert_eq!(chosen(&["nothing".into()]).len(), 0);
    }
}
