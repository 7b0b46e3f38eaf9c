//! Who makes a file's system calls (`aio`): the engine of the iothread, or its workers.

use std::os::fd::BorrowedFd;

use block::NodeEngine;
use iothread::ops::Lane;
use iothread::{Engine, Unavailable};

use super::file_systems::{self, Blocking};
use super::options::{Aio, FileOptions};
use super::probe::{Kind, Stat};
use crate::OpenError;

/// What makes the calls of an image, and what is said of it.
#[derive(Debug)]
pub struct Chosen {
    /// Where its operations go.
    pub lane: Lane,
    /// What a monitor and a log are told.
    pub shown: NodeEngine,
}

impl Chosen {
    /// Of an image that is open.
    ///
    /// # Errors
    ///
    /// In QEMU's words: what was asked for by name is not to be had.
    pub fn of(options: &FileOptions, fd: BorrowedFd<'_>, stat: &Stat) -> Result<Self, OpenError> {
        if options.aio == Some(Aio::Native) && !options.cache_direct {
            return Err(OpenError::new(
                libc::EINVAL,
                "aio=native was specified, but it requires cache.direct=on, which was not specified.",
            ));
        }
        // A block device says that it would have to wait, wherever its node lies.
        let blocking = (stat.kind == Kind::Regular)
            .then(|| file_systems::blocking(fd))
            .flatten();
        let choice = choose(options.aio, blocking, iothread::probe)
            .map_err(|why| OpenError::new(libc::ENOSYS, unable(&why)))?;
        let lane = match choice.by_workers {
            true => Lane::by_workers(),
            false => Lane::new(),
        };
        Ok(Self {
            lane: lane.with_storage(stat.storage()),
            shown: choice.shown,
        })
    }
}

/// QEMU's words for an engine that was asked for by name.
fn unable(why: &Unavailable) -> String {
    format!("Unable to use io_uring: {why}")
}

#[derive(Debug, PartialEq, Eq)]
struct Choice {
    by_workers: bool,
    shown: NodeEngine,
}

/// Decides. `io_uring`: whether there is one.
fn choose(
    aio: Option<Aio>,
    blocking: Option<&Blocking>,
    io_uring: impl FnOnce() -> Result<(), Unavailable>,
) -> Result<Choice, Unavailable> {
    let workers = |note: String| Choice {
        by_workers: true,
        shown: NodeEngine {
            engine: Engine::Threads,
            required: false,
            note: Some(note),
        },
    };
    let as_the_iothread = |engine, required, note| Choice {
        by_workers: false,
        shown: NodeEngine {
            engine,
            required,
            note,
        },
    };
    match (aio, blocking) {
        (Some(Aio::Threads), _) => {
            return Ok(workers("aio=threads: threads do its I/O".to_owned()));
        }
        (Some(Aio::IoUringAnywhere), _) | (_, None) => {}
        (Some(Aio::IoUring), Some(blocking)) => {
            // It is there, so that it is no error; but a name is no reason to stop other disks.
            io_uring()?;
            return Ok(workers(format!(
                "aio=io_uring would stop all disks of an iothread when {} does not answer: threads do its I/O",
                blocking.name
            )));
        }
        (None | Some(Aio::Native), Some(blocking)) => {
            return Ok(workers(format!(
                "io_uring would stop all disks of an iothread when {} does not answer: threads do its I/O",
                blocking.name
            )));
        }
    }
    let available = io_uring();
    Ok(match (aio, available) {
        (Some(Aio::IoUring | Aio::IoUringAnywhere), Err(why)) => return Err(why),
        (Some(Aio::IoUring | Aio::IoUringAnywhere), Ok(())) => {
            as_the_iothread(Engine::IoUring, true, None)
        }
        (Some(Aio::Native), Ok(())) => as_the_iothread(
            Engine::IoUring,
            false,
            Some("aio=native: io_uring does its I/O".to_owned()),
        ),
        (Some(Aio::Native), Err(why)) => as_the_iothread(
            Engine::Threads,
            false,
            Some(format!("aio=native: threads do its I/O, {why}")),
        ),
        (None | Some(Aio::Threads), Ok(())) => as_the_iothread(Engine::IoUring, false, None),
        // The iothread has said why.
        (None | Some(Aio::Threads), Err(_)) => as_the_iothread(Engine::Threads, false, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Result<(), Unavailable> = Err(Unavailable::Forbidden);

    fn fuse() -> &'static Blocking {
        file_systems::of_type(libc::FUSE_SUPER_MAGIC).expect("it blocks")
    }

    /// Who does it, whether by workers on every iothread, whether by name.
    fn chosen(
        aio: Option<Aio>,
        blocking: Option<&Blocking>,
        io_uring: Result<(), Unavailable>,
    ) -> Result<(Engine, bool, bool), Unavailable> {
        let choice = choose(aio, blocking, || io_uring)?;
        let shown = choice.shown;
        Ok((shown.engine, choice.by_workers, shown.required))
    }

    #[test]
    fn what_is_asked_for_is_done_or_refused() {
        let (ring, threads) = (Engine::IoUring, Engine::Threads);
        for (aio, there, not_there) in [
            (None, (ring, false, false), Ok((threads, false, false))),
            (
                Some(Aio::Threads),
                (threads, true, false),
                Ok((threads, true, false)),
            ),
            (
                Some(Aio::Native),
                (ring, false, false),
                Ok((threads, false, false)),
            ),
            (
                Some(Aio::IoUring),
                (ring, false, true),
                Err(Unavailable::Forbidden),
            ),
            (
                Some(Aio::IoUringAnywhere),
                (ring, false, true),
                Err(Unavailable::Forbidden),
            ),
        ] {
            assert_eq!(chosen(aio, None, Ok(())), Ok(there), "{aio:?}");
            assert_eq!(chosen(aio, None, NONE), not_there, "{aio:?}");
        }
    }

    #[test]
    fn a_file_system_that_blocks_goes_by_workers() {
        let workers = Ok((Engine::Threads, true, false));
        for aio in [
            None,
            Some(Aio::Threads),
            Some(Aio::Native),
            Some(Aio::IoUring),
        ] {
            assert_eq!(chosen(aio, Some(fuse()), Ok(())), workers, "{aio:?}");
        }
        for aio in [None, Some(Aio::Threads), Some(Aio::Native)] {
            assert_eq!(chosen(aio, Some(fuse()), NONE), workers, "{aio:?}");
        }
        assert_eq!(
            chosen(Some(Aio::IoUring), Some(fuse()), NONE),
            Err(Unavailable::Forbidden)
        );
        assert_eq!(
            chosen(Some(Aio::IoUringAnywhere), Some(fuse()), Ok(())),
            Ok((Engine::IoUring, false, true))
        );
    }

    /// The default is silent, and what is not the default says why.
    #[test]
    fn what_is_not_the_default_is_told() {
        let note = |aio, blocking, there| choose(aio, blocking, || there).map(|c| c.shown.note);
        assert_eq!(note(None, None, Ok(())), Ok(None));
        assert_eq!(note(None, None, NONE), Ok(None));
        assert_eq!(note(Some(Aio::IoUring), None, Ok(())), Ok(None));
        for (aio, blocking, there, words) in [
            (Some(Aio::Threads), None, Ok(()), "aio=threads"),
            (Some(Aio::Native), None, Ok(()), "aio=native: io_uring does"),
            (Some(Aio::Native), None, NONE, "Operation not permitted"),
            (None, Some(fuse()), Ok(()), "FUSE"),
            (
                Some(Aio::IoUring),
                Some(fuse()),
                Ok(()),
                "aio=io_uring would stop",
            ),
        ] {
            let told = note(aio, blocking, there).expect("it is to be had");
            let told = told.expect("it is told");
            assert!(told.contains(words), "{aio:?}: {told}");
        }
    }

    #[test]
    fn words_of_qemu() {
        let text = unable(&Unavailable::Forbidden);
        assert!(
            text.starts_with("Unable to use io_uring: io_uring is not available (Operation not"),
            "{text}"
        );
    }
}
