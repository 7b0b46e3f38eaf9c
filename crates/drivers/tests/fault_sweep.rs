//! Every storage operation of a driver fails once, at every place: with an error, or by doing less than
//! it was asked for. What the guest sees is compared with a model: nothing is lost, nothing is done
//! twice, and nothing but the failing request's own range is touched.
//!
//! The storage is a FUSE file system that fails the n-th call, so all of it is real: O_DIRECT with its
//! alignment, io_uring or the workers that FUSE goes by, the kernel's own short transfers. Needs root and FUSE.

mod common;

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use block::{DetectZeroes, ErrorKind, Node, NodeInfo, Operation};
    use iothread::Engine;
    use standfast_drivers::file::{Aio, Discard, Locking};
    use standfast_drivers::throttle::{Rate, ThrottleLimits};
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, DetectingZeroes, FileDriver, FileOptions, Quota, QuotaOptions,
        Raw, RawOptions, Throttle, ThrottleGroup, ThrottleOptions,
    };
    use testkit::{FuseCall, FuseFailure, FuseFile, FuseOp};

    use super::common::{Bench, Op, on_both_engines, pattern};

    /// The last block of any size is not full.
    const LENGTH: usize = 40 * 1024 + 1536;
    /// What the storage is asked in at most beyond a request's own range.
    const BLOCK: u64 = 4096;
    const MIB: u64 = 1 << 20;

    /// Which driver is at the top.
    #[derive(Clone, Copy, Debug)]
    enum Top {
        File,
        Quota,
        Blkdebug,
        /// That looks for zeroes.
        Raw,
        /// Whose budget is used up before the script ends.
        Throttle,
    }

    #[derive(Clone, Copy, Debug)]
    struct Case {
        top: Top,
        direct: bool,
        /// What O_DIRECT asks for.
        block: u64,
        /// What makes the calls.
        engine: Engine,
    }

    fn open(fuse: &FuseFile, case: Case) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            node_name: "file0".into(),
            filename: fuse.path().to_str().expect("ASCII").to_owned(),
            cache_direct: case.direct,
            aio: Some(match case.engine {
                Engine::IoUring => Aio::IoUringAnywhere,
                Engine::Threads => Aio::Threads,
            }),
            discard: Discard::Unmap,
            locking: Locking::Off,
            ..FileOptions::default()
        });
        let file = Node::new("file0", Box::new(driver.expect("opens")));
        match case.top {
            Top::File => file,
            Top::Quota => {
                let quota = pollster::block_on(Quota::open(QuotaOptions {
                    node_name: "disk0".into(),
                    file,
                    limit: MIB,
                }));
                Node::new("disk0", Box::new(quota.expect("opens")))
            }
            Top::Raw => {
                let raw = Raw::new(RawOptions {
                    node_name: "disk0".into(),
                    file,
                    offset: 0,
                    size: None,
                    discard: true,
                    info: NodeInfo::default(),
                });
                let raw = Box::new(raw.expect("opens"));
                Node::new("disk0", DetectingZeroes::around(raw, DetectZeroes::Unmap))
            }
            Top::Throttle => {
                let limits = ThrottleLimits {
                    bps_total: Rate {
                        // A tenth of that may be done at once.
                        average: script().iter().map(|op| op.bytes).sum::<u64>() * 8,
                        ..Rate::default()
                    },
                    ..ThrottleLimits::default()
                };
                let throttle = Throttle::new(ThrottleOptions {
                    node_name: "disk0".into(),
                    file,
                    group: ThrottleGroup::new("group0", limits).expect("it makes sense"),
                    discard: true,
                    info: NodeInfo::default(),
                });
                Node::new("disk0", Box::new(throttle))
            }
            Top::Blkdebug => {
                let blkdebug = Blkdebug::new(BlkdebugOptions {
                    node_name: "disk0".into(),
                    image: file,
                    inject_error: Vec::new(),
                    set_state: Vec::new(),
                    align: None,
                });
                Node::new("disk0", Box::new(blkdebug.expect("opens")))
            }
        }
    }

    /// What a guest does: requests that fit the blocks, that do not, that cross them, that reach the
    /// end; durable ones; each kind after each other.
    fn script() -> Vec<Op> {
        let fua = |mut op: Op| {
            op.fua = true;
            op
        };
        let end = LENGTH as u64;
        let split = |mut op: Op| {
            op.split = vec![513, 0, 1024, 7];
            op.skew = 3;
            op
        };
        vec![
            Op::write(0, pattern(1, 8192)),
            Op::write(4608, pattern(2, 1024)),
            split(Op::write(3071, pattern(3, 6000))),
            Op::read(0, 12 * 1024),
            fua(Op::write(8192, pattern(4, 4096))),
            fua(Op::write(9000, pattern(5, 100))),
            Op::flush(),
            Op::write(30_000, vec![0; 5000]),
            Op::write(end - 512, pattern(6, 512)),
            split(Op::write(end - 6001, pattern(7, 6001))),
            split(Op::read(end - 7000, 7000)),
            Op::zeroes(4096, 8192, true),
            Op::zeroes(1000, 9000, false),
            fua(Op::zeroes(16384, 5000, true)),
            Op::write(20480, pattern(8, 4096)),
            Op::discard(19000, 10000),
            Op::write(19500, pattern(9, 2000)),
            Op::zeroes(end - 3000, 3000, true),
            Op::read(0, end),
            Op::flush(),
        ]
    }

    /// An operation without its data.
    fn what(op: &Op) -> String {
        format!("{} of {} at {}, fua {}", op.op, op.bytes, op.offset, op.fua)
    }

    /// Where two contents differ for the first time.
    fn same(what: &str, got: &[u8], expected: &[u8]) {
        let differs = got.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((differs, got.len()), (None, expected.len()), "{what}");
    }

    fn indices(op: &Op) -> Range<usize> {
        let index = |at: u64| usize::try_from(at).expect("small");
        index(op.offset)..index(op.offset + op.bytes)
    }

    /// What the file has when `op` has been done.
    fn apply(model: &mut [u8], op: &Op, content: &[u8]) {
        let range = indices(op);
        match op.op {
            Operation::Write => model[range].copy_from_slice(&op.data),
            Operation::WriteZeroes { .. } => model[range].fill(0),
            // Advice: what there is afterwards is the storage's to say.
            Operation::Discard => model[range.clone()].copy_from_slice(&content[range]),
            Operation::Read | Operation::Flush => {}
        }
    }

    /// The calls of one request may touch the blocks that it touches, and nothing else.
    fn check_calls(op: &Op, calls: &[FuseCall]) {
        let allowed = op.offset / BLOCK * BLOCK..(op.offset + op.bytes).next_multiple_of(BLOCK);
        for call in calls.iter().filter(|call| call.op != FuseOp::Fsync) {
            assert!(
                allowed.start <= call.offset && call.offset + call.bytes <= allowed.end,
                "{}: {call:?}",
                what(op)
            );
            let changes = matches!(call.op, FuseOp::Write | FuseOp::Fallocate);
            let may_change = !matches!(op.op, Operation::Read | Operation::Flush);
            assert!(!changes || may_change, "{}: {call:?}", what(op));
        }
    }

    fn check_outside(op: &Op, model: &[u8], content: &[u8]) {
        let range = indices(op);
        let text = format!("beside {}", what(op));
        same(&text, &content[..range.start], &model[..range.start]);
        same(&text, &content[range.end..], &model[range.end..]);
    }

    /// A failed flush of a buffered file stays, and the storage is not asked again.
    fn accept_loss(bench: &Bench, fuse: &FuseFile, disk: &Arc<Node>) {
        for node in disk.subtree() {
            let Some(loss) = node.latched() else { continue };
            let asked = fuse.calls().len();
            let again = bench.run(disk, Op::flush()).expect_err("it is latched");
            assert_eq!(again.errno(), loss.errno);
            assert_eq!(
                fuse.calls().len(),
                asked,
                "the storage would say that all is well"
            );
            assert!(node.accept_loss(u32::MAX));
        }
    }

    /// Runs the script with one call that fails. What failed is done again once, as after `cont`.
    /// Returns the number of calls, and of requests that failed.
    fn run(
        bench: &Bench,
        fuse: &FuseFile,
        case: Case,
        failure: Option<(usize, FuseFailure)>,
    ) -> (usize, usize) {
        let mut model = pattern(0, LENGTH);
        fuse.reset(model.clone(), None);
        let disk = open(fuse, case);
        fuse.reset(model.clone(), failure);
        let (mut failed, mut seen) = (0, 0);
        for op in script() {
            let text = format!("{case:?} {failure:?} {}", what(&op));
            let mut result = bench.run(&disk, op.clone());
            if let Err(error) = &result {
                failed += 1;
                assert_eq!(failed, 1, "one call failed, and a second request: {error}");
                let expected = match failure {
                    Some((_, FuseFailure::Errno(errno))) => errno == error.errno(),
                    // Storage that takes nothing, or that ends too early; the page cache calls both EIO.
                    Some((_, FuseFailure::Short(_))) => {
                        matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::BackingGone)
                            || error.errno() == libc::EIO
                    }
                    _ => false,
                };
                assert!(expected, "{text}: {error}");
                check_outside(&op, &model, &fuse.content());
                if matches!(op.op, Operation::Read | Operation::Flush) {
                    same(&text, &fuse.content(), &model);
                }
                accept_loss(bench, fuse, &disk);
                result = bench.run(&disk, op.clone());
            }
            let data = result.unwrap_or_else(|error| panic!("{text}: {error}"));
            if op.op == Operation::Read {
                same(&text, &data, &model[indices(&op)]);
            }
            let (content, calls) = (fuse.content(), fuse.calls());
            apply(&mut model, &op, &content);
            same(&text, &content, &model);
            let own = calls.get(seen..).expect("they only become more");
            check_calls(&op, own);
            seen = calls.len();
        }
        let calls = fuse.calls().len();
        if let Some(limit) = disk.allocation_limit() {
            let again = open(fuse, case);
            let fresh = again.allocation_limit().expect("it is the same driver");
            assert!(
                limit.quota().1 <= fresh.quota().1,
                "{failure:?}: more than the image has"
            );
            drop(again);
        }
        let calls_then = fuse.calls().len();
        drop(disk);
        assert_eq!(
            fuse.calls().len(),
            calls_then,
            "a node that goes writes nothing"
        );
        same("at the end", &fuse.content(), &model);
        (calls, failed)
    }

    fn sweep(case: Case) {
        // Workers on an iothread with a ring: without one there is no other way.
        let bench = Bench::on(Engine::IoUring);
        let by_ring = case.engine == Engine::IoUring;
        let fuse = FuseFile::new(LENGTH).expect("FUSE");
        fuse.align_direct(case.block);
        // A ring does the rest of a short write at a wrong place if the page cache has no part in the file.
        fuse.cache(case.direct && by_ring);
        let (calls, failed) = run(&bench, &fuse, case, None);
        assert_eq!(failed, 0);
        let all = fuse.calls();
        assert!(calls >= script().len(), "{case:?}: {calls}");
        let mut visible = 0;
        for (number, call) in all.iter().enumerate() {
            for failure in [
                FuseFailure::Errno(libc::EIO),
                FuseFailure::Errno(libc::ENOSPC),
                FuseFailure::Short(0),
            ] {
                let (after, failed) = run(&bench, &fuse, case, Some((number, failure)));
                visible += failed;
                assert!(
                    after <= 2 * calls,
                    "{case:?} {number} {failure:?}: {after} calls instead of {calls}"
                );
            }
            // What is no failure for the guest. Not everything can be asked of Linux' io_uring on FUSE, which
            // is why FUSE goes by workers: through a ring short reads of a file that is not cached bring
            // wrong data (see `FuseFile::cache`), and after EAGAIN to the fsync of a durable write it writes
            // once more, behind what it has written. O_DIRECT moves whole blocks.
            let block = usize::try_from(case.block.max(512)).expect("small");
            let can_be_short = case.direct || !by_ring || call.op != FuseOp::Read;
            let short = can_be_short.then_some([block, block + 488]);
            let short = short.into_iter().flatten().map(FuseFailure::Short);
            let transient = match call.op {
                FuseOp::Fsync if by_ring => [libc::EINTR, libc::EINTR],
                _ => [libc::EINTR, libc::EAGAIN],
            };
            let transient = transient.into_iter().map(FuseFailure::Errno);
            for failure in transient.chain(short) {
                let (_, failed) = run(&bench, &fuse, case, Some((number, failure)));
                // The end of an image whose last block is not full goes through the page cache, which
                // does not go on after a short write.
                let to_tail = case.direct && call.offset + call.bytes > whole_blocks(case.block);
                let may_fail = to_tail && matches!(failure, FuseFailure::Short(_));
                assert!(failed == 0 || may_fail, "{case:?} {call:?} {failure:?}");
            }
        }
        // Most calls are the only ones that could do what they do.
        assert!(visible > calls, "{case:?}: {visible} of {calls} calls");
    }

    /// Where the last whole block of the image ends.
    fn whole_blocks(block: u64) -> u64 {
        LENGTH as u64 / block * block
    }

    /// A filter passes on what it gets: one kind of storage is enough.
    fn sweep_filter(top: Top, engine: Engine) {
        sweep(Case {
            top,
            direct: true,
            block: 4096,
            engine,
        });
    }

    fn file(engine: Engine) {
        let top = Top::File;
        sweep(Case {
            top,
            direct: false,
            block: 1,
            engine,
        });
        for block in [512, 4096] {
            sweep(Case {
                top,
                direct: true,
                block,
                engine,
            });
        }
    }

    fn quota(engine: Engine) {
        sweep_filter(Top::Quota, engine);
    }

    fn blkdebug(engine: Engine) {
        sweep_filter(Top::Blkdebug, engine);
    }

    fn raw(engine: Engine) {
        sweep_filter(Top::Raw, engine);
    }

    fn throttle(engine: Engine) {
        sweep_filter(Top::Throttle, engine);
    }

    on_both_engines!(file, quota, blkdebug, raw, throttle);
}
