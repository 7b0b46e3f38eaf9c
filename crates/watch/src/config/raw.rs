//! The file as it is written.

use serde::Deserialize;

use crate::settings::ZfsProperty;

use super::units::{Bytes, Span};
use super::wishes::{OnFailedName, StrategyName, Wishes};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Raw {
    pub runtime_directory: Option<String>,
    pub journal: Option<String>,
    pub listen: Option<String>,
    pub alert_command: Option<Vec<String>>,
    pub alert_time_limit: Option<Span>,
    pub limits: RawLimits,
    pub defaults: RawDefaults,
    pub machines: Vec<RawMachine>,
}

/// What all machines together may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RawLimits {
    pub parallel_extensions: Option<u32>,
    pub extensions_per_hour: Option<u32>,
    pub bytes_per_day: Option<Bytes>,
}

/// A section with wishes for disks, and with names of its own: serde refuses unknown names only where it
/// sees all of them in one structure.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name {
            $(pub $field: $type,)*
            strategy: Option<StrategyName>,
            command: Option<Vec<String>>,
            command_time_limit: Option<Span>,
            quota_node: Option<String>,
            tools: Option<String>,
            sole_writer: Option<bool>,
            zfs_property: Option<ZfsProperty>,
            dataset: Option<String>,
            step: Option<Bytes>,
            cap: Option<Bytes>,
            enough: Option<Bytes>,
            reserve: Option<Bytes>,
            early: Option<bool>,
            head_room_min: Option<Bytes>,
            head_room_max: Option<Bytes>,
            head_room_safety: Option<f64>,
            on_failed: Option<OnFailedName>,
            failed_delay: Option<Span>,
            health_command: Option<Vec<String>>,
            health_time_limit: Option<Span>,
            backoff_first: Option<Span>,
            backoff_max: Option<Span>,
            give_up_after: Option<u32>,
            settle: Option<Span>,
            poll: Option<Span>,
        }

        impl $name {
            /// What is wished for disks.
            pub fn wishes(&self) -> Wishes {
                Wishes {
                    strategy: self.strategy,
                    command: self.command.clone(),
                    command_time_limit: self.command_time_limit,
                    quota_node: self.quota_node.clone(),
                    tools: self.tools.clone(),
                    sole_writer: self.sole_writer,
                    zfs_property: self.zfs_property,
                    dataset: self.dataset.clone(),
                    step: self.step,
                    cap: self.cap,
                    enough: self.enough,
                    reserve: self.reserve,
                    early: self.early,
                    head_room_min: self.head_room_min,
                    head_room_max: self.head_room_max,
                    head_room_safety: self.head_room_safety,
                    on_failed: self.on_failed,
                    failed_delay: self.failed_delay,
                    health_command: self.health_command.clone(),
                    health_time_limit: self.health_time_limit,
                    backoff_first: self.backoff_first,
                    backoff_max: self.backoff_max,
                    give_up_after: self.give_up_after,
                    settle: self.settle,
                    poll: self.poll,
                }
            }
        }
    };
}

section! {
    /// For all disks of all machines.
    RawDefaults {}
}

section! {
    /// Machines.
    RawMachine {
        name: Option<String>,
        sockets: Vec<String>,
        vmm: Option<String>,
        disks: Vec<RawDisk>,
    }
}

section! {
    /// Some disks of these machines.
    RawDisk {
        node: Option<String>,
        qdev: Option<String>,
        file: Option<String>,
        path: Option<String>,
    }
}
