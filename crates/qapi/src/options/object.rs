//! Objects: `--object`, `object-add`.

use super::vmm::{VmmCommandOptions, VmmSocketOptions};
use crate::de::{flat_union, from_argument};
use crate::{QmpError, id};
use serde::{Deserialize, Serialize};

flat_union! {
    /// An object that others refer to.
    pub struct ObjectOptions { tag: "@qom-type", base: ObjectBase }

    /// Types of object.
    pub enum ObjectType;

    /// The properties of a type.
    pub enum ObjectVariant {
        /// A thread that does I/O.
        Iothread("iothread", IothreadOptions),
        /// A link to QEMU by its monitor.
        VmmQemu("vmm-qemu", VmmSocketOptions),
        /// A link to Cloud Hypervisor by its API.
        VmmCloudHypervisor("vmm-cloud-hypervisor", VmmSocketOptions),
        /// A link to Firecracker by its API.
        VmmFirecracker("vmm-firecracker", VmmSocketOptions),
        /// A link to any VMM by commands.
        VmmCommand("vmm-command", VmmCommandOptions),
    }
}

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectBase {
    /// Name of the object: a letter, then letters, digits, `-`, `.`, `_`.
    pub id: String,
}

/// Properties of `iothread`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadOptions {
    /// Longest time to poll before the thread sleeps, in nanoseconds; 0: never poll. Default:
    /// 32768.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_max_ns: Option<i64>,
    /// The factor by which the poll time grows when it was too short; 0: the default, 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_grow: Option<i64>,
    /// The divisor by which the poll time shrinks when it was too long; 0: it drops to nothing.
    /// Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_shrink: Option<i64>,
    /// Threads that stay of those which make the system calls of its nodes, where io_uring does not. Default:
    /// 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_pool_min: Option<i64>,
    /// The most such threads at any time. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_pool_max: Option<i64>,
}

impl IothreadOptions {
    /// The default of `poll-max-ns`.
    pub const POLL_MAX_NS_DEFAULT: i64 = 32768;

    /// The default of `thread-pool-max`.
    pub const THREAD_POOL_MAX_DEFAULT: i64 = 64;

    fn check(&self) -> Result<(), QmpError> {
        for (name, value) in [
            ("poll-max-ns", self.poll_max_ns),
            ("poll-grow", self.poll_grow),
            ("poll-shrink", self.poll_shrink),
            ("thread-pool-min", self.thread_pool_min),
            ("thread-pool-max", self.thread_pool_max),
        ] {
            if value.is_some_and(|v| v < 0) {
                return Err(QmpError::generic(format!(
                    "{name} value must be in range [0, {}]",
                    i64::MAX
                )));
            }
        }
        let min = self.thread_pool_min.unwrap_or(0);
        let max = (self.thread_pool_max).unwrap_or(Self::THREAD_POOL_MAX_DEFAULT);
        if max == 0 || min > max {
            return Err(QmpError::generic(
                "thread-pool-max must be at least 1, and at least thread-pool-min",
            ));
        }
        Ok(())
    }
}

impl ObjectOptions {
    /// Parses the argument of `--object` and checks it as far as that goes without other objects.
    pub fn parse(text: &str) -> Result<Self, QmpError> {
        let options: Self = from_argument(text, Some("qom-type"))?;
        options.check()?;
        Ok(options)
    }

    /// Checks what does not depend on anything else.
    pub fn check(&self) -> Result<(), QmpError> {
        id::check_id(&self.base.id)?;
        match &self.variant {
            ObjectVariant::Iothread(iothread) => iothread.check(),
            ObjectVariant::VmmQemu(socket)
            | ObjectVariant::VmmCloudHypervisor(socket)
            | ObjectVariant::VmmFirecracker(socket) => socket.check(),
            ObjectVariant::VmmCommand(command) => command.check(),
        }
    }
}

#[cfg(test)]
mod tests;
