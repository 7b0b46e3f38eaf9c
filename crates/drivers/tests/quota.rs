//! `quota` on real files, and under several iothreads at once.

mod common;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use std::task::{Context, Poll, Waker};

    use block::driver::park;
    use block::fault::{InjectError, IoType};
    use block::{
        AllocationLimit, BlockError, BoxFuture, Driver, EXTENTS_MAX, ErrorKind, Extent, Io,
        IoFuture, Node, NodeInfo, Operation, Resize, Result, Stored,
    };
    use standfast_drivers::file::Discard;
    use standfast_drivers::quota::LENGTH_MAX;
    use standfast_drivers::throttle::{Rate, ThrottleLimits};
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, FileDriver, FileOptions, NullCo, NullOptions, Quota,
        QuotaOptions, Raw, RawOptions, Throttle as Throttled, ThrottleGroup, ThrottleOptions,
    };

    use super::common::{Bench, Op, node, pattern};

    const LENGTH: u64 = 1 << 20;
    const KIB: u64 = 1024;

    fn file(image: &tempfile::NamedTempFile, discard: Discard) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            node_name: "file0".into(),
            filename: image.path().to_str().expect("ASCII").to_owned(),
            cache_direct: true,
            discard,
            ..FileOptions::default()
        });
        Node::new("file0", Box::new(driver.expect("opens")))
    }

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::Builder::new()
            .prefix("standfast-")
            .tempfile_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a temporary file");
        image.as_file().set_len(LENGTH).expect("sparse");
        image
    }

    fn limit(quota: &Node) -> &dyn AllocationLimit {
        quota.allocation_limit().expect("it has one")
    }

    fn quota(file: Arc<Node>, limit: u64) -> Arc<Node> {
        node(
            pollster::block_on(Quota::open(QuotaOptions {
                node_name: "quota0".into(),
                file,
                limit,
            }))
            .expect("opens"),
        )
    }

    fn data(bytes: u64) -> Vec<u8> {
        pattern(9, usize::try_from(bytes).expect("small"))
    }

    #[test]
    fn enospc_then_extended_then_done() {
        let bench = Bench::new();
        let image = image();
        image
            .as_file()
            .write_all_at(&data(8 * KIB), 64 * KIB)
            .expect("space");
        let disk = quota(file(&image, Discard::Unmap), 24 * KIB);
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((24 * KIB, 8 * KIB)),
            "found at open"
        );

        bench
            .run(&disk, Op::write(0, data(12 * KIB)))
            .expect("fits");
        let error = bench
            .run(&disk, Op::write(12 * KIB, data(8 * KIB)))
            .expect_err("does not fit wholly");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(
            error.to_string(),
            "node 'quota0' at 12288+8192: write: quota reached: 20480 of 24576 bytes are allocated, \
             and the request needs 8192 more"
        );
        assert_eq!(
            bench.run(&disk, Op::read(12 * KIB, 8 * KIB)).expect("read"),
            vec![0; 8192],
            "nothing of it is written"
        );
        bench
            .run(&disk, Op::write(0, data(12 * KIB)))
            .expect("allocates nothing");
        assert_eq!(limit(&disk).set_quota(28 * KIB).expect("raised"), 20 * KIB);
        bench
            .run(&disk, Op::write(12 * KIB, data(8 * KIB)))
            .expect("fits now");
        assert_eq!(limit(&disk).set_quota(0).expect("lowered"), 28 * KIB);
        bench
            .run(&disk, Op::write(13 * KIB, data(KIB)))
            .expect("allocates nothing");
        assert!(
            bench
                .run(&disk, Op::zeroes(512 * KIB, 4 * KIB, false))
                .is_err()
        );
        bench.run(&disk, Op::flush()).expect("no matter of space");

        let allocated = disk.driver().actual_size().expect("known");
        assert!(allocated >= 28 * KIB, "{allocated}");
        drop(disk);
        let disk = quota(file(&image, Discard::Unmap), 0);
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((0, 28 * KIB)),
            "the same after a restart"
        );
    }

    #[test]
    fn deallocated_space_comes_back_if_it_really_does() {
        let bench = Bench::new();
        for (discard, given_back) in [(Discard::Unmap, 40 * KIB), (Discard::Ignore, 0)] {
            let image = image();
            let disk = quota(file(&image, discard), 64 * KIB);
            bench
                .run(&disk, Op::write(0, data(64 * KIB)))
                .expect("fits");
            // One whole granule between two halves that stay; then 36 KiB.
            bench
                .run(&disk, Op::discard(2 * KIB, 8 * KIB))
                .expect("discarded");
            bench
                .run(&disk, Op::zeroes(16 * KIB, 36 * KIB, true))
                .expect("zeroed");
            let left = 64 * KIB - given_back;
            assert_eq!(
                disk.allocation_limit().map(|limit| limit.quota()),
                Some((64 * KIB, left)),
                "{discard:?}"
            );
            let result = bench.run(&disk, Op::write(128 * KIB, data(given_back + KIB)));
            assert!(result.is_err(), "{discard:?}");
            if given_back > 0 {
                bench
                    .run(&disk, Op::write(128 * KIB, data(given_back)))
                    .expect("fits");
            }
        }
    }

    /// The ends of an unmapping write-zeroes are written where they are no whole blocks.
    #[test]
    fn ends_of_unmapped_zeroes_count() {
        let bench = Bench::new();
        let image = image();
        let disk = quota(file(&image, Discard::Unmap), 8 * KIB);
        bench
            .run(&disk, Op::zeroes(KIB, 62 * KIB, true))
            .expect("two granules");
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((8 * KIB, 8 * KIB))
        );
        let allocated = disk.driver().actual_size().expect("known");
        assert!(allocated <= 8 * KIB, "{allocated}");
    }

    #[test]
    fn a_failed_write_gives_its_reservation_back() {
        let bench = Bench::new();
        let image = image();
        let debug = Node::new(
            "debug0",
            Box::new(
                Blkdebug::new(BlkdebugOptions {
                    node_name: "debug0".into(),
                    image: file(&image, Discard::Unmap),
                    inject_error: vec![InjectError {
                        iotype: Some(IoType::Write),
                        once: true,
                        ..InjectError::default()
                    }],
                    set_state: Vec::new(),
                    align: None,
                })
                .expect("opens"),
            ),
        );
        let disk = quota(debug, 16 * KIB);
        let error = bench
            .run(&disk, Op::write(0, data(16 * KIB)))
            .expect_err("injected");
        assert_eq!(error.errno(), libc::EIO);
        assert_eq!(error.context().node.as_deref(), Some("debug0"));
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((16 * KIB, 0))
        );
        bench
            .run(&disk, Op::write(512 * KIB, data(16 * KIB)))
            .expect("fits elsewhere");
    }

    #[test]
    fn resize_follows_the_child() {
        let bench = Bench::new();
        let image = image();
        let disk = quota(file(&image, Discard::Unmap), LENGTH);
        bench
            .run(&disk, Op::write(512 * KIB, data(8 * KIB)))
            .expect("fits");
        disk.resize(516 * KIB).expect("shrunk");
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((LENGTH, 4 * KIB))
        );
        disk.resize(2 * LENGTH).expect("grown");
        bench
            .run(&disk, Op::write(2 * LENGTH - 4 * KIB, data(4 * KIB)))
            .expect("fits");
        assert_eq!(
            disk.allocation_limit().map(|limit| limit.quota()),
            Some((LENGTH, 8 * KIB))
        );
    }

    #[test]
    fn too_long_a_child_is_refused() {
        let huge = node(NullCo::new(NullOptions {
            size: Some(LENGTH_MAX + 1),
            ..NullOptions::default()
        }));
        let error = pollster::block_on(Quota::open(QuotaOptions {
            node_name: "quota0".into(),
            file: huge,
            limit: 1,
        }))
        .expect_err("too long");
        assert_eq!(error.errno, libc::EFBIG);
    }

    /// Four iothreads write and discard at once; what is accounted never exceeds the limit at any
    /// moment, and in the end is what the file has.
    #[test]
    fn concurrent_writers_never_exceed_the_limit() {
        const THREADS: u64 = 4;
        const LIMIT: u64 = 200 * KIB;
        let image = image();
        let disk = quota(file(&image, Discard::Unmap), LIMIT);
        let done = AtomicBool::new(false);
        let (refused, peak) = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let disk = &disk;
                    scope.spawn(move || {
                        let bench = Bench::new();
                        let mut refused = 0;
                        for round in 0..30u64 {
                            let ops = (0..8)
                                .map(|index| {
                                    let mixed = (round * 8 + index) * 37 + thread * 11;
                                    let granule = mixed % 250;
                                    let bytes = (1 + mixed % 3) * 4 * KIB;
                                    match mixed % 5 {
                                        0 => Op::discard(granule * 4 * KIB, bytes),
                                        1 => Op::zeroes(granule * 4 * KIB, bytes, true),
                                        _ => Op::write(granule * 4 * KIB, data(bytes)),
                                    }
                                })
                                .collect();
                            for result in bench.run_all(disk, ops) {
                                if let Err(error) = result {
                                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                                    refused += 1;
                                }
                            }
                        }
                        refused
                    })
                })
                .collect();
            let watcher = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    let (_, allocated) = disk
                        .allocation_limit()
                        .map(|limit| limit.quota())
                        .expect("it has one");
                    peak = peak.max(allocated);
                    std::thread::yield_now();
                }
                peak
            });
            let refused: u64 = writers
                .into_iter()
                .map(|writer| writer.join().expect("no panic"))
                .sum();
            done.store(true, Ordering::Relaxed);
            (refused, watcher.join().expect("no panic"))
        });
        assert!(peak <= LIMIT, "{peak}");
        assert!(refused > 0, "the limit was never met");
        let (_, accounted) = disk
            .allocation_limit()
            .map(|limit| limit.quota())
            .expect("it has one");
        let bench = Bench::new();
        bench
            .run(&disk, Op::new(Operation::Flush, 0, 0))
            .expect("flushed");
        let mut data = 0;
        let count = |_, extent: &Extent| data += if extent.data { extent.bytes } else { 0 };
        pollster::block_on(disk.extents(0..LENGTH, count)).expect("known");
        assert!(
            data <= accounted,
            "{data} bytes of data, {accounted} accounted"
        );
        assert!(accounted <= LIMIT);
    }

    /// A child in many pieces, which counts how often it is asked.
    #[derive(Clone, Debug)]
    struct Pieces {
        length: Arc<AtomicU64>,
        asked: Arc<AtomicU64>,
        is_mute: Arc<AtomicBool>,
    }

    const PIECE: u64 = 64 * KIB;

    impl Driver for Pieces {
        fn name(&self) -> &'static str {
            "pieces"
        }

        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }

        fn length(&self) -> u64 {
            self.length.load(Ordering::SeqCst)
        }

        fn submit<'a>(&'a self, _io: Io<'a>) -> IoFuture<'a> {
            IoFuture::ready(Ok(()))
        }

        /// Of each piece one half is data.
        fn block_status(&self, range: std::ops::Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let halves = (range.start..range.end).step_by(32 * 1024).map(|at| {
                let bytes = 32 * KIB;
                match at % PIECE {
                    0 => Extent::data(bytes, Stored::Here(at)),
                    _ => Extent::hole(bytes, Stored::Here(at)),
                }
            });
            let answer = match self.is_mute.load(Ordering::SeqCst) {
                true => Err(BlockError::from_errno(libc::EIO)),
                false => Ok(halves.take(EXTENTS_MAX).collect()),
            };
            Box::pin(std::future::ready(answer))
        }

        fn capabilities(&self) -> block::Capabilities<'_> {
            block::Capabilities {
                resize: Some(self),
                ..block::Capabilities::default()
            }
        }
    }

    impl Resize for Pieces {
        fn resized_length(&self, length: u64) -> Result<u64> {
            Ok(length)
        }

        fn resize(&self, length: u64) -> Result<()> {
            self.length.store(length, Ordering::SeqCst);
            Ok(())
        }
    }

    /// It took seconds to open a quota on an image of 16,384 extents.
    #[test]
    fn a_child_in_many_pieces_is_asked_seldom() {
        const DATA: u64 = 16_384;
        let pieces = Pieces {
            length: Arc::new(AtomicU64::new(DATA * PIECE)),
            asked: Arc::default(),
            is_mute: Arc::default(),
        };
        let asked = || pieces.asked.swap(0, Ordering::SeqCst);
        let disk = quota(Node::new("pieces0", Box::new(pieces.clone())), 0);
        assert_eq!(limit(&disk).quota().1, DATA * PIECE / 2);
        assert_eq!(asked(), DATA * 2 / EXTENTS_MAX as u64);
        // What it has already is not asked again.
        disk.resize((DATA + 8) * PIECE).expect("longer");
        assert_eq!(limit(&disk).quota().1, (DATA + 8) * PIECE / 2);
        assert_eq!(asked(), 1);
        // It has the new length, whatever it does not say: a failure would leave it at that.
        pieces.is_mute.store(true, Ordering::SeqCst);
        disk.resize((DATA + 10) * PIECE).expect("longer");
        assert_eq!(limit(&disk).quota().1, (DATA + 8) * PIECE / 2 + 2 * PIECE);
        disk.resize(PIECE).expect("shorter");
        assert_eq!(limit(&disk).quota().1, PIECE / 2);
    }

    /// Begins nothing.
    #[derive(Debug)]
    struct Throttle;

    impl Driver for Throttle {
        fn name(&self) -> &'static str {
            "throttle"
        }

        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }

        fn length(&self) -> u64 {
            LENGTH
        }

        fn submit<'a>(&'a self, _io: Io<'a>) -> IoFuture<'a> {
            IoFuture::new(park::until(std::future::pending()))
        }

        fn block_status(&self, range: std::ops::Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
            let all = Extent::hole(range.end - range.start, Stored::Nowhere);
            Box::pin(std::future::ready(Ok(vec![all])))
        }
    }

    /// What a child has parked is taken back for a drain, and may never be submitted again; and as long as it
    /// waits it has no place that somebody else would need.
    #[test]
    fn what_is_parked_has_allocated_nothing() {
        let throttle = Node::new("throttle0", Box::new(Throttle));
        let disk = quota(throttle, LENGTH);
        pollster::block_on(async {
            for (taken_back, io) in [
                (true, Io::write_zeroes(0, 8 * KIB, false)),
                (false, Io::write_zeroes(0, 8 * KIB, false)),
                (true, Io::write_zeroes(KIB, 16 * KIB, true)),
                (false, Io::write_zeroes(KIB, 16 * KIB, true)),
            ] {
                let mut parked = Some(Box::pin(disk.submit(io)));
                let mut cx = Context::from_waker(Waker::noop());
                let polled = parked.as_mut().map(|future| future.as_mut().poll(&mut cx));
                assert!(polled.is_some_and(|polled| polled.is_pending()));
                let has = || limit(&disk).quota().1;
                assert_eq!(has(), 0, "it has not begun");
                match taken_back {
                    true => park::take_back(|| drop(parked.take())),
                    false => drop(parked),
                }
                assert_eq!(has(), 0);
            }
        });
    }

    /// Writes that waited for the budget of a throttle had their places reserved, and others were refused for
    /// what was not written yet. Now it is who begins first; and whose place has gone by then fails as a whole
    /// and has used no budget.
    #[test]
    fn who_waits_for_a_throttle_has_reserved_nothing() {
        let bench = Bench::new();
        let write_limit = |average| ThrottleLimits {
            bps_write: Rate {
                average,
                ..Rate::default()
            },
            ..ThrottleLimits::default()
        };
        let group = ThrottleGroup::new("group0", write_limit(0)).expect("none");
        let image = image();
        let throttle = Throttled::new(ThrottleOptions {
            node_name: "throttle0".into(),
            file: file(&image, Discard::Unmap),
            group: Arc::clone(&group),
            discard: true,
            info: NodeInfo::default(),
        });
        let throttle = Node::new("throttle0", Box::new(throttle));
        let disk = quota(throttle, 8 * KIB);
        bench.run(&disk, Op::write(0, data(4096))).expect("space");
        // Less than one in an hour, and one is done at once.
        group.set_limits(write_limit(1)).expect("it makes sense");
        bench.run(&disk, Op::write(0, data(4096))).expect("at once");
        let (handle, node) = (bench.handle(), Arc::clone(&disk));
        let (told, ended) = std::sync::mpsc::channel();
        let waits = move || async move {
            let mut both = [64, 128].map(|at| Op::write(at * KIB, data(4096)));
            let [first, second] = &mut both;
            let first = first.run(&node);
            let second = second.run(&node);
            let (mut first, mut second) = (Box::pin(first), Box::pin(second));
            let mut results = [None, None];
            let mut has_told = false;
            std::future::poll_fn(|cx| {
                for (result, future) in results.iter_mut().zip([&mut first, &mut second]) {
                    if result.is_none()
                        && let Poll::Ready(ended) = future.as_mut().poll(cx)
                    {
                        *result = Some(ended);
                    }
                }
                if !std::mem::replace(&mut has_told, true) {
                    told.send(None).expect("somebody asks");
                }
                match results.iter().all(Option::is_some) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            told.send(Some(results)).expect("somebody asks");
        };
        handle.spawn(waits).expect("it runs");
        assert!(ended.recv().expect("it runs").is_none());
        assert_eq!(limit(&disk).quota(), (8 * KIB, 4 * KIB), "both wait");
        group.set_limits(write_limit(0)).expect("it makes sense");
        let results = ended.recv().expect("they end").expect("results");
        let failed: Vec<_> = results.into_iter().flatten().map(Result::err).collect();
        let kinds = [None, Some(ErrorKind::NoSpace)];
        let found: Vec<_> = failed
            .iter()
            .map(|error| error.as_ref().map(BlockError::kind))
            .collect();
        assert_eq!(found, kinds, "the first of them has the place");
        assert_eq!(limit(&disk).quota(), (8 * KIB, 8 * KIB));
        let mut there = vec![0; 4096];
        let read = image.as_file().read_exact_at(&mut there, 128 * KIB);
        read.expect("inside");
        assert_eq!(there, vec![0; 4096], "nothing of it is written");
    }

    /// A window that begins between two blocks of the storage: what is discarded there frees other blocks than
    /// those that lie at the same offsets in the window, and fewer.
    #[test]
    fn a_discard_counts_what_the_storage_gives_back() {
        let bench = Bench::new();
        for (offset, freed) in [(0, 16 * KIB), (4096, 16 * KIB), (512, 8 * KIB)] {
            let image = image();
            let window = Raw::new(RawOptions {
                node_name: "raw0".into(),
                file: file(&image, Discard::Unmap),
                offset,
                size: Some(512 * KIB),
                discard: true,
                info: NodeInfo::default(),
            });
            let window = Node::new("raw0", Box::new(window.expect("opens")));
            let disk = quota(window, 512 * KIB);
            bench
                .run(&disk, Op::write(0, data(64 * KIB)))
                .expect("space");
            let has = || limit(&disk).quota().1;
            assert_eq!(has(), 64 * KIB);
            bench
                .run(&disk, Op::discard(0, 16 * KIB))
                .expect("it frees");
            assert_eq!(has(), 64 * KIB - freed, "at {offset}");
            let allocated = image.as_file().metadata().expect("there").blocks() * 512;
            assert!(has() >= allocated, "{allocated} at {offset}");
        }
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
