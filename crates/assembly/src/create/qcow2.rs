//! `blockdev-create` of driver `qcow2`: on nodes that exist, or that exist as long as it takes.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::{Child, Node};
use qapi::command::{BlockdevCreateQcow2, BlockdevQcow2Version, Qcow2CompressionType};
use qapi::options::{BlockdevOptions, BlockdevRef};
use qapi::{QmpError, os_text};
use qcow2::create::{CreateOptions, Target, Version, create};
use qcow2::format::CompressionType;

use super::place::Place;
use super::room::preallocation;
use crate::adding;
use crate::closing::{self, CLOSE_TIME_MAX};
use crate::opening::TimeLimits;
use crate::setup_error::SetupError;

/// Makes an image.
///
/// # Errors
/// In QEMU's words where it has some; the storage's, which name the node.
pub async fn make(
    place: Place<'_>,
    options: BlockdevCreateQcow2,
    cancelled: Arc<AtomicBool>,
) -> Result<(), SetupError> {
    let mut nodes = Nodes::of(place);
    let made = nodes.make(options, cancelled).await;
    nodes.give_back().await;
    made
}

/// The nodes that it takes.
struct Nodes<'a> {
    place: Place<'a>,
    /// Defined for this alone.
    own: Vec<String>,
    used: Vec<Arc<Node>>,
}

impl<'a> Nodes<'a> {
    const fn of(place: Place<'a>) -> Self {
        Self {
            place,
            own: Vec::new(),
            used: Vec::new(),
        }
    }

    async fn make(
        &mut self,
        options: BlockdevCreateQcow2,
        cancelled: Arc<AtomicBool>,
    ) -> Result<(), SetupError> {
        let mut wanted = wanted(&options);
        let file = self.open(options.file).await?;
        wanted
            .check()
            .map_err(|error| SetupError::new(error.to_string()))?;
        let data_file = match options.data_file {
            None => None,
            Some(data_file) => {
                let node = self.open(data_file).await?;
                let name = os_text::to_os(&self.node(&node)?.driver().info().filename);
                wanted.data_file = Some(name.as_bytes().to_vec());
                Some(node)
            }
        };
        let target = Target {
            file: self.begin("file", &file).await?,
            data_file: match data_file {
                None => None,
                Some(node) => Some(self.begin("data-file", &node).await?),
            },
        };
        let made = create(target, wanted, cancelled).await;
        made.map_err(|error| SetupError::new(error.to_string()))
    }

    fn node(&self, name: &str) -> Result<Arc<Node>, SetupError> {
        let found = self.place.registry.node(name);
        Ok(found.map_err(|_| QmpError::cannot_find(name, name))?)
    }

    /// The name of a node; one that is defined here comes into the graph until the end.
    async fn open(&mut self, wanted: BlockdevRef) -> Result<String, SetupError> {
        let mut options: BlockdevOptions = match wanted {
            BlockdevRef::Reference(name) => {
                self.node(&name)?;
                return Ok(name);
            }
            BlockdevRef::Definition(options) => *options,
        };
        options.check_names()?;
        let generated = || self.place.registry.graph().generate_name();
        let name = options.base.node_name.clone().unwrap_or_else(generated);
        options.base.node_name = Some(name.clone());
        let Place {
            registry,
            means,
            names,
            definitions,
        } = self.place;
        let limits = TimeLimits::SERVING;
        adding::add(registry, means, names, definitions, options, limits).await?;
        self.own.push(name.clone());
        Ok(name)
    }

    /// Nobody else writes to it until [`Self::give_back`].
    async fn begin(&mut self, role: &'static str, name: &str) -> Result<Child, SetupError> {
        let registry = self.place.registry;
        let lease = registry.begin_job(role, name, Target::ACCESS).await?;
        self.used.push(lease.root.node());
        Ok(lease.root)
    }

    /// What has used them is gone.
    async fn give_back(self) {
        let registry = self.place.registry;
        for node in self.used {
            registry.end_use(&node).await;
        }
        for name in self.own.iter().rev() {
            match registry.remove_node(name).await {
                Ok(closing) => closing::wait(closing, CLOSE_TIME_MAX).await,
                // Somebody uses it by now.
                Err(error) => tracing::info!("node '{name}' stays: {error}"),
            }
        }
        if !self.own.is_empty() {
            let graph = registry.graph();
            self.place.definitions.retain(|name| graph.contains(name));
        }
    }
}

fn wanted(options: &BlockdevCreateQcow2) -> CreateOptions {
    let backing_file = options.backing_file.as_deref().map(os_text::to_os);
    let default = CreateOptions::new(options.size.0);
    CreateOptions {
        version: match options.version.unwrap_or_default() {
            BlockdevQcow2Version::V2 => Version::V2,
            BlockdevQcow2Version::V3 => Version::V3,
        },
        cluster_bytes: options
            .cluster_size
            .map_or(default.cluster_bytes, |size| size.0),
        backing_file: backing_file.map(|name| name.as_bytes().to_vec()),
        backing_format: options.backing_fmt.map(|format| format.name().to_owned()),
        // Its name comes with its node; until then it is one.
        data_file: options.data_file.as_ref().map(|_| Vec::new()),
        data_file_raw: options.data_file_raw.unwrap_or(false),
        extended_l2: options.extended_l2.unwrap_or(false),
        preallocation: preallocation(options.preallocation),
        lazy_refcounts: options.lazy_refcounts.unwrap_or(false),
        // A negative one is none.
        refcount_bits: options.refcount_bits.map_or(default.refcount_bits, |bits| {
            u64::try_from(bits).unwrap_or(0)
        }),
        compression: match options.compression_type.unwrap_or_default() {
            Qcow2CompressionType::Zlib => CompressionType::Deflate,
            Qcow2CompressionType::Zstd => CompressionType::Zstd,
        },
        ..default
    }
}
