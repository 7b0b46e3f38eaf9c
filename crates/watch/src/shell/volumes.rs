//! Volumes whose size the tools of LVM and ZFS tell and change.

use std::path::Path;
use std::time::Duration;

use crate::core::lvm::{self, Volume};
use crate::core::room::{Kind, Measure, Spare};
use crate::core::zfs::{self, Dataset};
use crate::settings::{Lvm, Program, Zfs, ZfsProperty};

use super::measure::Measurer;
use super::program;

/// What storage a disk lies on, and what is known of it.
#[derive(Debug)]
pub struct Place {
    /// A key that all disks on it have, and all whose extension must wait for each other's.
    pub key: String,
    /// What there is.
    pub measure: Measure,
    /// What lies below has free, if that is known.
    pub below: Option<u64>,
    /// What the tools change, if they do.
    pub volume: Option<Extensible>,
    /// The node whose account it is, if it is one.
    pub account: Option<String>,
}

/// What the tools change.
#[derive(Debug)]
pub enum Extensible {
    /// A logical volume, or a pool of thin ones.
    Lvm(Lvm, Volume),
    /// A dataset.
    Zfs(Zfs, Dataset),
}

async fn tool(
    directory: &Path,
    name: &str,
    arguments: Vec<String>,
    time_limit: Duration,
) -> Result<program::Ended, String> {
    let path = directory.join(name).display().to_string();
    let program = Program {
        argv: std::iter::once(path).chain(arguments).collect(),
        time_limit,
    };
    let environment = [
        ("LC_ALL", "C".to_owned()),
        // It has descriptors that lvm does not know, and complains of.
        ("LVM_SUPPRESS_FD_WARNINGS", "1".to_owned()),
    ];
    program::run(&program, Vec::new(), &environment).await
}

/// The same, of a program whose answer counts.
async fn ask(
    directory: &Path,
    name: &str,
    arguments: Vec<String>,
    time_limit: Duration,
) -> Result<Vec<u8>, String> {
    let ended = tool(directory, name, arguments, time_limit).await?;
    match ended.status.success() {
        true => Ok(ended.output),
        false => Err(format!("{name}: {}", ended.words())),
    }
}

/// The logical volume at `path`, or the pool in which it is.
///
/// # Errors
/// Why it cannot be said.
pub async fn of_lvm(measurer: &Measurer, lvm: &Lvm, path: &Path) -> Result<Place, String> {
    let report = async |volume: &str| {
        let output = ask(&lvm.tools, "lvs", lvm::report(volume), lvm.time_limit).await?;
        Volume::parse(&output)
    };
    let mut volume = report(&path.display().to_string()).await?;
    let measure = match &volume.pool {
        // Its own size is the device's, which the machine sees.
        None => measurer.measure(path).await?.1,
        Some(pool) => {
            volume = report(&format!("{}/{pool}", volume.group)).await?;
            let usage = volume.usage.ok_or_else(|| {
                format!(
                    "lvs does not say how full the pool {} is",
                    volume.full_name()
                )
            })?;
            Measure {
                kind: Kind::ThinPool,
                size: volume.size,
                free: Some(usage.free),
                // A pool whose metadata is full takes no more data.
                exhausted: volume.metadata_step().is_some(),
            }
        }
    };
    Ok(Place {
        key: format!("volume group {}", volume.group),
        measure,
        below: Some(volume.group_free),
        volume: Some(Extensible::Lvm(lvm.clone(), volume)),
        account: None,
    })
}

/// The dataset on which `path` lies.
///
/// # Errors
/// Why it cannot be said.
pub async fn of_zfs(
    measurer: &Measurer,
    zfs: &Zfs,
    path: Result<&Path, String>,
) -> Result<Place, String> {
    let target = match (&zfs.dataset, &path) {
        (Some(dataset), _) => dataset.clone(),
        (None, Ok(path)) => {
            let path = path.display().to_string();
            zfs::of_device(&path).map_or_else(|| path.clone(), str::to_owned)
        }
        (None, Err(why)) => return Err(why.clone()),
    };
    let answer = ask(&zfs.tools, "zfs", zfs::report(&target), zfs.time_limit).await?;
    let dataset = Dataset::parse(&String::from_utf8_lossy(&answer))?;
    let pool = zfs::pool_report(&dataset.name);
    let pool = ask(&zfs.tools, "zfs", pool, zfs.time_limit).await?;
    let below = String::from_utf8_lossy(&pool).trim().parse().ok();
    let (size, free) = dataset.limit(zfs.property)?;
    let measure = match zfs.property {
        // What the machine sees is the device.
        ZfsProperty::Volsize => measurer.measure(path?).await?.1,
        ZfsProperty::Refquota | ZfsProperty::Quota => Measure {
            kind: Kind::Dataset,
            size,
            free,
            exhausted: false,
        },
    };
    Ok(Place {
        key: format!("dataset {}", dataset.name),
        measure,
        below,
        volume: Some(Extensible::Zfs(zfs.clone(), dataset)),
        account: None,
    })
}

impl Extensible {
    /// Whether it may be changed at all.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Lvm(lvm, volume) => volume.may_be_changed(lvm.sole_writer),
            Self::Zfs(..) => Ok(()),
        }
    }

    /// So much of `by` as it can be extended by; none: nothing.
    pub fn whole(&self, by: u64) -> Option<u64> {
        match self {
            Self::Lvm(_, volume) => volume.whole_extents(by),
            Self::Zfs(zfs, dataset) => dataset.whole_blocks(zfs.property, by),
        }
    }

    /// Makes it so much larger, from `size`. That the tool says so is no proof.
    ///
    /// # Errors
    /// It could not be run to its end.
    pub async fn extend(&self, size: u64, by: u64) -> Result<String, String> {
        let ended = match self {
            Self::Lvm(lvm, volume) => {
                let arguments = volume.extend(by, false);
                tool(&lvm.tools, "lvextend", arguments, lvm.time_limit).await?
            }
            Self::Zfs(zfs, dataset) => {
                let arguments = dataset.raise(zfs.property, size.saturating_add(by));
                tool(&zfs.tools, "zfs", arguments, zfs.time_limit).await?
            }
        };
        Ok(ended.words())
    }

    /// The metadata of a pool, and by how much that has to be extended first, if it has.
    pub fn metadata(&self) -> Option<(Spare, u64)> {
        match self {
            Self::Lvm(_, volume) => Some((volume.usage?.metadata, volume.metadata_step()?)),
            Self::Zfs(..) => None,
        }
    }

    /// What metadata it has.
    pub fn metadata_size(&self) -> u64 {
        match self {
            Self::Lvm(_, volume) => volume.usage.map_or(0, |usage| usage.metadata.size),
            Self::Zfs(..) => 0,
        }
    }

    /// Extends the metadata.
    ///
    /// # Errors
    /// It could not be run to its end.
    pub async fn extend_metadata(&self, by: u64) -> Result<String, String> {
        match self {
            Self::Lvm(lvm, volume) => {
                let arguments = volume.extend(by, true);
                let ended = tool(&lvm.tools, "lvextend", arguments, lvm.time_limit).await?;
                Ok(ended.words())
            }
            Self::Zfs(..) => Err("it has no metadata of its own".to_owned()),
        }
    }
}
