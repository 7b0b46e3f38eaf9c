//! Whole messages with their descriptors, from and to a stream.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::message::{FDS_MAX, Fds, HEADER_BYTES, Header, MessageError};

/// How long a message may take that has begun. Front ends send messages as a whole.
const MESSAGE_TIME_MAX: Duration = Duration::from_secs(10);

/// Why there are no more messages.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The client has closed the connection; what it has not finished says nothing.
    #[error("the client is gone")]
    Gone,
    /// It has sent something that is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More descriptors than any message has.
    #[error("a message with more than {FDS_MAX} descriptors")]
    TooManyFds,
    /// A part of a message, and then nothing.
    #[error("a message was begun and not finished within {MESSAGE_TIME_MAX:?}")]
    Unfinished,
    /// The system refuses.
    #[error("cannot read from the client: {0}")]
    System(#[from] io::Error),
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Packet {
    pub header: Header,
    /// As long as the header says.
    pub payload: Vec<u8>,
    pub fds: Fds<OwnedFd>,
}

/// A client's connection, which blocks.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Waits for the next message. All descriptors that came with an unfinished or unreadable one
    /// are closed.
    pub fn receive(&self) -> Result<Packet, ReceiveError> {
        let mut arrival = Arrival {
            stream: &self.stream,
            fds: Fds::new(),
            deadline: None,
        };
        let mut header = [0; HEADER_BYTES];
        arrival.fill(&mut header)?;
        let header = Header::parse(header)?;
        let mut payload = vec![0; header.size];
        arrival.fill(&mut payload)?;
        let fds = arrival.fds;
        Ok(Packet {
            header,
            payload,
            fds,
        })
    }

    /// Waits until the client says something, or leaves; false if it does neither in time.
    pub fn is_readable_within(&self, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).ok();
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        // An error is found again by whoever reads.
        !matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(0))
    }

    /// Sends a message.
    pub fn send(&self, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: SmallFds<'_> = fd.map(AsFd::as_fd).into_iter().collect();
        // One fits.
        let _ = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds));
        let mut left = bytes;
        while !left.is_empty() {
            let slices = [IoSlice::new(left)];
            match rustix::net::sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or(&[]);
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

type SmallFds<'fd> = smallvec::SmallVec<[std::os::fd::BorrowedFd<'fd>; 1]>;

/// A message on its way.
struct Arrival<'a> {
    stream: &'a UnixStream,
    fds: Fds<OwnedFd>,
    /// None before its first byte.
    deadline: Option<Instant>,
}

impl Arrival<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ReceiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if let Some(deadline) = self.deadline {
                self.wait(deadline)?;
            }
            let part = buffer.get_mut(filled..).unwrap_or_default();
            match self.receive(part)? {
                Some(0) => return Err(ReceiveError::Gone),
                Some(bytes) => {
                    filled += bytes;
                    self.deadline
                        .get_or_insert_with(|| Instant::now() + MESSAGE_TIME_MAX);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Waits until there is something to read.
    fn wait(&self, deadline: Instant) -> Result<(), ReceiveError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(self.stream, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(ReceiveError::Unfinished),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ReceiveError::System(errno.into())),
        }
    }

    /// Reads what there is: none if that was nothing, 0 at the end.
    fn receive(&mut self, part: &mut [u8]) -> Result<Option<usize>, ReceiveError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if self.deadline.is_some() {
            flags |= RecvFlags::DONTWAIT;
        }
        let slices = &mut [IoSliceMut::new(part)];
        let received = match rustix::net::recvmsg(self.stream, slices, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(ReceiveError::Gone),
            Err(errno) => return Err(ReceiveError::System(errno.into())),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // The kernel has closed what did not fit.
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_MAX {
            return Err(ReceiveError::TooManyFds);
        }
        Ok(Some(received.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::code::Code;
    use std::io::{Read, Write};
    use std::os::fd::BorrowedFd;

    fn pair() -> (UnixStream, Connection) {
        let (client, device) = UnixStream::pair().unwrap();
        (client, Connection::new(device))
    }

    fn header(code: u32, size: u32) -> Vec<u8> {
        [code, 1, size].map(u32::to_ne_bytes).concat()
    }

    fn send_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let slices = [IoSlice::new(bytes)];
        rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::empty()).unwrap();
    }

    /// The reading end of a pipe hears when the last descriptor of the writing end is closed.
    fn expect_closed(mut reader: io::PipeReader) {
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn pieces_become_messages() {
        let (mut client, device) = pair();
        let sender = std::thread::spawn(move || {
            let mut bytes = header(2, 8);
            bytes.extend(7_u64.to_ne_bytes());
            bytes.extend(header(1, 0));
            for byte in bytes {
                client.write_all(&[byte]).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            client
        });
        let first = device.receive().unwrap();
        assert_eq!((first.header.code, first.header.size), (Code(2), 8));
        assert_eq!(first.payload, 7_u64.to_ne_bytes());
        assert_eq!(device.receive().unwrap().header.code, Code(1));
        drop(sender.join().unwrap());
        assert!(matches!(device.receive(), Err(ReceiveError::Gone)));
    }

    #[test]
    fn descriptors_belong_to_their_message() {
        let (mut client, device) = pair();
        let (reader, writer) = io::pipe().unwrap();
        let mut message = header(12, 8);
        message.extend([0; 8]);
        client.write_all(&message).unwrap();
        send_fds(&client, &message, &[writer.as_fd(), reader.as_fd()]);
        drop(writer);
        assert_eq!(device.receive().unwrap().fds.len(), 0);
        let packet = device.receive().unwrap();
        assert_eq!(packet.fds.len(), 2);
        for fd in &packet.fds {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(packet);
        expect_closed(reader);
    }

    #[test]
    fn no_descriptor_is_leaked_by_an_error() {
        // A header that is refused, one that is never finished, a payload that is never finished.
        let mut wrong = header(1, 0);
        wrong[4] = 2;
        for bytes in [wrong, header(1, 0)[..5].to_vec(), header(2, 8)] {
            let (client, device) = pair();
            let (reader, writer) = io::pipe().unwrap();
            send_fds(&client, &bytes, &[writer.as_fd()]);
            drop((writer, client));
            device.receive().unwrap_err();
            expect_closed(reader);
        }
    }

    #[test]
    fn more_descriptors_than_any_message_has() {
        for (pieces, each) in [(1, 9), (1, 60), (2, 5), (12, 1)] {
            let (client, device) = pair();
            let (reader, writer) = io::pipe().unwrap();
            let fds = vec![writer.as_fd(); each];
            for piece in header(1, 0).chunks(HEADER_BYTES / pieces) {
                send_fds(&client, piece, &fds);
            }
            drop(writer);
            let refused = device.receive();
            assert!(
                matches!(refused, Err(ReceiveError::TooManyFds)),
                "{refused:?}"
            );
            drop((client, device));
            expect_closed(reader);
        }
    }

    #[test]
    fn answers_carry_a_descriptor() {
        let (client, device) = pair();
        let (reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        device.send(&header(1, 0), Some(&writer)).unwrap();
        drop(writer);
        let received = Connection::new(client).receive().unwrap();
        assert_eq!(received.fds.len(), 1);
        drop(received);
        expect_closed(reader);
    }
}
