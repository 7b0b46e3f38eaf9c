//! A look at an image as it is on the disk: it is opened anew, read as a whole, and closed.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{Attachment, Io, Node, OwnedBuffer};

use crate::format::Format;
use crate::memory::allow_all;
use crate::sector::{SECTOR, Value, bytes_of, index, value_of};
use crate::storage::Storage;

/// Sectors that are read at a time.
const PIECE: u64 = 128;
/// So often a future is polled of which all operations end at once.
const POLLS: usize = 1000;

/// What is in each sector.
pub type Content = Vec<Result<Value, String>>;

/// Runs what needs nothing but operations that end at once.
///
/// # Errors
/// It waits for something else.
pub fn now<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    for _ in 0..POLLS {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
    }
    Err("it hangs although the storage answers at once".to_owned())
}

/// Opens the image on `storage`, with all permissions below.
///
/// # Errors
/// Why it cannot be opened.
pub fn open(format: &dyn Format, storage: &Storage) -> Result<Arc<Node>, String> {
    let node = format.open(storage.node())?;
    allow_all(&node);
    Ok(node)
}

/// The same, to be written by a daemon that may be killed.
///
/// # Errors
/// Why it cannot be opened.
pub fn serve(format: &dyn Format, storage: &Storage) -> Result<Arc<Node>, String> {
    let node = format.serve(storage.node())?;
    allow_all(&node);
    Ok(node)
}

/// What the drivers of `node`, and of what is below it, have not written yet is written, from the top.
pub async fn write_back(node: &Arc<Node>) {
    for node in node.subtree() {
        node.write_back().await;
    }
}

/// What is left to be written of it, in words.
pub fn left_unwritten(node: &Arc<Node>) -> Option<String> {
    let nodes = node.subtree();
    let left = nodes.iter().find_map(|node| node.left_unwritten());
    left.map(|left| left.to_string())
}

/// What the image has; and what is on the disk when it has been opened and closed.
///
/// # Errors
/// It cannot be opened or read, in words.
pub fn content(format: &dyn Format, image: Vec<u8>) -> Result<(Content, Vec<u8>), String> {
    let storage = Storage::to_look_at(image);
    let node = open(format, &storage).map_err(|text| format!("it cannot be opened: {text}"))?;
    let attachment = Attachment::new(&node);
    let length = node.driver().length() / SECTOR as u64;
    let mut content = Vec::new();
    let mut at = 0;
    while at < length {
        let sectors = PIECE.min(length - at);
        let mut buffer = OwnedBuffer::new(index(bytes_of(sectors))).map_err(|e| e.to_string())?;
        buffer.fill(0xa5);
        let read = now(node.submit(Io::read(bytes_of(at), buffer.lend())))?;
        read.map_err(|error| format!("sectors {at}+{sectors} cannot be read: {error}"))?;
        let found = (at..).zip(buffer.chunks(SECTOR));
        content.extend(found.map(|(sector, bytes)| value_of(bytes, sector)));
        at += sectors;
    }
    close(format, node, attachment)?;
    Ok((content, storage.image()))
}

fn close(format: &dyn Format, node: Arc<Node>, attachment: Attachment) -> Result<(), String> {
    now(write_back(&node))?;
    format.close(&node)?;
    if let Some(left) = left_unwritten(&node) {
        return Err(format!("closed, but {left}"));
    }
    drop(attachment);
    drop(node);
    Ok(())
}
