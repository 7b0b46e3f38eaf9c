//! `blockdev-snapshot-sync`: an overlay in a file that is made for it, or is there.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::{BACKING, Node, beside, drop_beside};
use qapi::backing_name::{self, Source};
use qapi::command::{BlockdevCreateFile, BlockdevSnapshotSync, NewImageMode};
use qapi::options::{BlockdevBase, BlockdevDriver, BlockdevOptions};
use qapi::{id, os_text};
use qcow2::create::{CreateOptions, create_alone};

use super::format::{can_be_overlay, driver_of, file_part, no_overlay};
use super::place::Place;
use crate::create::make_file;
use crate::definitions::{ByName, inherit};
use crate::nodes::{Children, open};
use crate::opening::{Patience, QUIET_TIME_MAX};
use crate::setup_error::SetupError;
use crate::tree::is_device;

/// The format unless another one is said.
const FORMAT: &str = "qcow2";

/// What comes to be below it.
#[derive(Debug)]
pub struct Base<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it was opened.
    pub given: Option<BlockdevBase>,
    /// The node; none: it comes with the same transaction.
    pub node: Option<Arc<Node>>,
    /// Then its length in bytes.
    pub length: Option<u64>,
    /// Where it is defined then.
    pub definitions: &'a ByName,
}

/// An overlay that is to be made.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// Where.
    pub place: Place<'a>,
    /// How long it may take.
    pub patience: &'a Patience,
    /// The name of its node.
    pub name: &'a str,
    /// What comes to be below it.
    pub base: Base<'a>,
}

/// An overlay whose file is there.
#[derive(Debug)]
pub struct Made {
    /// How it is defined.
    pub given: BlockdevOptions,
    /// How its file is.
    pub file: BlockdevOptions,
    /// Its length in bytes.
    pub length: u64,
}

impl Overlay<'_> {
    /// Makes it as `wanted` says. A file that was made stays, whatever comes then.
    ///
    /// # Errors
    /// In QEMU's words.
    pub async fn make(
        &self,
        wanted: &BlockdevSnapshotSync,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Made, SetupError> {
        let mode = wanted.mode.unwrap_or_default();
        let format = wanted.format.as_deref().unwrap_or(FORMAT);
        let driver = driver_of(format).ok_or_else(|| match mode {
            NewImageMode::AbsolutePaths => {
                SetupError::new(format!("Unknown file format '{format}'"))
            }
            NewImageMode::Existing => SetupError::new(format!("Unknown driver '{format}'")),
        })?;
        if !can_be_overlay(driver) {
            return Err(match mode {
                NewImageMode::AbsolutePaths => SetupError::new(format!(
                    "Backing file not supported for file format '{format}'"
                )),
                NewImageMode::Existing => no_overlay(),
            });
        }
        if wanted.snapshot_node_name.is_some() {
            id::check_node_name(self.name)?;
        }
        let (mut given, path) = self.options(&wanted.snapshot_file, driver).await?;
        let file = file_part(&given).ok_or_else(no_overlay)?;
        let length = self.length()?;
        if mode == NewImageMode::AbsolutePaths {
            let mut file = file.clone();
            inherit(&mut file.base, &given.base, "file");
            file.base.read_only = Some(false);
            self.create(file, &path, length, cancelled).await?;
        }
        given.base.node_name = Some(self.name.to_owned());
        given.set_child(BACKING, self.base.name);
        Ok(Made {
            given,
            file,
            length,
        })
    }

    /// How the node is defined, and the path of its file. It has the cache mode of what is below it, is read-only if
    /// that is, and discards if that does, as with QEMU.
    async fn options(
        &self,
        name: &str,
        driver: BlockdevDriver,
    ) -> Result<(BlockdevOptions, String), SetupError> {
        let bytes = os_text::to_os(name);
        let source = backing_name::source("", bytes.as_bytes(), Some(driver.name()))?;
        let Source::Path { path, .. } = source else {
            let desc = "Parameter 'snapshot-file' expects the name of a file";
            return Err(SetupError::new(desc));
        };
        let looked = PathBuf::from(os_text::to_os(&path));
        let looked = async {
            let looked = beside(move || is_device(&looked)).await;
            looked.map_err(|error| SetupError::new(error.to_string()))
        };
        let looked = self.patience.wait(QUIET_TIME_MAX, self.name, &path, looked);
        let mut options = backing_name::of_path(path.clone(), driver, looked.await?)?;
        let base = self.base.given.clone().unwrap_or_default();
        options.base = BlockdevBase {
            cache: base.cache,
            read_only: base.read_only,
            discard: base.discard,
            ..BlockdevBase::default()
        };
        Ok((options, path))
    }

    fn length(&self) -> Result<u64, SetupError> {
        let node = self.base.node.as_ref();
        let length = node.map(|node| node.driver().length());
        length.or(self.base.length).ok_or_else(|| {
            SetupError::new(format!(
                "The length of node '{}' is not known",
                self.base.name
            ))
        })
    }

    /// What the overlay says of what is below it, and of its format.
    fn backing_name(&self, path: &str) -> (Vec<u8>, String) {
        let (name, format) = match &self.base.node {
            Some(node) => drivers::stored_name::of(node),
            None => {
                let all = self.base.definitions;
                let known = all.get(self.base.name);
                let file = known.and_then(|known| all.get(known.child("file")?));
                let name = file.map(|file| Children::default().file_of(&file.given));
                (name.unwrap_or_default(), FORMAT)
            }
        };
        let name = os_text::to_os(&name).into_vec();
        (from_there(name, path), format.to_owned())
    }

    async fn create(
        &self,
        file: BlockdevOptions,
        path: &str,
        length: u64,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(), SetupError> {
        let means = self.place.means;
        let (backing, format) = self.backing_name(path);
        if backing == os_text::to_os(path).as_bytes() {
            return Err(SetupError::new(
                "Error: Trying to create an image with the same filename as the backing file",
            ));
        }
        let made = async {
            if file.kind() == BlockdevDriver::File {
                let options = BlockdevCreateFile {
                    filename: path.to_owned(),
                    size: 0,
                    preallocation: None,
                    nocow: None,
                    extent_size_hint: None,
                };
                make_file(means.descriptors, options, Arc::clone(cancelled)).await?;
            }
            let driver = open(self.name, file, Children::default(), means).await?;
            let node = Node::new(self.name, driver);
            let options = CreateOptions::overlay(length, &backing, &format);
            let made = create_alone(Arc::clone(&node), options, Arc::clone(cancelled)).await;
            drop_beside(node);
            made.map_err(|error| SetupError::new(error.to_string()))
        };
        (self.patience)
            .wait(QUIET_TIME_MAX, self.name, path, made)
            .await
    }
}

/// `name` as it is written into an image at `path`, where a relative one counts from the directory of that. The
/// daemon's counts from its own: if these are two it has to say all.
fn from_there(name: Vec<u8>, path: &str) -> Vec<u8> {
    let is_relative = {
        let text = String::from_utf8_lossy(&name);
        !text.is_empty() && !text.starts_with('/') && backing_name::protocol(&text).is_none()
    };
    if !is_relative || !path.contains('/') {
        return name;
    }
    match std::path::absolute(Path::new(OsStr::from_bytes(&name))) {
        Ok(absolute) => absolute.into_os_string().into_vec(),
        Err(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_name_counts_from_the_directory_of_the_overlay() {
        let here = std::env::current_dir().unwrap();
        let of = |name: &str, path: &str| {
            String::from_utf8(from_there(name.as_bytes().to_vec(), path)).unwrap()
        };
        assert_eq!(of("base", "overlay"), "base");
        assert_eq!(of("dir/base", "overlay"), "dir/base");
        assert_eq!(of("/a/base", "/b/overlay"), "/a/base");
        assert_eq!(of("json:{}", "/b/overlay"), "json:{}");
        let base = here.join("base");
        assert_eq!(of("base", "/b/overlay"), base.to_str().unwrap());
        assert_eq!(of("base", "b/overlay"), base.to_str().unwrap());
    }
}
