//! In the steady state a request allocates nothing on its usual path. A request that is copied, or
//! that a filter has to look after, costs one box for its future, and no buffer.

mod common;

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::sync::Arc;

    use block::fault::InjectError;
    use block::{Buffers, DetectZeroes, Io, Joined, Node, NodeInfo, Operation, OwnedBuffer};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, DetectingZeroes, FileDriver, FileOptions, NullCo, NullOptions,
        Quota, QuotaOptions, Raw, RawOptions,
    };

    use super::common::{Bench, node};

    struct Counting;

    thread_local! {
        static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    }

    // SAFETY: all is passed on to the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // Without a counter the thread is ending.
            let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
            // SAFETY: the caller's promise is the system allocator's condition.
            unsafe { System.alloc(layout) }
        }

        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise is the system allocator's condition.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    const REQUESTS: usize = 100;

    /// The memory of a request.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Memory {
        None,
        Page,
        /// Not where O_DIRECT wants it.
        Skewed,
        /// Several segments.
        Pages,
        /// Several segments, the first and the last of which lie in it with a part.
        PartOfPages,
    }

    /// Allocations of as many requests, after as many others.
    fn allocations(
        disk: &Arc<Node>,
        op: Operation,
        memory: Memory,
        offset: u64,
        fua: bool,
    ) -> usize {
        let bench = Bench::new();
        let disk = Arc::clone(disk);
        bench
            .handle()
            .run_blocking(move || async move {
                let mut own = OwnedBuffer::zeroed(16_384).expect("memory");
                let own = own.lend();
                let mut pages = Joined::new();
                for page in [8192, 0, 4096] {
                    pages.push(own.slice(page..page + 4096));
                }
                let buffers = match memory {
                    Memory::None => Buffers::EMPTY,
                    Memory::Page => own.slice(0..4096),
                    Memory::Skewed => own.slice(1..4097),
                    Memory::Pages => pages.buffers(),
                    Memory::PartOfPages => pages.buffers().slice(512..8704),
                };
                let mut before = 0;
                for round in 0..2 * REQUESTS {
                    if round == REQUESTS {
                        before = ALLOCATIONS.get();
                    }
                    let io = Io {
                        op,
                        offset,
                        bytes: buffers.len() as u64,
                        buffers,
                        fua,
                        losses_accepted: 0,
                    };
                    disk.submit(io).await.expect("done");
                }
                ALLOCATIONS.get() - before
            })
            .expect("the iothread runs")
    }

    #[test]
    fn none_or_one_box_per_request() {
        let image =
            tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary file");
        image.as_file().set_len(1 << 20).expect("sparse");
        let file = |direct| {
            node(
                FileDriver::open_file(FileOptions {
                    filename: image.path().to_str().expect("ASCII").to_owned(),
                    cache_direct: direct,
                    discard: Discard::Unmap,
                    ..FileOptions::default()
                })
                .expect("opens"),
            )
        };
        let blkdebug = |rules| {
            let blkdebug = Blkdebug::new(BlkdebugOptions {
                node_name: "debug0".into(),
                image: node(NullCo::new(NullOptions::default())),
                inject_error: rules,
                set_state: Vec::new(),
                align: None,
            });
            node(blkdebug.expect("opens"))
        };
        let quota = || {
            let quota = pollster::block_on(Quota::open(QuotaOptions {
                node_name: "quota0".into(),
                file: file(true),
                limit: 1 << 20,
            }));
            node(quota.expect("opens"))
        };
        let other_sector = InjectError {
            sector: Some(1000),
            ..InjectError::default()
        };
        let raw = |file| {
            let raw = Raw::new(RawOptions {
                node_name: "raw0".into(),
                file,
                offset: 4096,
                size: None,
                discard: true,
                info: NodeInfo::default(),
            });
            Box::new(raw.expect("opens"))
        };
        let null = || node(NullCo::new(NullOptions::default()));
        let latency = NullOptions {
            latency_ns: 1000,
            ..NullOptions::default()
        };
        for (name, disk) in [
            ("null-co", node(NullCo::new(NullOptions::default()))),
            ("null-co with latency", node(NullCo::new(latency.clone()))),
            ("raw", Node::new("raw0", raw(null()))),
            (
                "raw on what takes its time",
                Node::new("raw0", raw(node(NullCo::new(latency)))),
            ),
            (
                "raw that looks for zeroes",
                Node::new(
                    "raw0",
                    DetectingZeroes::around(raw(null()), DetectZeroes::On),
                ),
            ),
            ("blkdebug", blkdebug(Vec::new())),
            ("blkdebug with a rule", blkdebug(vec![other_sector])),
        ] {
            for (op, memory) in [
                (Operation::Read, Memory::Page),
                (Operation::Write, Memory::Page),
                (Operation::Flush, Memory::None),
            ] {
                assert_eq!(allocations(&disk, op, memory, 0, false), 0, "{name} {op}");
            }
        }
        let disk = file(false);
        for op in [Operation::Read, Operation::Write] {
            for (memory, expected, what) in [
                (Memory::Page, 0, "one segment"),
                (Memory::Pages, 0, "the list is not copied"),
                (Memory::Skewed, 0, "one piece needs no list"),
                (Memory::PartOfPages, REQUESTS, "a list for the kernel"),
            ] {
                let found = allocations(&disk, op, memory, 4096, false);
                assert_eq!(found, expected, "buffered {op}: {what}");
            }
        }
        drop(disk);
        let disk = file(true);
        for fua in [false, true] {
            for op in [Operation::Read, Operation::Write] {
                for memory in [Memory::Page, Memory::Pages] {
                    let found = allocations(&disk, op, memory, 4096, fua);
                    assert_eq!(found, 0, "direct {op}, fua {fua}");
                }
            }
        }
        let found = allocations(&disk, Operation::Flush, Memory::None, 0, false);
        assert_eq!(found, 0, "direct flush");
        for op in [Operation::Read, Operation::Write] {
            let found = allocations(&disk, op, Memory::Skewed, 4096, false);
            assert_eq!(found, REQUESTS, "bounced {op}: the box");
        }
        drop(disk);
        let disk = quota();
        let found = allocations(&disk, Operation::Read, Memory::Page, 4096, false);
        assert_eq!(found, 0, "quota read");
        let found = allocations(&disk, Operation::Write, Memory::Page, 4096, false);
        assert_eq!(found, REQUESTS, "quota write: the box");
    }
}
