//! The loads of a benchmark run: what is asked of whom.

use crate::client::Operation;
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
}

impl Storage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Null, Self::Tmpfs, Self::Disk];

    /// The rival of our engine *threads*: qemu-storage-daemon with the engine of that name, which is
    /// what it has on tmpfs in any case.
    pub fn threads_rival(self) -> Server {
        match self {
            Self::Null | Self::Tmpfs => Server::Qemu,
            Self::Disk => Server::QemuThreads,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null-co",
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
        }
    }

    /// What a server is told to serve: `file` is the image, where there is one.
    ///
    /// qemu-storage-daemon gets what suits it best: threads on tmpfs (its default), io_uring on
    /// the disk.
    pub fn setup(self, server: Server, file: &Path) -> Setup {
        let file = file.display();
        let blockdev = match (self, server) {
            (Self::Null, _) => "driver=null-co,node-name=disk,size=1073741824".to_owned(),
            (Self::Tmpfs, _) => format!("driver=file,node-name=disk,filename={file}"),
            (Self::Disk, Server::Qemu) => {
                format!("driver=file,node-name=disk,filename={file},cache.direct=on,aio=io_uring")
            }
            (Self::Disk, _) => {
                format!("driver=file,node-name=disk,filename={file},cache.direct=on")
            }
        };
        Setup::new(server, blockdev)
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
    /// The client polls, or else it waits for calls.
    pub poll: bool,
}

impl Spec {
    /// Its name: `tmpfs.randread.4k.d32`; `.wait` if the client waits, `.q4` for four queues.
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
        use Server::{Qemu, QemuThreads, Standfast, StandfastReport, StandfastThreads};
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
        }
    }

    /// Whether our engine *threads* is compared with the rival's, too: single requests, and many.
    pub fn compares_threads(&self) -> bool {
        self.size == "4k" && self.poll && self.queues == 1 && matches!(self.depth, 1 | 32)
    }
}

/// Every load, by storage.
pub fn all() -> Vec<Spec> {
    use Operation::{Randread, Randwrite, Read, Write};
    let mut loads = Vec::new();
    for storage in Storage::ALL {
        let spec = |operation, size, depth, queues, poll| Spec {
            storage,
            operation,
            size,
            depth,
            queues,
            poll,
        };
        for operation in [Randread, Randwrite] {
            loads.push(spec(operation, "4k", 1, 1, true));
            loads.push(spec(operation, "4k", 1, 1, false));
            loads.push(spec(operation, "4k", 32, 1, true));
            loads.push(spec(operation, "4k", 128, 1, true));
            if storage == Storage::Null {
                loads.push(spec(operation, "4k", 32, 4, true));
            }
        }
        for operation in [Read, Write] {
            loads.push(spec(operation, "128k", 16, 1, true));
        }
    }
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
        assert_eq!(chosen(&["tmpfs".into()]).len(), 10);
        assert_eq!(chosen(&["nothing".into()]).len(), 0);
    }
}
