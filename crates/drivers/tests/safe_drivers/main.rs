//! Drivers that are written without `unsafe`, over real files, for a guest that changes its memory
//! while it is moved.

#[cfg(test)]
mod checksum;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod pieces;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use block::range_lock::RangeLock;
    use block::{BlockError, Child, Driver, Io, IoFuture, Joined, Node, NodeInfo, Operation};
    use iothread::{Config, IoThread};
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::rng::Rng;

    use super::checksum::{BLOCK, Checksum, index};
    use super::guest::{Guest, Memory};
    use super::pieces::Pieces;

    /// No multiple of a block, of anybody.
    const LENGTH: u64 = 1_000_000 / 512 * 512 + 512;

    struct Image(tempfile::NamedTempFile);

    impl Image {
        fn new(directory: &Path) -> Self {
            let file = tempfile::NamedTempFile::new_in(directory).expect("a temporary file");
            file.as_file().set_len(LENGTH).expect("sparse");
            Self(file)
        }

        fn open(&self, cache_direct: bool) -> Arc<Node> {
            let driver = FileDriver::open_file(FileOptions {
                filename: self.0.path().to_str().expect("ASCII").to_owned(),
                cache_direct,
                ..FileOptions::default()
            });
            Node::new("file0", Box::new(driver.expect("opens")))
        }

        fn content(&self) -> Vec<u8> {
            std::fs::read(self.0.path()).expect("readable")
        }
    }

    /// On a disk, with O_DIRECT and without, and in memory.
    fn images() -> Vec<(Image, bool)> {
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let memory = Path::new("/dev/shm");
        vec![
            (Image::new(disk), true),
            (Image::new(disk), false),
            (Image::new(memory), false),
        ]
    }

    fn checksum(below: Arc<Node>, reads_twice: bool) -> (Arc<Node>, Arc<Checksum>) {
        let sums = (0..LENGTH.div_ceil(BLOCK)).map(|at| {
            let bytes = BLOCK.min(LENGTH - at * BLOCK);
            AtomicU32::new(crc32c::crc32c(&vec![0; index(bytes)]))
        });
        let filter = Arc::new(Checksum {
            file: Child::of(&"sum0".into(), "file", below),
            sums: sums.collect(),
            turns: RangeLock::default(),
            reads_twice,
        });
        let node = Node::new("sum0", Box::new(Shared(Arc::clone(&filter))));
        (node, filter)
    }

    /// A filter that a test looks into.
    #[derive(Debug)]
    struct Shared(Arc<Checksum>);

    impl Driver for Shared {
        fn name(&self) -> &'static str {
            self.0.name()
        }

        fn info(&self) -> NodeInfo {
            self.0.info()
        }

        fn length(&self) -> u64 {
            self.0.length()
        }

        fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
            self.0.submit(io)
        }
    }

    /// Blocks of the image that do not have the sum that was recorded for them.
    fn rotten(image: &Image, filter: &Checksum) -> Vec<usize> {
        let content = image.content();
        let blocks = content.chunks(index(BLOCK)).zip(&filter.sums).enumerate();
        blocks
            .filter(|(_, (block, sum))| crc32c::crc32c(block) != sum.load(Ordering::Relaxed))
            .map(|(at, _)| at)
            .collect()
    }

    /// A range of the disk, and segments for it.
    fn request(rng: &mut Rng) -> (u64, Vec<usize>) {
        let offset = rng.below(LENGTH);
        let bytes = 1 + rng.below((LENGTH - offset).min(50_000));
        let longest = [3, 40, 3000, 60_000][index(rng.below(4))];
        let mut left = index(bytes);
        let mut lengths = Vec::new();
        while left > 0 {
            // Also of no length at all.
            let length = index(rng.below(longest)).min(left);
            lengths.push(length);
            left -= length;
        }
        (offset, lengths)
    }

    const AREA: usize = 64 << 10;
    const TASKS: usize = 6;

    /// Random reads and writes, several at a time, each task in its own part of the memory. The model
    /// is only kept by one task, of a guest that keeps still.
    fn load(node: &Arc<Node>, memory: &Arc<Memory>, seed: u64, count: usize, still: bool) {
        let thread = IoThread::spawn(Config::default()).expect("an iothread");
        let (node, memory) = (Arc::clone(node), Arc::clone(memory));
        let run = move || async move {
            let model = Rc::new(std::cell::RefCell::new(vec![0u8; index(LENGTH)]));
            let task = |number: usize| {
                let (node, memory, model) = (node.clone(), memory.clone(), Rc::clone(&model));
                async move {
                    let guest = memory.guest();
                    let mut rng = Rng::new(seed * 100 + number as u64);
                    for _ in 0..count {
                        let (offset, lengths) = request(&mut rng);
                        let segments = memory.segments(number * AREA + 1, &lengths);
                        let range = index(offset)..index(offset) + segments.range.len();
                        if rng.below(2) == 0 {
                            let data: Vec<u8> = (0..segments.range.len())
                                .map(|_| rng.next_u64().to_le_bytes()[0])
                                .collect();
                            guest.write(segments.range.start, &data);
                            let write = Io::write(offset, segments.buffers());
                            node.submit(write).await.expect("written");
                            model.borrow_mut()[range].copy_from_slice(&data);
                        } else {
                            let read = Io::read(offset, segments.buffers());
                            node.submit(read)
                                .await
                                .expect("read, and as it was written");
                            let same = segments.content() == model.borrow()[range];
                            assert!(same || !still, "read something else");
                        }
                    }
                }
            };
            let tasks = if still { 1 } else { TASKS };
            let tasks: Vec<_> = (0..tasks).map(|n| iothread::spawn_local(task(n))).collect();
            for task in tasks {
                task.await;
            }
        };
        thread
            .handle()
            .run_blocking(run)
            .expect("the iothread runs");
    }

    #[test]
    fn a_filter_reads_back_what_it_has_written() {
        for (image, direct) in images() {
            let (node, filter) = checksum(image.open(direct), false);
            let memory = Arc::new(Memory::new(AREA));
            load(&node, &memory, 1, 150, true);
            assert_eq!(rotten(&image, &filter), [0; 0]);
        }
    }

    /// The sum that was recorded is the one of what was written, and not of what the guest had
    /// meanwhile.
    #[test]
    fn a_guest_that_writes_meanwhile_spoils_no_sum() {
        for (image, direct) in images() {
            let (node, filter) = checksum(image.open(direct), false);
            let memory = Arc::new(Memory::new(TASKS * AREA));
            let end = AtomicBool::new(false);
            let guest = memory.guest();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut rng = Rng::new(3);
                    while !end.load(Ordering::Relaxed) {
                        let at = index(rng.below((TASKS * AREA - 512) as u64));
                        guest.write(at, &[rng.next_u64().to_le_bytes()[0]; 512]);
                    }
                });
                load(&node, &memory, 2, 60, false);
                end.store(true, Ordering::Relaxed);
            });
            assert_eq!(rotten(&image, &filter), [0; 0]);
        }
    }

    /// Below the filter: at each write the guest changes all of its memory, before it is written.
    #[derive(Debug)]
    struct Meddler {
        file: Child,
        guest: Guest,
        bytes: usize,
        count: AtomicU32,
    }

    impl Driver for Meddler {
        fn name(&self) -> &'static str {
            "meddler"
        }

        fn info(&self) -> NodeInfo {
            self.file.info()
        }

        fn length(&self) -> u64 {
            self.file.length()
        }

        fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
            if io.op == Operation::Write {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                self.guest
                    .write(0, &vec![count.to_le_bytes()[0] | 1; self.bytes]);
            }
            self.file.submit(io)
        }
    }

    /// The same at the worst moment; and a filter that makes the mistake is found out.
    #[test]
    fn what_is_read_twice_has_another_sum() {
        for reads_twice in [false, true] {
            for (image, direct) in images() {
                let memory = Arc::new(Memory::new(AREA));
                let meddler = Meddler {
                    file: Child::of(&"meddler0".into(), "file", image.open(direct)),
                    guest: memory.guest(),
                    bytes: AREA,
                    count: AtomicU32::new(0),
                };
                let meddler = Node::new("meddler0", Box::new(meddler));
                let (node, filter) = checksum(meddler, reads_twice);
                let memory = Arc::clone(&memory);
                let thread = IoThread::spawn(Config::default()).expect("an iothread");
                let run = move || async move {
                    let segments = memory.segments(7, &[1000, 0, 999, 4096]);
                    let write = Io::write(12_345, segments.buffers());
                    node.submit(write).await.expect("written");
                    let read = Io::read(12_345, segments.buffers());
                    let before = segments.content();
                    let result = node.submit(read).await;
                    // What does not have its sum is kept from the guest.
                    (result, segments.content() == before)
                };
                let (result, untouched) = (thread.handle().run_blocking(run)).expect("it runs");
                let found = rotten(&image, &filter);
                if reads_twice {
                    assert_eq!(found, [12, 13, 14, 15, 16, 17, 18], "direct {direct}");
                    let error: BlockError = result.expect_err("another sum");
                    assert!(error.to_string().contains("block 12 has rotted"), "{error}");
                    assert!(untouched);
                } else {
                    assert_eq!(found, [0; 0], "direct {direct}");
                    result.expect("as it was written");
                    assert!(!untouched, "the guest had changed it");
                }
            }
        }
    }

    #[test]
    fn what_rots_on_the_storage_is_kept_from_the_guest() {
        for (image, direct) in images() {
            let (node, filter) = checksum(image.open(direct), false);
            let memory = Arc::new(Memory::new(AREA));
            (image.0.as_file().write_all_at(&[1], 5 * BLOCK + 7)).expect("spoilt");
            assert_eq!(rotten(&image, &filter), [5]);
            let thread = IoThread::spawn(Config::default()).expect("an iothread");
            let run = move || async move {
                let segments = memory.segments(0, &[100, 700, 4000]);
                memory.guest().write(0, &[0xee; 4800]);
                let read = |offset| Io::read(offset, segments.buffers());
                let error = node.submit(read(4 * BLOCK)).await.expect_err("rotten");
                assert_eq!(error.errno(), libc::EIO);
                assert_eq!(segments.content(), [0xee; 4800]);
                node.submit(read(6 * BLOCK))
                    .await
                    .expect("as it was written");
                assert_eq!(segments.content(), [0; 4800]);
            };
            thread
                .handle()
                .run_blocking(run)
                .expect("the iothread runs");
        }
    }

    /// Parts begin and end inside segments, and have more of them than the kernel takes: whatever the
    /// leaf makes of them, it is the right bytes.
    #[test]
    fn parts_of_a_request_have_their_parts_of_the_memory() {
        for (image, direct) in images() {
            for piece in [4096, 7_777, 49_999] {
                (image.0.as_file().write_all_at(&vec![0; index(LENGTH)], 0)).expect("empty");
                let pieces = Pieces {
                    file: Child::of(&"pieces0".into(), "file", image.open(direct)),
                    piece,
                };
                let node = Node::new("pieces0", Box::new(pieces));
                let memory = Arc::new(Memory::new(AREA));
                load(&node, &memory, piece, 100, true);
            }
        }
    }

    /// Aligned parts of memory that is joined from here and there, with O_DIRECT and without.
    #[test]
    fn joined_memory_is_one_request() {
        for (image, direct) in images() {
            let node = image.open(direct);
            let memory = Arc::new(Memory::new(AREA));
            let thread = IoThread::spawn(Config::default()).expect("an iothread");
            let run = move || async move {
                memory.guest().write(0, &[1; 8192]);
                memory.guest().write(8192, &[2; 8192]);
                let (low, high) = (memory.segments(0, &[8192]), memory.segments(8192, &[8192]));
                let mut zeroes = block::OwnedBuffer::zeroed(4096).expect("memory");
                let mut joined = Joined::new();
                joined.push(high.buffers().slice(4096..8192));
                joined.push(zeroes.lend());
                joined.push(low.buffers().slice(0..4096));
                for _ in 0..2 {
                    let write = Io::write(8192, joined.buffers());
                    node.submit(write).await.expect("written");
                }
            };
            thread
                .handle()
                .run_blocking(run)
                .expect("the iothread runs");
            let content = image.content();
            assert_eq!(content[8192..12_288], [2; 4096]);
            assert_eq!(content[12_288..16_384], [0; 4096]);
            assert_eq!(content[16_384..20_480], [1; 4096]);
        }
    }
}
