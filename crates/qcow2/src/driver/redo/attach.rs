//! How an image that comes into use to be written gets its log: that of the daemon before, whose changes are made again, or a new one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::Result;
use block::state_file::boot_id;

use super::log::{Log, file_name_of};
use super::recorder::{Redo, tag_of};
use super::replay::{Replayed, replay};
use super::ring::Head;
use crate::driver::base::Base;
use crate::driver::state::State;

/// Gives `state`, which has just been read of an image that is to be written, its log, and makes again what is in it. Waits for the storage.
/// `is_whole`: nobody has had to repair the image, so that what it says of its log is true.
///
/// # Errors
/// The storage's: what is in the log stays there.
pub fn attach(base: &Arc<Base>, state: &Arc<State>, is_whole: bool) -> Result<()> {
    let Some(dir) = &base.redo_dir else {
        if is_whole {
            tell_of_record(base, state, "this daemon has no --state-dir");
        }
        return Ok(());
    };
    // There are no feature bits.
    if state.rules.version < 3 {
        return Ok(());
    }
    if state.writer.tables().redo.log().is_some() {
        return Ok(());
    }
    let name = &base.name;
    let log = find(base, state, dir, is_whole).and_then(|(found, head)| {
        if found.as_ref().is_some_and(Log::is_doubtful) {
            base.failed_flushes.fetch_add(1, Ordering::SeqCst);
        }
        let log = match found {
            Some(log) if log.is_empty() => log,
            Some(log) => match replay(base, state, Box::new(log))? {
                Replayed::Done => return Ok(None),
                Replayed::Refused => Log::create(dir, &head).map_err(Unmade)?,
            },
            None => Log::create(dir, &head).map_err(Unmade)?,
        };
        Ok(Some(log))
    });
    match log {
        Ok(Some(log)) => state.writer.tables().redo = Redo::Closed(Box::new(log)),
        Ok(None) => {}
        Err(Failed::Storage(error)) => return Err(error),
        Err(Failed::Log(error)) => tracing::warn!(
            "node '{name}': no log can be kept in '{}' of what is acknowledged and not flushed: {error}: if this daemon is \
             killed under a guest that lives on, that is lost",
            dir.display()
        ),
    }
    Ok(())
}

/// Warns that `state`, which is only read, or is about to be written by somebody `who` has no such record, lacks what a daemon that was
/// killed has recorded: it is as old as the last flush then.
pub fn tell_of_record(base: &Base, state: &State, who: &str) {
    let tag = tag_of(&state.header.features);
    if tag == 0 {
        return;
    }
    tracing::warn!(
        "node '{}': '{}' was left by a daemon that did not end in order, and {who}: what that one had acknowledged and not flushed is \
         in '{}' of its --state-dir alone, and lost when the image is written without. Unless the machine has been booted since, \
         start with that directory first",
        base.name,
        state.image,
        file_name_of(tag)
    );
}

/// What `former` has of a log is that of `state`, too, if both are of one image.
pub fn detach(former: &State, state: &State) {
    let log = std::mem::take(&mut former.writer.tables().redo).into_log();
    // All of it is on disk, or it would not be read anew.
    if let Some(log) = log.filter(|log| log.is_empty() && log.head().image == state.image) {
        state.writer.tables().redo = Redo::Closed(log);
    }
}

enum Failed {
    /// The image cannot be used.
    Storage(block::BlockError),
    /// It can be used without.
    Log(std::io::Error),
}

/// There is no log.
struct Unmade(std::io::Error);

impl From<Unmade> for Failed {
    fn from(Unmade(error): Unmade) -> Self {
        Self::Log(error)
    }
}

impl From<block::BlockError> for Failed {
    fn from(error: block::BlockError) -> Self {
        Self::Storage(error)
    }
}

/// What there is of the image, and whose a new one would be.
fn find(
    base: &Base,
    state: &State,
    dir: &Path,
    is_whole: bool,
) -> std::result::Result<(Option<Log>, Head), Failed> {
    let geometry = &state.rules.geometry;
    let head = Head {
        tag: match is_whole {
            true => tag_of(&state.header.features),
            false => 0,
        },
        cluster_bits: geometry.cluster_bits(),
        extended: geometry.extended_l2(),
        boot_id: boot_id().map_err(Failed::Log)?,
        image: state.image.clone(),
    };
    let found = Log::find(dir, &head).map_err(Failed::Log)?;
    if found.lost > 0 {
        tracing::warn!(
            "node '{}': {} changes of '{}' that a former daemon had acknowledged, and not written, are lost: somebody else has \
             written the image since",
            base.name,
            found.lost,
            state.image
        );
    }
    if found.of_another > 0 {
        tracing::warn!(
            "node '{}': {} changes of '{}' that a former daemon had acknowledged, and not written, are not made again: the image is \
             another file by now, or its device has been attached anew",
            base.name,
            found.of_another,
            state.image
        );
    }
    if head.tag != 0 && found.log.is_none() && found.lost + found.of_another == 0 {
        let who = format!("'{}' has no record of it", dir.display());
        tell_of_record(base, state, &who);
    }
    Ok((found.log, head))
}
