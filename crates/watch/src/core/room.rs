//! Whether there is room, how much more is to be had, and whether it has come: by the storage's own
//! figures alone.

use serde::Serialize;

use crate::settings::Settings;

use super::headroom;
use super::view::Disk;

/// No disk and no storage is larger; who says so lies.
const ABSURD: u64 = 1 << 60;

/// What is extended grows by a multiple of that, in bytes.
const GRAIN: u64 = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The file system on which an image lies.
    Filesystem,
    /// A block device with a format on it.
    Device,
    /// The account of a node of `standfastd`.
    Quota,
    /// A pool of thin volumes.
    ThinPool,
    /// A dataset of ZFS with a quota.
    Dataset,
}

/// What there is of something, and what of that is free, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// In all.
    pub size: u64,
    /// Free.
    pub free: u64,
}

/// What the storage behind a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measure {
    /// What was measured.
    pub kind: Kind,
    /// Its size in bytes.
    pub size: u64,
    /// What of it is free; none: nobody can say, as of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// It takes nothing more, whatever is free: the metadata of a pool is at its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exhausted: bool,
}

impl Measure {
    /// What can be written to it; none: nobody can say.
    #[must_use]
    pub fn room(self) -> Option<u64> {
        match self.exhausted {
            true => Some(0),
            false => self.free,
        }
    }

    /// By how much there is more than there was: of size, or of what is free.
    #[must_use]
    pub fn more_than(self, before: Self) -> u64 {
        let free = match (self.free, before.free) {
            (Some(after), Some(before)) => after.saturating_sub(before),
            _ => 0,
        };
        self.size.saturating_sub(before.size).max(free)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whether an error of this very incident has said that there was no space.
    pub own_event: bool,
    /// Whether storage is extended, or only looked at.
    pub extend: bool,
    /// What was there when it was given up: more than that is new space.
    pub baseline: Option<Measure>,
    /// So many bytes are needed at least.
    pub needs: u64,
    /// So many bytes are to be free by what was measured; 0: that is not known.
    pub head_room: u64,
    /// Whether it is done before it is full.
    pub early: bool,
    /// How far a format on a device has come, as far as that is known.
    pub used: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: there is room.
    Enough,
    /// Nothing: it is not at its end, and nobody has said that it was.
    NotAtEnd,
    /// Nothing can be done here; it is full.
    Full,
    /// It is extended.
    Extend {
        /// By so many bytes.
        by: u64,
        /// To that size, in bytes.
        to: u64,
    },
    /// It is as large as it may be.
    AtCap(String),
    /// It must not be extended.
    Refuse(String),
}

/// The greatest size, in bytes, that can be of use to a disk: its own, and what its format needs beside
/// that. None: what is measured belongs to others, too.
fn useful(disk: &Disk, virtual_size: u64, kind: Kind) -> Option<u64> {
    let raw = matches!(disk.driver.as_deref(), Some("raw" | "file" | "host_device"));
    match kind {
        Kind::Filesystem | Kind::ThinPool | Kind::Dataset => None,
        // Blocks are allocated whole.
        Kind::Quota => Some(virtual_size + virtual_size / 64 + (1 << 20)),
        Kind::Device if raw => Some(virtual_size),
        Kind::Device => Some(virtual_size + virtual_size / 10 + (64 << 20)),
    }
}

/// The size that the guest sees, if it can be.
fn virtual_size(disk: &Disk) -> Result<u64, String> {
    match disk.virtual_size {
        Some(bytes @ 1..) if bytes.unsigned_abs() < ABSURD => Ok(bytes.unsigned_abs()),
        Some(bytes) => Err(format!("the machine says that the disk has {bytes} bytes")),
        None => Err("the machine does not say how large the disk is".to_owned()),
    }
}

fn cap(disk: &Disk, settings: &Settings, virtual_size: u64, kind: Kind) -> u64 {
    let caps = [settings.cap, useful(disk, virtual_size, kind)];
    caps.into_iter().flatten().min().unwrap_or(ABSURD)
}

/// Whether the storage may get larger at all: whether there is anything to be done before it is full.
#[must_use]
pub fn can_grow(disk: &Disk, settings: &Settings, measure: Measure) -> bool {
    virtual_size(disk).is_ok_and(|bytes| measure.size < cap(disk, settings, bytes, measure.kind))
}

/// What is to be done for `disk`. `pool_free` is what lies below what is extended has free, if that is known: the
/// file system below an account, a volume group, a pool of ZFS.
#[must_use]
pub fn plan(
    disk: &Disk,
    settings: &Settings,
    measure: Measure,
    pool_free: Option<u64>,
    ask: Ask,
) -> Plan {
    let Measure { kind, size, .. } = measure;
    let free = measure.room();
    if ask.early {
        let free = free.or_else(|| Some(size.saturating_sub(ask.used?)));
        if free.is_none_or(|free| free >= ask.head_room) {
            return Plan::Enough;
        }
    } else {
        match free {
            Some(free) if free >= settings.enough.max(ask.needs) => {
                return if ask.own_event {
                    Plan::Enough
                } else {
                    Plan::NotAtEnd
                };
            }
            Some(_) => {}
            None if ask.baseline.is_some_and(|before| size > before.size) => return Plan::Enough,
            None if !ask.own_event => return Plan::NotAtEnd,
            None => {}
        }
    }
    if !ask.extend {
        return Plan::Full;
    }
    let virtual_size = match virtual_size(disk) {
        Ok(virtual_size) => virtual_size,
        Err(why) => return Plan::Refuse(why),
    };
    if size == 0 || size >= ABSURD {
        return Plan::Refuse(format!("the storage is said to have {size} bytes"));
    }
    let cap = cap(disk, settings, virtual_size, kind);
    if size >= cap {
        return Plan::AtCap(format!("it has {size} bytes, and may have {cap}"));
    }
    let mut by = headroom::step(settings.step, ask.head_room).min(cap - size);
    if let Some(pool_free) = pool_free {
        // All of an account may still be used; a volume has taken what it has.
        let promised = match kind {
            Kind::Quota | Kind::Dataset => free.unwrap_or(0),
            Kind::Filesystem | Kind::Device | Kind::ThinPool => 0,
        };
        let taken = promised.saturating_add(settings.reserve);
        // More than a step is taken only if it is there.
        by = by.min(pool_free.saturating_sub(taken).max(settings.step));
        let wanted = by.saturating_add(taken);
        if pool_free < wanted {
            return Plan::Refuse(format!(
                "what lies below has {pool_free} bytes free, and {wanted} are needed, the reserve \
                 of {} included",
                settings.reserve
            ));
        }
    }
    // A device has whole sectors, an account whole granules; what is rounded away would never come.
    if kind != Kind::Filesystem {
        by -= by % GRAIN;
    }
    if by == 0 {
        return Plan::AtCap(format!("it has {size} bytes, and may have {cap}"));
    }
    Plan::Extend { by, to: size + by }
}

/// Whether an extension has come. Returns by how many bytes.
///
/// # Errors
/// If less has come than was asked for. A file system keeps some of its own for itself: of one a
/// sixteenth may be missing.
pub fn verify(before: Measure, after: Measure, by: u64) -> Result<u64, String> {
    if after.kind != before.kind {
        return Err(format!(
            "it was a {:?} and is a {:?}",
            before.kind, after.kind
        ));
    }
    let grown = after.more_than(before);
    let needed = match after.kind {
        Kind::Filesystem => by - by / 16,
        Kind::Device | Kind::Quota | Kind::ThinPool | Kind::Dataset => by,
    };
    match grown {
        _ if grown >= needed => Ok(grown),
        0 => Err(format!("it has not grown, {by} bytes were asked for")),
        _ => Err(format!(
            "it has grown by {grown} bytes only, {by} were asked for"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::view::Disk;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn disk(driver: &str, virtual_size: i64) -> Disk {
        Disk {
            driver: Some(driver.to_owned()),
            virtual_size: Some(virtual_size),
            ..Disk::default()
        }
    }

    fn settings() -> Settings {
        Settings {
            step: GIB,
            enough: GIB / 2,
            ..Settings::default()
        }
    }

    const EVENT: Ask = Ask {
        own_event: true,
        extend: true,
        baseline: None,
        needs: 0,
        head_room: 0,
        early: false,
        used: None,
    };

    fn of(kind: Kind, size: u64, free: Option<u64>) -> Measure {
        Measure {
            kind,
            size,
            free,
            exhausted: false,
        }
    }

    #[test]
    fn table() {
        let (raw, qcow2) = (disk("file", 10 << 30), disk("qcow2", 10 << 30));
        let extend = |to| Plan::Extend { by: GIB, to };
        let no_event = Ask {
            own_event: false,
            ..EVENT
        };
        let look = Ask {
            extend: false,
            ..EVENT
        };
        let fs = |free| of(Kind::Filesystem, 4 * GIB, Some(free));
        let lv = |size| of(Kind::Device, size, None);
        let quota = |size, free| of(Kind::Quota, size, Some(free));
        for (disk, measure, ask, expected) in [
            (&raw, fs(0), EVENT, extend(5 * GIB)),
            (&raw, fs(GIB / 2 - 1), EVENT, extend(5 * GIB)),
            // Somebody else has made room, or another machine's extension has.
            (&raw, fs(GIB / 2), EVENT, Plan::Enough),
            (
                &raw,
                fs(GIB / 2),
                Ask {
                    needs: GIB / 2 + 1,
                    ..EVENT
                },
                extend(5 * GIB),
            ),
            (&raw, fs(GIB / 2), no_event, Plan::NotAtEnd),
            (&raw, fs(0), no_event, extend(5 * GIB)),
            (&raw, fs(0), look, Plan::Full),
            (&raw, fs(GIB), look, Plan::Enough),
            (&qcow2, lv(GIB), EVENT, extend(2 * GIB)),
            (&qcow2, lv(GIB), no_event, Plan::NotAtEnd),
            (&qcow2, lv(GIB), look, Plan::Full),
            (
                &qcow2,
                lv(2 * GIB),
                Ask {
                    baseline: Some(lv(GIB)),
                    ..look
                },
                Plan::Enough,
            ),
            (
                &qcow2,
                lv(11 * GIB),
                EVENT,
                Plan::Extend {
                    by: 64 << 20,
                    to: 11 * GIB + (64 << 20),
                },
            ),
            // A raw disk on a device has all that it can use.
            (
                &disk("host_device", 10 << 30),
                lv(9 * GIB + GIB / 2),
                EVENT,
                Plan::Extend {
                    by: GIB / 2,
                    to: 10 * GIB,
                },
            ),
            (&raw, quota(2 * GIB, 0), EVENT, extend(3 * GIB)),
        ] {
            assert_eq!(
                plan(disk, &settings(), measure, None, ask),
                expected,
                "{measure:?} {ask:?}"
            );
        }
    }

    #[test]
    fn guards() {
        let refused = |disk: &Disk, settings: &Settings, measure, pool| match plan(
            disk, settings, measure, pool, EVENT,
        ) {
            Plan::Refuse(why) | Plan::AtCap(why) => why,
            other => panic!("{other:?}"),
        };
        let full = of(Kind::Filesystem, GIB, Some(0));
        for lie in [0, -1, i64::MIN, i64::MAX, 1 << 60] {
            assert!(
                refused(&disk("file", lie), &settings(), full, None).contains(&lie.to_string())
            );
        }
        let unknown = Disk {
            virtual_size: None,
            ..disk("file", 1)
        };
        refused(&unknown, &settings(), full, None);
        let raw = disk("file", 10 << 30);
        for size in [0, ABSURD, u64::MAX] {
            refused(&raw, &settings(), of(Kind::Filesystem, size, Some(0)), None);
        }
        let capped = Settings {
            cap: Some(GIB),
            ..settings()
        };
        assert_eq!(
            refused(&raw, &capped, full, None),
            "it has 1073741824 bytes, and may have 1073741824"
        );
        refused(&raw, &settings(), of(Kind::Device, 10 * GIB, None), None);
        // The account of a disk that has all of its size.
        refused(&raw, &settings(), of(Kind::Quota, 11 * GIB, Some(0)), None);
        let reserved = Settings {
            reserve: GIB,
            ..settings()
        };
        let account = of(Kind::Quota, 2 * GIB, Some(GIB / 4));
        assert!(refused(&raw, &reserved, account, Some(2 * GIB)).contains("reserve"));
        let enough = Some(2 * GIB + GIB / 4);
        assert!(matches!(
            plan(&raw, &reserved, account, enough, EVENT),
            Plan::Extend { .. }
        ));
    }

    /// Before it is full: by what is free, and of a device by how far its format has come.
    #[test]
    fn early() {
        let ask = |head_room, used| Ask {
            own_event: false,
            head_room,
            early: true,
            used,
            ..EVENT
        };
        let qcow2 = disk("qcow2", 20 << 30);
        let lv = of(Kind::Device, 4 * GIB, None);
        let fs = |free| of(Kind::Filesystem, 4 * GIB, Some(free));
        let by = |by| Plan::Extend {
            by,
            to: 4 * GIB + by,
        };
        for (measure, ask, expected) in [
            (fs(GIB), ask(GIB, None), Plan::Enough),
            (fs(GIB - 1), ask(GIB, None), by(2 * GIB)),
            (fs(GIB / 4), ask(GIB / 3, None), by(GIB)),
            // Enough to go on is not enough not to stop.
            (fs(GIB / 2), ask(3 * GIB, None), by(6 * GIB)),
            (lv, ask(GIB, None), Plan::Enough),
            (lv, ask(GIB, Some(3 * GIB)), Plan::Enough),
            (lv, ask(GIB, Some(3 * GIB + 1)), by(2 * GIB)),
            // A write that has failed reaches beyond the end.
            (lv, ask(GIB / 8, Some(9 * GIB)), by(GIB)),
        ] {
            assert_eq!(
                plan(&qcow2, &settings(), measure, None, ask),
                expected,
                "{measure:?} {ask:?}"
            );
        }
        // More than a step only if it is there.
        let account = of(Kind::Quota, 2 * GIB, Some(GIB / 4));
        let pool = |free| plan(&qcow2, &settings(), account, Some(free), ask(GIB, None));
        let to = |by| Plan::Extend {
            by,
            to: 2 * GIB + by,
        };
        assert_eq!(pool(4 * GIB), to(2 * GIB));
        assert_eq!(pool(GIB / 4 + GIB + 4096 + 5), to(GIB + 4096));
        assert!(matches!(pool(GIB), Plan::Refuse(_)));
        // A device that a program was asked to make larger by a part of a sector is never as large as that.
        let odd = |virtual_size, head_room| {
            let disk = disk("qcow2", virtual_size);
            plan(&disk, &settings(), lv, None, ask(head_room, Some(4 * GIB)))
        };
        for plan in [
            odd(20 << 30, 57_653_282),
            odd(20 << 30, 3 * GIB + 1),
            odd((4 << 30) + 512, GIB),
        ] {
            assert!(
                matches!(plan, Plan::Extend { by, .. } if by > 0 && by % 4096 == 0),
                "{plan:?}"
            );
        }
        assert!(can_grow(&qcow2, &settings(), lv));
        assert!(!can_grow(&disk("raw", 4 << 30), &settings(), lv));
        assert!(!can_grow(&disk("qcow2", -1), &settings(), lv));
    }

    #[test]
    fn growth_is_seen_by_size_or_by_what_is_free() {
        let fs = |size, free| of(Kind::Filesystem, size, Some(free));
        assert_eq!(verify(fs(100, 0), fs(200, 90), 100), Ok(100));
        // Somebody writes meanwhile; somebody has removed old files.
        assert_eq!(verify(fs(100, 0), fs(200, 0), 100), Ok(100));
        assert_eq!(verify(fs(100, 0), fs(100, 100), 100), Ok(100));
        assert_eq!(verify(fs(1000, 0), fs(1940, 0), 1000), Ok(940));
        let lv = |size| of(Kind::Device, size, None);
        assert_eq!(verify(lv(10), lv(20), 10), Ok(10));
        assert!(
            verify(lv(10), lv(19), 10)
                .unwrap_err()
                .contains("by 9 bytes only")
        );
        for after in [lv(10), lv(5)] {
            assert!(
                verify(lv(10), after, 10)
                    .unwrap_err()
                    .contains("has not grown")
            );
        }
        assert!(verify(lv(10), fs(100, 50), 10).is_err());
    }

    fn measures() -> impl Strategy<Value = Measure> {
        let kinds = prop_oneof![
            Just(Kind::Filesystem),
            Just(Kind::Device),
            Just(Kind::Quota),
            Just(Kind::ThinPool),
            Just(Kind::Dataset)
        ];
        (kinds, any::<u64>(), any::<Option<u64>>()).prop_map(|(kind, size, free)| Measure {
            kind,
            size,
            free,
            exhausted: false,
        })
    }

    proptest! {
        /// Whatever machine and storage say: never beyond the cap, never more than a step, never more
        /// than the disk can use.
        #[test]
        fn never_beyond(
            measure in measures(), virtual_size in any::<Option<i64>>(), cap in any::<Option<u64>>(),
            step in 1..u64::MAX, reserve in any::<u64>(), pool in any::<Option<u64>>(),
            own_event in any::<bool>(), early in any::<bool>(), head_room in 0..1_u64 << 50,
            used in any::<Option<u64>>(),
        ) {
            let disk = Disk { virtual_size, ..disk("qcow2", 0) };
            let settings = Settings { step, enough: step / 2, cap, reserve, ..Settings::default() };
            let ask = Ask { own_event, early, head_room, used, ..EVENT };
            if let Plan::Extend { by, to } = plan(&disk, &settings, measure, pool, ask) {
                prop_assert!(by > 0 && by <= step.max(2 * head_room + (1 << 20)));
                prop_assert!(to == measure.size + by);
                prop_assert!(cap.is_none_or(|cap| to <= cap));
                let useful_size = u64::try_from(virtual_size.unwrap()).unwrap();
                if matches!(measure.kind, Kind::Device | Kind::Quota) {
                    prop_assert!(to <= useful_size + useful_size / 10 + (64 << 20));
                }
                if let Some(pool) = pool {
                    prop_assert!(pool >= by && pool - by >= reserve);
                }
                let known = measure.free.is_some() || (early && used.is_some());
                prop_assert!(known || (own_event && !early));
                if let (true, Some(free)) = (early, measure.free) {
                    prop_assert!(free < head_room);
                }
            }
        }

        #[test]
        fn less_is_never_success(before in measures(), after in measures(), by in 1..u64::MAX) {
            if let Ok(grown) = verify(before, after, by) {
                prop_assert!(grown >= by - by / 16);
                prop_assert!(after.size > before.size || after.free > before.free);
            }
        }
    }
}
