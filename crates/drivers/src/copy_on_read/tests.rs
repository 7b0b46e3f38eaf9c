use super::*;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use block::{Joined, OwnedBuffer};
use parking_lot::Mutex;

const SECTOR: usize = 512;
const SECTORS: usize = 16;

/// An image over something: a byte for each sector, or what is behind it.
#[derive(Debug)]
struct State {
    own: Vec<Option<u8>>,
    behind: Vec<u8>,
    /// It is not known what is whose, until something is read.
    unknown: bool,
    /// Reads do not come back.
    hangs: bool,
    /// Writes fail with it.
    errno: Option<i32>,
    writes: usize,
    zeroes: usize,
    reads: usize,
}

#[derive(Clone, Debug)]
struct Image(Arc<Mutex<State>>);

impl Image {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            own: vec![None; SECTORS],
            behind: (0..SECTORS).map(|at| u8::try_from(at).unwrap()).collect(),
            unknown: false,
            hangs: false,
            errno: None,
            writes: 0,
            zeroes: 0,
            reads: 0,
        })))
    }

    fn over(&self, bottom: Option<&str>) -> Arc<Node> {
        let image = Node::new("image", Box::new(self.clone()));
        let copy = CopyOnRead::new(CopyOnReadOptions {
            node_name: "copy".into(),
            file: image,
            bottom: bottom.map(str::to_owned),
            info: NodeInfo::default(),
        });
        Node::new("copy", Box::new(copy.unwrap()))
    }

    /// What is read.
    fn bytes(&self, sectors: Range<usize>) -> Vec<u8> {
        let mut state = self.0.lock();
        state.reads += 1;
        state.unknown = false;
        let byte = |at: usize| state.own[at].unwrap_or(state.behind[at]);
        sectors.flat_map(|at| [byte(at); SECTOR]).collect()
    }

    fn own(&self) -> Vec<Option<u8>> {
        self.0.lock().own.clone()
    }
}

fn sectors(io: &Io<'_>) -> Range<usize> {
    let at = |bytes: u64| usize::try_from(bytes).unwrap() / SECTOR;
    at(io.offset)..at(io.offset + io.bytes)
}

impl Driver for Image {
    fn name(&self) -> &'static str {
        "image"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        (SECTORS * SECTOR) as u64
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::new(async move {
            if io.op == Operation::Read {
                io.buffers.copy_from(&self.bytes(sectors(&io)));
                // What has been read is on its way.
                std::future::poll_fn(|_| match self.0.lock().hangs {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                })
                .await;
                return Ok(());
            }
            let mut state = self.0.lock();
            if let Some(errno) = state.errno {
                state.writes += 1;
                return Err(BlockError::from_errno(errno));
            }
            let mut data = vec![0; usize::try_from(io.bytes).unwrap()];
            match io.op {
                Operation::Write => {
                    io.buffers.copy_to(&mut data);
                    state.writes += 1;
                }
                _ => state.zeroes += 1,
            }
            for (at, sector) in sectors(&io).zip(data.chunks(SECTOR)) {
                state.own[at] = Some(sector[0]);
            }
            Ok(())
        })
    }

    fn origin(&self, range: Range<u64>) -> Option<Origin> {
        let state = self.0.lock();
        if state.unknown {
            return None;
        }
        let at = |bytes: u64| usize::try_from(bytes).unwrap() / SECTOR;
        let all = &state.own[at(range.start)..at(range.end)];
        let own = all.first()?.is_some();
        let alike = all.iter().take_while(|one| one.is_some() == own).count();
        Some(Origin {
            own,
            bytes: (alike * SECTOR) as u64,
        })
    }
}

fn poll(future: Pin<&mut impl Future<Output = Result<()>>>) -> Option<Result<()>> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn read(node: &Node, first: usize, count: usize) -> Vec<u8> {
    let mut memory = vec![0xee; count * SECTOR];
    let mut joined = Joined::new();
    joined.push_own(&mut memory);
    let io = Io::read((first * SECTOR) as u64, joined.buffers());
    let done = poll(pin!(node.submit(io))).expect("nothing waits");
    done.unwrap();
    drop(joined);
    memory.chunks(SECTOR).map(|sector| sector[0]).collect()
}

#[test]
fn what_is_read_is_there_the_next_time() {
    for unknown in [false, true] {
        let image = Image::new();
        image.0.lock().own[4] = Some(0x44);
        image.0.lock().unknown = unknown;
        let node = image.over(None);
        assert_eq!(read(&node, 3, 3), [3, 0x44, 5]);
        let mut own = vec![None; SECTORS];
        own[3..6].copy_from_slice(&[Some(3), Some(0x44), Some(5)]);
        assert_eq!(image.own(), own, "nothing else, and what it had stays");
        assert_eq!(image.0.lock().writes, 2);
        let before = image.0.lock().reads;
        assert_eq!(read(&node, 3, 3), [3, 0x44, 5]);
        assert_eq!(image.0.lock().reads, before + 1, "one request");
        assert_eq!(image.0.lock().writes, 2);
    }
}

/// Where the guest's data are read but once, what is behind is.
#[test]
fn what_is_behind_is_read_once() {
    let image = Image::new();
    let node = image.over(None);
    assert_eq!(read(&node, 1, 2), [1, 2]);
    assert_eq!(image.0.lock().reads, 1);
}

#[test]
fn zeroes_are_no_data() {
    let image = Image::new();
    image.0.lock().behind.fill(0);
    let node = image.over(None);
    assert_eq!(read(&node, 0, 2), [0, 0]);
    let state = image.0.lock();
    assert_eq!((state.writes, state.zeroes), (0, 1));
}

/// The copy has read what is behind when the guest writes: its bytes would be gone, and the guest would see what it had
/// overwritten.
#[test]
fn what_the_guest_writes_meanwhile_wins() {
    for op in [
        Operation::Write,
        Operation::WriteZeroes { unmap: true },
        Operation::Discard,
    ] {
        let image = Image::new();
        let node = image.over(None);
        image.0.lock().hangs = true;
        let mut buffer = OwnedBuffer::new(2 * SECTOR).unwrap();
        let mut reading = pin!(node.submit(Io::read(0, buffer.lend())));
        assert!(poll(reading.as_mut()).is_none());
        assert_eq!(image.0.lock().reads, 1, "it has the old bytes");

        let mut data = OwnedBuffer::new(SECTOR).unwrap();
        data.fill(0x77);
        let io = match op {
            Operation::Write => Io::write(SECTOR as u64, data.lend()),
            Operation::Discard => Io::discard(SECTOR as u64, SECTOR as u64),
            _ => Io::write_zeroes(SECTOR as u64, SECTOR as u64, true),
        };
        let mut writing = pin!(node.submit(io));
        assert!(poll(writing.as_mut()).is_none(), "{op}: it waits");
        // What is elsewhere does not.
        let mut other = OwnedBuffer::new(SECTOR).unwrap();
        other.fill(0x99);
        let elsewhere = Io::write(8 * SECTOR as u64, other.lend());
        poll(pin!(node.submit(elsewhere)))
            .expect("at once")
            .unwrap();

        image.0.lock().hangs = false;
        poll(reading).expect("it ends").unwrap();
        poll(writing).expect("it ends").unwrap();
        let written = if op == Operation::Write { 0x77 } else { 0 };
        assert_eq!(image.own()[..2], [Some(0), Some(written)], "{op}");
    }
}

/// A disk that cannot take the copy is no reason to fail a read whose data are there; nor is it asked for each.
#[test]
fn a_copy_that_fails_fails_no_read() {
    let image = Image::new();
    let node = image.over(None);
    image.0.lock().errno = Some(libc::ENOSPC);
    assert_eq!(read(&node, 0, 4), [0, 1, 2, 3]);
    assert_eq!(read(&node, 0, 4), [0, 1, 2, 3]);
    assert_eq!(read(&node, 8, 1), [8]);
    assert_eq!(image.0.lock().writes, 1, "once a second");
    assert_eq!(image.own(), vec![None; SECTORS]);

    image.0.lock().errno = None;
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(read(&node, 0, 4), [0, 1, 2, 3]);
    assert_eq!(image.own()[..4], [0, 1, 2, 3].map(Some));
}

#[test]
fn it_writes_even_for_those_who_read_and_nobody_else_does() {
    let node = Image::new().over(None);
    let driver = node.driver();
    let children = driver.children();
    let alone = driver.child_access(children[0], Access::NONE);
    assert_eq!(alone.held, Permissions::WRITE_UNCHANGED);
    assert_eq!(alone.shared, Permissions::WRITE.not());
}

#[test]
fn a_bottom_is_behind_the_child_and_no_filter() {
    let image = || Node::new("image", Box::new(Image::new()));
    let new = |file: Arc<Node>, bottom: &str| {
        let opened = CopyOnRead::new(CopyOnReadOptions {
            node_name: "copy".into(),
            file,
            bottom: Some(bottom.to_owned()),
            info: NodeInfo::default(),
        });
        opened.map(|_| ()).map_err(|error| error.desc)
    };
    assert_eq!(new(image(), "image"), Ok(()));
    let not_found = "Bottom node 'other' not found".to_owned();
    assert_eq!(new(image(), "other"), Err(not_found));
    let filter = "Bottom node 'copy' is a filter".to_owned();
    assert_eq!(new(image(), "copy"), Err(filter.clone()));
    assert_eq!(new(Image::new().over(None), "copy"), Err(filter));
}

/// Nothing is behind the bottom that counts.
#[test]
fn nothing_is_copied_from_below_the_bottom() {
    let image = Image::new();
    let node = image.over(Some("image"));
    assert_eq!(read(&node, 0, 4), [0, 1, 2, 3]);
    assert_eq!(image.0.lock().writes, 0);
}
