//! Objects: `--object`, `object-add`.

use super::throttle::ThrottleGroupOptions;
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
        /// A password or key.
        Secret("secret", SecretOptions),
        /// What nodes may do together in a second.
        ThrottleGroup("throttle-group", Box<ThrottleGroupOptions>),
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
    /// Most operations that are handed to the kernel at once while more are prepared; 0: as the iothread
    /// likes. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio_max_batch: Option<i64>,
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

    /// Checks what does not depend on anything else.
    ///
    /// # Errors
    /// In QEMU's words.
    pub fn check(&self) -> Result<(), QmpError> {
        for (name, value) in [
            ("poll-max-ns", self.poll_max_ns),
            ("poll-grow", self.poll_grow),
            ("poll-shrink", self.poll_shrink),
            ("aio-max-batch", self.aio_max_batch),
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
        if max == 0 || min > max || max > i64::from(i32::MAX) {
            return Err(QmpError::generic(
                "bad thread-pool-min/thread-pool-max values",
            ));
        }
        Ok(())
    }

    /// With what `change` says, and what it does not say as it was.
    pub fn changed_by(&self, change: &Self) -> Self {
        IothreadOptions {
            poll_max_ns: change.poll_max_ns.or(self.poll_max_ns),
            poll_grow: change.poll_grow.or(self.poll_grow),
            poll_shrink: change.poll_shrink.or(self.poll_shrink),
            aio_max_batch: change.aio_max_batch.or(self.aio_max_batch),
            thread_pool_min: change.thread_pool_min.or(self.thread_pool_min),
            thread_pool_max: change.thread_pool_max.or(self.thread_pool_max),
        }
    }
}

/// Properties of `secret`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SecretOptions {
    /// The secret itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The file that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// How it is written. Default: raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<SecretFormat>,
    /// The secret that this one is encrypted with. That is not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyid: Option<String>,
    /// The initialization vector of that encryption; without `keyid` it means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iv: Option<String>,
}

/// How a secret is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretFormat {
    /// As it is.
    #[default]
    Raw,
    /// In base64.
    Base64,
}

impl SecretOptions {
    /// With what `change` says, and what it does not say as it was.
    pub fn changed_by(&self, change: Self) -> Self {
        SecretOptions {
            data: change.data.or_else(|| self.data.clone()),
            file: change.file.or_else(|| self.file.clone()),
            format: change.format.or(self.format),
            keyid: change.keyid.or_else(|| self.keyid.clone()),
            iv: change.iv.or_else(|| self.iv.clone()),
        }
    }

    /// Checks what is written.
    fn check(&self) -> Result<(), QmpError> {
        match (&self.data, &self.file) {
            (Some(_), Some(_)) => {
                let desc = "'file' and 'data' are mutually exclusive";
                Err(QmpError::generic(desc))
            }
            (None, None) => {
                let desc = "Either 'file' or 'data' must be provided";
                Err(QmpError::generic(desc))
            }
            (Some(data), None) => self.check_content(data.as_bytes()),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Checks what `data` says, or what has been read from `file`.
    ///
    /// # Errors
    /// In QEMU's words, if it is not written in the format.
    pub fn check_content(&self, content: &[u8]) -> Result<(), QmpError> {
        let is_digit =
            |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'\n');
        match self.format.unwrap_or_default() {
            SecretFormat::Base64 if !content.iter().all(is_digit) => {
                Err(QmpError::generic("Base64 data contains invalid characters"))
            }
            SecretFormat::Raw | SecretFormat::Base64 => Ok(()),
        }
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
            ObjectVariant::Secret(secret) => secret.check(),
            ObjectVariant::ThrottleGroup(group) => group.limits().map(drop),
            ObjectVariant::VmmQemu(socket)
            | ObjectVariant::VmmCloudHypervisor(socket)
            | ObjectVariant::VmmFirecracker(socket) => socket.check(),
            ObjectVariant::VmmCommand(command) => command.check(),
        }
    }
}

#[cfg(test)]
mod tests;
