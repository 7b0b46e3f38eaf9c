//! The options of a qcow2 node, from the wire to the driver.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::Node;
use qapi::options::{
    self as wire, BlockdevBase, Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode, Qcow2OverlapChecks,
};
use qcow2::{Backing, CacheSizes, Discards, Metadata, Names, OverlapCheck, Qcow2Options};

use crate::node_base::{node_info, not_negative, unmaps};
use crate::setup_error::SetupError;

/// The nodes below it.
#[derive(Debug)]
pub struct Below {
    /// The image.
    pub file: Arc<Node>,
    /// The external data file, if there is one.
    pub data_file: Option<Arc<Node>>,
    /// The backing node, if there is one.
    pub backing: Option<Arc<Node>>,
    /// What the image has said of them, as far as they are those.
    pub named: Names,
    /// Where it records what is acknowledged and not flushed.
    pub redo_dir: Option<Arc<Path>>,
}

/// What the driver is to be opened with.
///
/// # Errors
/// In QEMU's words: values that cannot be.
pub fn options(
    name: &str,
    below: Below,
    base: &BlockdevBase,
    qcow2: &wire::Qcow2Options,
) -> Result<Qcow2Options, SetupError> {
    let defaults = Qcow2Options::new(name, below.file);
    Ok(Qcow2Options {
        backing: match (below.backing, &qcow2.backing) {
            (Some(node), _) => Backing::Node(node),
            (None, Some(_)) => Backing::None,
            // It names none, as far as anybody knows.
            (None, None) => Backing::Unsaid,
        },
        named_backing: below.named.backing,
        data_file: below.data_file,
        named_data: below.named.data_file,
        redo_dir: below.redo_dir,
        caches: CacheSizes {
            all: not_negative("cache-size", qcow2.cache_size)?,
            l2: not_negative("l2-cache-size", qcow2.l2_cache_size)?,
            refcounts: not_negative("refcount-cache-size", qcow2.refcount_cache_size)?,
            l2_entry: not_negative("l2-cache-entry-size", qcow2.l2_cache_entry_size)?,
        },
        cache_clean_interval: match qcow2.cache_clean_interval {
            None => defaults.cache_clean_interval,
            Some(seconds) => clean_interval(seconds)?,
        },
        lazy_refcounts: qcow2.lazy_refcounts,
        discards: Discards {
            request: qcow2.pass_discard_request.unwrap_or_else(|| unmaps(base)),
            snapshot: (qcow2.pass_discard_snapshot).unwrap_or(defaults.discards.snapshot),
            other: qcow2.pass_discard_other.unwrap_or(defaults.discards.other),
        },
        discard: unmaps(base),
        discard_no_unref: qcow2.discard_no_unref.unwrap_or(false),
        overlap: qcow2
            .overlap_check
            .as_ref()
            .map_or(defaults.overlap, overlap),
        auto_read_only: base.auto_read_only == Some(true),
        info: node_info(base),
        ..defaults
    })
}

/// A number of seconds. As with QEMU, whose text is the same for a negative one.
fn clean_interval(seconds: i64) -> Result<Duration, SetupError> {
    let seconds = u32::try_from(seconds);
    let seconds = seconds.map_err(|_| SetupError::new("Cache clean interval too big"))?;
    Ok(Duration::from_secs(u64::from(seconds)))
}

fn overlap(checks: &Qcow2OverlapChecks) -> OverlapCheck {
    match checks {
        Qcow2OverlapChecks::Mode(mode) => template(*mode),
        Qcow2OverlapChecks::Flags(flags) => {
            let mode = flags.template.unwrap_or(Qcow2OverlapCheckMode::Cached);
            Metadata::ALL.into_iter().fold(template(mode), |all, kind| {
                flag(flags, kind).map_or(all, |compared| all.with(kind, compared))
            })
        }
    }
}

const fn template(mode: Qcow2OverlapCheckMode) -> OverlapCheck {
    match mode {
        Qcow2OverlapCheckMode::None => OverlapCheck::NONE,
        Qcow2OverlapCheckMode::Constant => OverlapCheck::CONSTANT,
        Qcow2OverlapCheckMode::Cached => OverlapCheck::CACHED,
        Qcow2OverlapCheckMode::All => OverlapCheck::ALL,
    }
}

const fn flag(flags: &Qcow2OverlapCheckFlags, kind: Metadata) -> Option<bool> {
    match kind {
        Metadata::MainHeader => flags.main_header,
        Metadata::ActiveL1 => flags.active_l1,
        Metadata::ActiveL2 => flags.active_l2,
        Metadata::RefcountBlock => flags.refcount_block,
        Metadata::RefcountTable => flags.refcount_table,
        Metadata::SnapshotTable => flags.snapshot_table,
        Metadata::InactiveL1 => flags.inactive_l1,
        Metadata::InactiveL2 => flags.inactive_l2,
        Metadata::BitmapDirectory => flags.bitmap_directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drivers::{NullCo, NullOptions};
    use qapi::options::{BlockdevDriverOptions, BlockdevOptions};

    fn made(text: &str) -> Result<Qcow2Options, String> {
        let parsed = BlockdevOptions::parse(&format!("qcow2,node-name=a,file=b{text}")).unwrap();
        let BlockdevDriverOptions::Qcow2(qcow2) = parsed.variant else {
            panic!("{text}");
        };
        let file = Node::new("b", Box::new(NullCo::new(NullOptions::default())));
        let below = Below {
            file,
            data_file: None,
            backing: None,
            named: Names::default(),
            redo_dir: None,
        };
        options("a", below, &parsed.base, &qcow2).map_err(|error| error.desc)
    }

    #[test]
    fn what_is_not_said_is_as_with_qemu() {
        let plain = made("").unwrap();
        assert_eq!(plain.cache_clean_interval, Duration::from_secs(600));
        assert_eq!(plain.lazy_refcounts, None);
        assert_eq!(plain.overlap, OverlapCheck::CACHED);
        let discards = |request, snapshot, other| Discards {
            request,
            snapshot,
            other,
        };
        assert_eq!(plain.discards, discards(false, true, false));
        let unmap = made(",discard=unmap").unwrap();
        assert_eq!(unmap.discards, discards(true, true, false));
        let said = ",discard=unmap,pass-discard-request=off,pass-discard-snapshot=off,\
                    pass-discard-other=on,lazy-refcounts=off,discard-no-unref=on";
        let said = made(said).unwrap();
        assert_eq!(said.discards, discards(false, false, true));
        assert_eq!(said.lazy_refcounts, Some(false));
        assert!(said.discard_no_unref && !plain.discard_no_unref);
    }

    #[test]
    fn overlap_checks_are_a_template_and_what_differs_from_it() {
        let of = |text: &str| made(text).unwrap().overlap;
        assert_eq!(of(",overlap-check=none"), OverlapCheck::NONE);
        assert_eq!(of(",overlap-check=constant"), OverlapCheck::CONSTANT);
        assert_eq!(of(",overlap-check.template=all"), OverlapCheck::ALL);
        let without = OverlapCheck::CACHED.with(Metadata::ActiveL2, false);
        assert_eq!(of(",overlap-check.active-l2=off"), without);
        for kind in Metadata::ALL {
            let text = format!(
                ",overlap-check.template=none,overlap-check.{}=on",
                kind.name()
            );
            assert_eq!(of(&text), OverlapCheck::NONE.with(kind, true), "{text}");
        }
    }

    #[test]
    fn an_interval_is_a_number_of_seconds_that_fits() {
        let of = |seconds: i64| {
            let made = made(&format!(",cache-clean-interval={seconds}"));
            made.map(|options| options.cache_clean_interval.as_secs())
        };
        assert_eq!(of(0), Ok(0));
        assert_eq!(of(i64::from(u32::MAX)), Ok(u64::from(u32::MAX)));
        for wrong in [-1, i64::from(u32::MAX) + 1] {
            assert_eq!(of(wrong), Err("Cache clean interval too big".to_owned()));
        }
    }
}
