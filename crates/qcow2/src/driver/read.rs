//! Reading.

use std::sync::Arc;

use arc_swap::ArcSwap;
use block::driver::park;
use block::{Io, IoFuture, OwnedBuffer, Result};
use futures_util::future::join_all;

use super::base::Base;
use super::decompress::decompress;
use super::map::{Kind, Mapped};
use super::slices;
use super::state::{Lookup, State};
use crate::format::{CompressedCluster, GuestOffset};

/// How many runs of one request are read at once.
const RUNS_MAX: usize = 64;

/// Starts a read. What is stored in one piece, and known, is the child's request: nothing waits, locks or allocates.
pub fn submit<'a>(base: &'a Base, state: &ArcSwap<State>, io: Io<'a>) -> IoFuture<'a> {
    if io.bytes == 0 {
        return IoFuture::ready(Ok(()));
    }
    let now = state.load();
    let guest = GuestOffset(io.offset);
    // Before anything is looked up. Of an image that is not written nothing is given to others.
    let token = (!base.info.read_only).then(|| now.writer.epochs.enter());
    if let Some(host) = now.stored(guest, io.bytes, false) {
        let below = Io {
            offset: host.0,
            ..io
        };
        return base
            .file
            .submit_keeping(below, token.map(|token| token as _));
    }
    match now.lookup(base, guest, io.bytes) {
        Ok(Lookup::Known(Mapped { kind, bytes })) if bytes == io.bytes => match kind {
            Kind::Data(host) => {
                if let Err(error) = now.check_inside(base, guest, host, bytes) {
                    return IoFuture::ready(Err(error));
                }
                let below = Io {
                    offset: host.0,
                    ..io
                };
                return base
                    .data()
                    .submit_keeping(below, token.map(|token| token as _));
            }
            Kind::Unallocated => match base.behind(io.offset, io.bytes) {
                // It does not change: no matter what becomes of the image meanwhile.
                Some((backing, there)) if there == io.bytes => return backing.submit(io),
                Some(_) => {}
                None => {
                    io.buffers.fill_zero();
                    return IoFuture::ready(Ok(()));
                }
            },
            Kind::Zero(_) => {
                io.buffers.fill_zero();
                return IoFuture::ready(Ok(()));
            }
            Kind::Compressed { .. } => {}
        },
        Ok(_) => {}
        Err(error) => return IoFuture::ready(Err(error)),
    }
    let state = Arc::clone(&now);
    IoFuture::new(async move {
        let _token = token;
        Box::pin(park::never(in_runs(base, &state, io))).await
    })
}

/// Reads what consists of several runs, or has to be looked up first.
///
/// # Errors
/// The storage's; EIO: the image says what cannot be.
pub async fn in_runs(base: &Base, state: &State, io: Io<'_>) -> Result<()> {
    let mut done = 0;
    while done < io.bytes {
        let mut runs = Vec::new();
        while done < io.bytes && runs.len() < RUNS_MAX {
            let rest = io.slice(done..io.bytes);
            let mapped = slices::map(base, state, GuestOffset(rest.offset), rest.bytes).await?;
            runs.push(one_run(
                base,
                state,
                rest.slice(0..mapped.bytes),
                mapped.kind,
            ));
            done += mapped.bytes;
        }
        // All are waited for: what is under way when another one fails must end, and waiting in a drop would stop
        // the iothread.
        join_all(runs).await.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

async fn one_run(base: &Base, state: &State, io: Io<'_>, kind: Kind) -> Result<()> {
    let guest = GuestOffset(io.offset);
    match kind {
        Kind::Unallocated => behind(base, io).await,
        Kind::Zero(_) => {
            io.buffers.fill_zero();
            Ok(())
        }
        Kind::Data(host) => {
            state.check_inside(base, guest, host, io.bytes)?;
            let below = Io {
                offset: host.0,
                ..io
            };
            base.data().submit(below).await
        }
        Kind::Compressed { data, within } => compressed(base, state, io, data, within).await,
    }
}

/// What shows where the image has nothing: what is behind it, and zeroes behind the end of that.
async fn behind(base: &Base, io: Io<'_>) -> Result<()> {
    let there = match base.behind(io.offset, io.bytes) {
        None => 0,
        Some((backing, there)) => {
            backing.submit(io.slice(0..there)).await?;
            there
        }
    };
    io.slice(there..io.bytes).buffers.fill_zero();
    Ok(())
}

async fn compressed(
    base: &Base,
    state: &State,
    io: Io<'_>,
    data: CompressedCluster,
    within: u64,
) -> Result<()> {
    let guest = GuestOffset(io.offset);
    state.check_inside(base, guest, data.offset, data.bytes)?;
    let index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    // At most two clusters.
    let mut packed = OwnedBuffer::new(index(data.bytes))?;
    let below = Io::read(data.offset.0, packed.lend()).on_behalf_of(&io);
    base.file.submit(below).await?;
    let mut cluster = OwnedBuffer::new(state.rules.geometry.cluster_bytes())?;
    if let Err(error) = decompress(state.compression, &packed, &mut cluster) {
        let place = state.rules.geometry.place(guest);
        let what = format!(
            "compressed cluster at {} (L2 entry {} of L1 entry {}): {error}",
            data.offset, place.l2, place.l1
        );
        return Err(base.corrupt(guest, io.bytes, what));
    }
    let part = cluster.get(index(within)..).unwrap_or_default();
    io.buffers.copy_from(part);
    Ok(())
}
