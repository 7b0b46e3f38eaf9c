//! Judges a run by its log: cuts it wherever it is told, and compares what is found with the model.

use std::fmt;

use testkit::Rng;

use crate::disk::{Disk, Survivors};
use crate::event::{Event, Guest};
use crate::format::Format;
use crate::look;
use crate::model::{Model, Wrong};
use crate::player::Segment;

/// Where a run is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// At one of so many events; 1: at each; 0: nowhere.
    pub one_in: u64,
    /// So many subsets at each of them: none, all, and others.
    pub subsets: u64,
    /// Of what is by chance.
    pub seed: u64,
}

/// What is wrong.
#[derive(Clone, Debug)]
pub struct Broken {
    /// What.
    pub what: String,
    /// When: the number of an event.
    pub time: usize,
    /// What has survived the cut, if there was one.
    pub survivors: Option<Survivors>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at event {}", self.time)?;
        if let Some(survivors) = &self.survivors {
            write!(f, ", cut, of which survives: {survivors:?}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Whether an image is closed, stopped or cut decides what is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Cut,
    Stopped,
    Closed,
}

/// Judges what has happened between two cuts. Returns how often it was cut.
///
/// # Errors
/// What is wrong, first of all.
pub fn judge(
    format: &dyn Format,
    segment: &Segment,
    forgets: bool,
    cuts: Cuts,
) -> Result<u64, Broken> {
    let mut rng = Rng::new(cuts.seed);
    let mut disk = Disk::new(segment.image.clone(), forgets);
    let mut model = Model::new(&segment.content, format.cluster());
    // What a cut has left stays until somebody repairs it.
    let mut leaky = format
        .check(&segment.image)
        .iter()
        .any(|finding| finding.is_leak);
    let mut count = 0;
    for (time, event) in segment.log.iter().enumerate() {
        let broken = |survivors| {
            move |what| Broken {
                what,
                time,
                survivors,
            }
        };
        disk.apply(time, event);
        if let Event::Guest(guest) = event {
            leaky |= matches!(guest, Guest::Killed);
            let read = model
                .apply(time, guest)
                .map_err(|wrong| told(&wrong, "a read has found"));
            read.map_err(broken(None))?;
            if let Guest::Stopped { image, closed } = guest {
                let now = if *closed { Now::Closed } else { Now::Stopped };
                let right = verify(format, image.to_vec(), &model, time, now, leaky);
                right.map_err(broken(None))?;
            }
        }
        if cuts.one_in == 0 || rng.below(cuts.one_in) > 0 {
            continue;
        }
        for nth in 0..cuts.subsets {
            let survivors = Survivors::choose(nth, disk.unflushed(), &mut rng);
            count += 1;
            let right = verify(format, disk.cut(survivors), &model, time, Now::Cut, leaky);
            right.map_err(broken(Some(survivors)))?;
            if disk.unflushed() == 0 {
                break;
            }
        }
    }
    if let Some((survivors, image)) = &segment.cut {
        let time = segment.log.len();
        let right = verify(format, image.clone(), &model, time, Now::Cut, leaky);
        right.map_err(|what| Broken {
            what,
            time,
            survivors: Some(*survivors),
        })?;
        count += 1;
    }
    Ok(count)
}

fn told(wrong: &Wrong, how: &str) -> String {
    let Wrong {
        sector,
        expected,
        found,
    } = wrong;
    format!("{how} at sector {sector}: {found}; may be there: {expected}")
}

fn verify(
    format: &dyn Format,
    image: Vec<u8>,
    model: &Model,
    time: usize,
    now: Now,
    leaky: bool,
) -> Result<(), String> {
    let right = compare(format, image.clone(), model, time, now, leaky);
    right.map_err(|what| match format.second_opinion(&image) {
        Some(other) => format!("{what} (somebody else says: {other})"),
        None => what,
    })
}

fn compare(
    format: &dyn Format,
    image: Vec<u8>,
    model: &Model,
    time: usize,
    now: Now,
    leaky: bool,
) -> Result<(), String> {
    let leaks = leaky
        || match now {
            Now::Cut => format.leaks_after_cut(),
            Now::Stopped => format.leaks_after_stop(),
            Now::Closed => false,
        };
    check(format, &image, leaks, "the image on the disk")?;
    let (content, after) = look::content(format, image)?;
    let right = match now {
        Now::Cut => model.after_cut(&content),
        Now::Stopped | Now::Closed => model.stopped(time, &content),
    };
    right.map_err(|wrong| told(&wrong, "the image has"))?;
    check(
        format,
        &after,
        now == Now::Cut || leaks,
        "the image, opened and closed",
    )
}

fn check(format: &dyn Format, image: &[u8], leaks: bool, what: &str) -> Result<(), String> {
    let findings = format.check(image).into_iter();
    let bad: Vec<_> = findings
        .filter(|finding| !finding.is_leak || !leaks)
        .map(|finding| finding.to_string())
        .collect();
    match bad.is_empty() {
        true => Ok(()),
        false => Err(format!("{what}: {}", bad.join("; "))),
    }
}
