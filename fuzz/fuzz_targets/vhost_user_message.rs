//! What a vhost-user client says, with any descriptors.
//!
//! The input is a row of messages: a byte with the number of descriptors, a header, and as much
//! payload as the header promises and the input has. Each is decoded; then all of them are said to
//! an export that lives as long as the fuzzer, and which must come to the end of every client.
#![no_main]

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use block::{
    Backend, Child, Driver, Export, HoldScope, Io, IoFuture, Node, NodeInfo, OnError, Policy,
};
use export_vhost_user_blk::{Options, VhostUserBlkExport};
use iothread::IoThread;
use libfuzzer_sys::fuzz_target;
use listener::Socket;
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost_user::protocol::answer::{self, Answer};
use vhost_user::protocol::decode::decode;
use vhost_user::protocol::message::{FDS_MAX, HEADER_BYTES, Header, Message, PAYLOAD_BYTES_MAX};

/// Code of the message that hands an inflight region in.
const SET_INFLIGHT_FD: u32 = 32;
/// Messages of one client.
const MESSAGES_MAX: usize = 32;
/// Size of the memory behind each descriptor in bytes.
const FILE_BYTES: u64 = 1 << 16;
/// How long the end of a client may take.
const END_TIME_MAX: Duration = Duration::from_secs(20);

fuzz_target!(|bytes: &[u8]| {
    let mut left = bytes;
    let mut client = None;
    for _ in 0..MESSAGES_MAX {
        let Some((&fds, rest)) = left.split_first() else {
            break;
        };
        let fds = usize::from(fds) % (FDS_MAX + 2);
        let Some((&header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            break;
        };
        let size = check(header, rest, fds);
        let (payload, rest) = rest.split_at(size.min(rest.len()));
        left = rest;
        let client = client.get_or_insert_with(|| Server::get().connect());
        if !send(client, &[&header[..], payload].concat(), fds) {
            break;
        }
    }
    if let Some(client) = client {
        end(client);
    }
});

/// Decodes a message. Returns how long its payload is.
fn check(header: [u8; HEADER_BYTES], rest: &[u8], fds: usize) -> usize {
    let header = match Header::parse(header) {
        Ok(header) => header,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return 0;
        }
    };
    assert!(header.size <= PAYLOAD_BYTES_MAX);
    let Some(payload) = rest.get(..header.size) else {
        return header.size;
    };
    match decode(header, payload, (0..fds).collect()) {
        Ok(Message::SetMemTable(regions)) => assert_eq!(regions.len(), fds),
        Ok(Message::SetConfig(range, bytes)) => {
            assert_eq!(Ok(range.len), u32::try_from(bytes.len()));
        }
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let done = Answer::<usize>::Done.encode(header);
    assert_eq!(done.is_some(), header.need_reply);
    assert!(answer::refusal(header).is_none() || header.need_reply);
    header.size
}

/// A disk that does nothing.
#[derive(Debug)]
struct Null;

impl Driver for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        1 << 20
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::new(async move {
            // Some are in flight for a while, when a ring is stopped for example.
            for _ in 0..io.offset / 512 % 8 {
                iothread::yield_now().await;
            }
            Ok(())
        })
    }
}

/// The export and all that it needs.
struct Server {
    address: SocketAddr,
    _export: Arc<dyn Export>,
    _iothread: IoThread,
}

impl Server {
    fn get() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        // Without a file: a fuzzer ends without tidying up.
        let name = format!("standfast-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("the socket can be bound");
        let (control, task) = block::control();
        std::thread::spawn(move || pollster::block_on(task.run()));
        let iothread = IoThread::spawn(iothread::Config::default()).expect("an iothread");
        let options = Options {
            writable: true,
            num_queues: 2,
            configure_mem_slots: true,
            ..Options::new("disk0")
        };
        let export = pollster::block_on(async {
            let root = Child::root(&options.id, Node::new("node0", Box::new(Null)));
            let policy = Policy::new(OnError::Stop, OnError::Stop);
            let backend = Backend::new(&control, &options.id, root, policy, HoldScope::Vm).await;
            let backend = backend.expect("run control runs");
            let socket = Socket::inherited(listener.into()).expect("it listens");
            VhostUserBlkExport::new(options, backend, &[iothread.handle()], socket).await
        });
        Self {
            address,
            _export: export.expect("an export"),
            _iothread: iothread,
        }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect_addr(&self.address).expect("the export listens");
        // Nobody reads the answers before the end: the socket must not fill up.
        client.set_nonblocking(true).expect("a socket");
        client
    }
}

/// False if the export has ended the connection, or reads no more.
fn send(client: &UnixStream, bytes: &[u8], count: usize) -> bool {
    let owned: Vec<OwnedFd> = (0..count).map(|_| descriptor(bytes)).collect();
    let fds: Vec<BorrowedFd<'_>> = owned.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let slices = [IoSlice::new(bytes)];
    rustix::net::sendmsg(client, &slices, &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// An event descriptor for messages about one, a file in memory for all others.
fn descriptor(message: &[u8]) -> OwnedFd {
    if matches!(message.first(), Some(12..=14)) {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        rustix::event::eventfd(1, flags).expect("an event descriptor")
    } else {
        let fd = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd");
        let file = File::from(fd);
        file.set_len(FILE_BYTES).expect("room");
        if let Some((trailer, end)) = trailer(message) {
            file.write_all_at(&trailer, end - trailer.len() as u64)
                .expect("room");
        }
        file.into()
    }
}

/// What ends an inflight region that the export itself has made, and where it ends. The message has
/// some bytes of padding: they say what the trailer does.
fn trailer(message: &[u8]) -> Option<([u8; 64], u64)> {
    let payload = message
        .strip_prefix(&SET_INFLIGHT_FD.to_ne_bytes())?
        .get(8..)?;
    let (bytes, rest) = payload.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let &[queues, size, version, cache] = rest.get(4..8)? else {
        return None;
    };
    let end = u64::from_ne_bytes(*bytes).checked_add(u64::from_ne_bytes(*offset))?;
    let mut trailer = [0; 64];
    trailer[..8].copy_from_slice(b"STNDFINF");
    trailer[8..15].copy_from_slice(&[1 ^ (version / 128), 0, queues, 0, size, 0, cache]);
    (64..=FILE_BYTES).contains(&end).then_some((trailer, end))
}

/// The export must answer what it has to, and close.
fn end(mut client: UnixStream) {
    client.set_nonblocking(false).expect("a socket");
    client
        .set_read_timeout(Some(END_TIME_MAX))
        .expect("a socket");
    // It may have been faster.
    let _ = client.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    if let Err(error) = client.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}
