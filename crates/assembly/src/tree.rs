//! From a definition to nodes: a tree, as a node may have several children, each given by name or in place. An image
//! may name its backing file and its data file, too.
//!
//! It is opened from the leaves up; of an image the file first, because that says which ones the others are. What is defined
//! in place inherits what it does not say itself (cache mode, read-only, discard...), as in QEMU. How deep it gets is
//! not for the images to say: there is a bound, and no recursion over what they name.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use block::{BACKING, DATA_FILE, Graph, GraphError, Node, Registry, beside, drop_beside};
use qapi::backing_name::{self, Source};
use qapi::data_name;
use qapi::options::{BlockdevDriver, BlockdevDriverOptions, BlockdevOptions, Referred};
use qapi::{QmpError, os_text};
use qcow2::BackingName;

use crate::definitions::{Definition, Within, inherit};
use crate::nodes::{Children, Means, check, of_image, open};
use crate::opening::{Names, Patience, QUIET_TIME_MAX, Reserved};
use crate::setup_error::SetupError;

/// Longest chain of images, as a bound of what a header can make us open.
pub const CHAIN_MAX: usize = 200;

/// Of a chain in which something fails so many images are named from the top, and the last one.
const SHOWN_MAX: usize = 3;

/// A node to be opened, with what is defined in it.
#[derive(Debug)]
struct Planned {
    name: String,
    options: BlockdevOptions,
    /// Without what it inherits.
    given: BlockdevOptions,
    within: Option<Within>,
    children: Vec<(&'static str, Below)>,
}

/// A child of it.
#[derive(Debug)]
enum Below {
    Existing(Arc<Node>),
    Defined(Box<Planned>),
}

/// Nodes that were made: those that are in no graph in the end are closed beside.
#[derive(Debug, Default)]
pub struct Made(pub Vec<Arc<Node>>);

impl Drop for Made {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            drop_beside(std::mem::take(&mut self.0));
        }
    }
}

/// What was opened, and is in no graph yet.
#[derive(Debug)]
pub struct Opened {
    /// The node that was defined.
    pub root: Arc<Node>,
    /// All that were made, with it.
    pub made: Made,
    /// How each was defined.
    pub definitions: Vec<Definition>,
    /// Their names.
    pub reserved: Reserved,
}

/// Opens what `options` define. No lock is held meanwhile, and names are kept.
///
/// # Errors
/// In QEMU's words; nothing of it is left then.
pub async fn open_tree(
    registry: &Registry,
    means: Means<'_>,
    names: &Names,
    options: BlockdevOptions,
    patience: &Patience,
) -> Result<Opened, SetupError> {
    let mut reserved = names.reserve();
    let root = plan(&mut registry.graph(), &mut reserved, options, None, &[])?;
    let mut opening = Opening {
        registry,
        means,
        patience,
        reserved,
        made: Made::default(),
        definitions: Vec::new(),
        stack: vec![Frame::new(root, "")],
    };
    let root = loop {
        match opening.step().await {
            Ok(None) => {}
            Ok(Some(root)) => break root,
            Err(error) => return Err(opening.of_whom(error)),
        }
    };
    Ok(Opened {
        root,
        made: opening.made,
        definitions: opening.definitions,
        reserved: opening.reserved,
    })
}

/// Names all that is defined, and finds what is named. `above`: what it is defined in, from the top.
fn plan(
    graph: &mut Graph,
    reserved: &mut Reserved,
    mut options: BlockdevOptions,
    within: Option<Within>,
    above: &[&str],
) -> Result<Planned, SetupError> {
    check(&options.base)?;
    let given = options.clone();
    let name = match &options.base.node_name {
        Some(name) => name.clone(),
        None => graph.generate_name(),
    };
    if graph.contains(&name) || !reserved.add(&name) {
        return Err(GraphError::Duplicate(name).into());
    }
    options.base.node_name = Some(name.clone());
    let above: Vec<_> = above.iter().copied().chain([name.as_str()]).collect();
    let mut children = Vec::new();
    for (role, child) in given.children() {
        let of_role = |error: SetupError| match role {
            BACKING => error.in_backing_file(&shown(&name, &given)),
            _ => error,
        };
        let below = match child {
            Referred::Reference(child) if role == BACKING && above.contains(&child) => {
                return Err(SetupError::new(format!(
                    "Making '{child}' a {role} child of '{name}' would create a cycle"
                )));
            }
            Referred::Reference(child) => {
                let found = graph.get(child);
                let none = |_| of_role(QmpError::cannot_find(child, child).into());
                Below::Existing(found.map_err(none)?)
            }
            Referred::Definition(child) => {
                let within = Within {
                    whole: name.clone(),
                    role,
                };
                let mut child = child.clone();
                let said = child.clone();
                inherit(&mut child.base, &options.base, role);
                let planned = plan(graph, reserved, child, Some(within), &above);
                let mut planned = planned.map_err(of_role)?;
                planned.given = said;
                Below::Defined(Box::new(planned))
            }
        };
        children.push((role, below));
    }
    Ok(Planned {
        name,
        options,
        given,
        within,
        children,
    })
}

/// A node whose children are being opened.
#[derive(Debug)]
struct Frame {
    name: String,
    options: BlockdevOptions,
    given: BlockdevOptions,
    within: Option<Within>,
    /// What it is to the one above it.
    role: &'static str,
    waiting: VecDeque<(&'static str, Below)>,
    children: Children,
    /// Its header is to be asked for the files that it names.
    asks: bool,
}

impl Frame {
    fn new(planned: Planned, role: &'static str) -> Self {
        Self {
            asks: planned.options.leaves_backing_to_image()
                || planned.options.leaves_data_file_to_image(),
            name: planned.name,
            options: planned.options,
            given: planned.given,
            within: planned.within,
            role,
            waiting: planned.children.into(),
            children: Children::default(),
        }
    }

    /// As messages name it: by its file, as soon as that is known.
    fn shown(&self) -> String {
        match self.children.get("file") {
            Some(file) => quoted(&file.storage().driver().info().filename),
            None => shown(&self.name, &self.given),
        }
    }
}

fn quoted(file: &str) -> String {
    format!("'{file}'")
}

/// How messages name node `name`, which is not open: by its file, if `options` say which one that is.
fn shown(name: &str, options: &BlockdevOptions) -> String {
    let mut at = options;
    loop {
        if let BlockdevDriverOptions::File(file) | BlockdevDriverOptions::HostDevice(file) =
            &at.variant
        {
            return quoted(&file.filename);
        }
        let mut children = at.children().into_iter();
        match children.find(|(role, _)| *role == "file") {
            Some((_, Referred::Definition(below))) => at = below,
            _ => return format!("node '{name}'"),
        }
    }
}

/// Nodes on their way, from the top: each is being opened for the one before it.
struct Opening<'a> {
    registry: &'a Registry,
    means: Means<'a>,
    patience: &'a Patience,
    /// Dropped before `made`, which closes nodes where nobody waits.
    stack: Vec<Frame>,
    reserved: Reserved,
    made: Made,
    definitions: Vec<Definition>,
}

impl Opening<'_> {
    /// One step further: the root, when it is open.
    async fn step(&mut self) -> Result<Option<Arc<Node>>, SetupError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(None);
        };
        match frame.waiting.pop_front() {
            Some((role, Below::Existing(node))) => {
                frame.children.add(role, node);
                self.check_chain()?;
            }
            Some((role, Below::Defined(planned))) => {
                self.stack.push(Frame::new(*planned, role));
                self.check_chain()?;
            }
            None if frame.asks => self.ask().await?,
            None => return self.finish().await,
        }
        Ok(None)
    }

    /// Asks the header of an image for the files that it names, as far as nobody has said which ones they are.
    async fn ask(&mut self) -> Result<(), SetupError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(());
        };
        frame.asks = false;
        let Some(file) = frame.children.get("file") else {
            return Ok(());
        };
        let name = frame.name.clone();
        let image = file.storage().driver().info().filename;
        let asked = async {
            let named = qcow2::names_of(file).await;
            named.map_err(|error| of_image(error, &name, file))
        };
        let asked = self.patience.wait(QUIET_TIME_MAX, &name, &image, asked);
        let mut named = asked.await?;
        let said = &frame.options;
        named.backing.take_if(|_| !said.leaves_backing_to_image());
        (named.data_file).take_if(|data| !said.leaves_data_file_to_image() || data.name.is_empty());
        let data_file = match &named.data_file {
            Some(data) => {
                let options = self.data_file(&name, &image, &data.name).await;
                Some(options.map_err(|error| {
                    let data = String::from_utf8_lossy(&data.name);
                    error.of(&image, || format!("data file '{data}' of image '{image}'"))
                })?)
            }
            None => None,
        };
        let backing = match &named.backing {
            Some(backing) => Some(self.backing(&name, &image, backing).await?),
            None => None,
        };
        if let Some(frame) = self.stack.last_mut() {
            frame.children.named_by_image(named);
        }
        // What has no role in between is opened in this order, as with QEMU.
        self.plan_named(DATA_FILE, data_file)?;
        let planned = self.plan_named(BACKING, backing);
        planned.map_err(|error| error.in_backing_file(&quoted(&image)))
    }

    /// What the backing file that an image names is to be opened as.
    async fn backing(
        &self,
        name: &str,
        image: &str,
        named: &BackingName,
    ) -> Result<BlockdevOptions, SetupError> {
        let source = backing_name::source(image, &named.name, named.format.as_deref());
        let of_backing = |error: QmpError| {
            let backing = String::from_utf8_lossy(&named.name);
            SetupError::from(error)
                .of(&backing, || format!("backing file '{backing}'"))
                .in_backing_file(&quoted(image))
        };
        match source.map_err(of_backing)? {
            Source::Options(options) => Ok(*options),
            Source::Path { path, driver } => {
                let file = PathBuf::from(os_text::to_os(&path));
                let is_device = self.look(name, &path, move || is_device(&file)).await?;
                let options = backing_name::of_path(path, driver, is_device);
                options.map_err(of_backing)
            }
        }
    }

    /// The same of the data file: it is never looked at what is in there.
    async fn data_file(
        &self,
        name: &str,
        image: &str,
        named: &[u8],
    ) -> Result<BlockdevOptions, SetupError> {
        let (path, is_device) = match data_name::source(image, named)? {
            data_name::Source::Options(options) => return Ok(*options),
            data_name::Source::Path { beside, here } => {
                let (image, node) = (image.to_owned(), name.to_owned());
                let looked = self
                    .look(name, &here.clone(), move || place(beside, here))
                    .await?;
                looked.map_err(|(beside, here)| {
                    SetupError::new(format!(
                        "Image '{image}' of node '{node}' names its data file by a relative path, which leads to two files: \
                         '{beside}' beside the image, and '{here}' from the current directory: say which one it is with \
                         'data-file'"
                    ))
                })?
            }
        };
        let driver = match is_device {
            true => BlockdevDriver::HostDevice,
            false => BlockdevDriver::File,
        };
        Ok(backing_name::of_path(path, driver, is_device)?)
    }

    /// Looks at files, beside.
    async fn look<T: Send + 'static>(
        &self,
        name: &str,
        path: &str,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SetupError> {
        let looked = async {
            let looked = beside(look).await;
            looked.map_err(|error| SetupError::new(error.to_string()))
        };
        self.patience.wait(QUIET_TIME_MAX, name, path, looked).await
    }

    /// The uppermost node gets one more child, which its image has named.
    fn plan_named(
        &mut self,
        role: &'static str,
        options: Option<BlockdevOptions>,
    ) -> Result<(), SetupError> {
        let (Some(mut options), Some(frame)) = (options, self.stack.last()) else {
            return Ok(());
        };
        let within = Within {
            whole: frame.name.clone(),
            role,
        };
        let given = options.clone();
        inherit(&mut options.base, &frame.options.base, role);
        let above: Vec<_> = self.stack.iter().map(|frame| frame.name.as_str()).collect();
        let mut planned = plan(
            &mut self.registry.graph(),
            &mut self.reserved,
            options,
            Some(within),
            &above,
        )?;
        planned.given = given;
        if let Some(frame) = self.stack.last_mut() {
            let planned = Below::Defined(Box::new(planned));
            frame.waiting.push_back((role, planned));
        }
        Ok(())
    }

    /// All below it is open: opens the node itself.
    async fn finish(&mut self) -> Result<Option<Arc<Node>>, SetupError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(None);
        };
        let children = std::mem::take(&mut frame.children);
        let named = children.names();
        let what = children.file_of(&frame.options);
        let opened = open(&frame.name, frame.options.clone(), children, self.means);
        let opened = self
            .patience
            .wait(QUIET_TIME_MAX, &frame.name, &what, opened);
        let node = Node::new(&frame.name, opened.await?);
        self.made.0.push(Arc::clone(&node));
        let Some(frame) = self.stack.pop() else {
            return Ok(None);
        };
        let definition = Definition::new(&frame.name, frame.given, named, frame.within);
        self.definitions.push(definition);
        match self.stack.last_mut() {
            None => Ok(Some(node)),
            Some(above) => {
                above.children.add(frame.role, node);
                self.check_chain()?;
                Ok(None)
            }
        }
    }

    /// After what was just added to the uppermost one: no image is its own backing file, and the chain has a bound.
    fn check_chain(&self) -> Result<(), SetupError> {
        let images = self.stack.iter().filter(|frame| frame.role == BACKING);
        let last = self.stack.last();
        let below = last.and_then(|frame| frame.children.get(BACKING));
        let below = below.map_or(0, |node| node.chain().take(CHAIN_MAX + 1).count());
        if images.count() + below > CHAIN_MAX {
            return Err(too_deep(self.stack.first().map_or("", |root| &root.name)));
        }
        let Some(file) = last.and_then(|frame| frame.children.get("file")) else {
            return Ok(());
        };
        let (image, backed) = (file.image(), self.stack.iter().rev().skip(1));
        // Of what is defined in place without a backing file in between one is not behind the other.
        let mut is_behind = last.is_some_and(|frame| frame.role == BACKING);
        for frame in backed {
            let other = frame.children.get("file").map(|file| file.image());
            let is_same = |other: &block::Image| {
                !other.object().is_empty() && other.object() == image.object()
            };
            if is_behind && other.as_ref().is_some_and(is_same) {
                let file = file.storage().driver().info().filename;
                return Err(SetupError::new(format!(
                    "Image '{file}' would be its own backing file"
                )));
            }
            is_behind |= frame.role == BACKING;
        }
        Ok(())
    }

    /// Says of an error behind which images it is.
    fn of_whom(&self, error: SetupError) -> SetupError {
        let pairs = self.stack.iter().zip(self.stack.iter().skip(1));
        let behind = pairs.filter(|(_, below)| below.role == BACKING);
        let mut images: Vec<_> = behind.map(|(above, _)| above.shown()).collect();
        let last = images.pop();
        let left_out = images.len().saturating_sub(SHOWN_MAX);
        images.truncate(SHOWN_MAX);
        let mut error = last
            .iter()
            .fold(error, |error, of| error.in_backing_file(of));
        if left_out > 0 {
            error.desc = format!("and so on through {left_out} more images: {}", error.desc);
        }
        let above = images.iter().rev();
        above.fold(error, |error, of| error.in_backing_file(of))
    }
}

/// The chain below a node is longer than anybody needs.
pub fn too_deep(name: &str) -> SetupError {
    SetupError::new(format!(
        "The backing chain of node '{name}' is longer than {CHAIN_MAX} images"
    ))
}

/// Whether it is a block device.
pub fn is_device(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    // What is not there is told by whoever opens it.
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// The file of these two that is there, and whether it is a device. If none is, that beside the image is to be told of.
///
/// # Errors
/// They are two: both of them.
fn place(beside: Option<String>, here: String) -> Result<(String, bool), (String, String)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let look = |path: &str| std::fs::metadata(PathBuf::from(os_text::to_os(path))).ok();
    let there = look(&here);
    let (path, found) = match beside {
        None => (here, there),
        Some(beside) => match (look(&beside), there) {
            (Some(one), Some(other)) if (one.dev(), one.ino()) != (other.dev(), other.ino()) => {
                return Err((beside, here));
            }
            (None, Some(other)) => (here, Some(other)),
            (one, _) => (beside, one),
        },
    };
    let is_device = found.is_some_and(|found| found.file_type().is_block_device());
    Ok((path, is_device))
}

#[cfg(test)]
mod tests {
    use super::place;

    /// A daemon and a tool that was called beside the image would write to different files.
    #[test]
    fn a_relative_name_leads_to_one_file_or_to_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (beside, here) = (at("image/data"), at("here/data"));
        std::fs::create_dir(dir.path().join("image")).unwrap();
        std::fs::create_dir(dir.path().join("here")).unwrap();
        let look = || place(Some(beside.clone()), here.clone());
        assert_eq!(look(), Ok((beside.clone(), false)), "to be told of");
        std::fs::write(&here, "").unwrap();
        assert_eq!(look(), Ok((here.clone(), false)));
        std::fs::hard_link(&here, &beside).unwrap();
        assert_eq!(look(), Ok((beside.clone(), false)), "the same");
        std::fs::remove_file(&here).unwrap();
        assert_eq!(look(), Ok((beside.clone(), false)));
        std::fs::write(&here, "").unwrap();
        assert_eq!(look(), Err((beside.clone(), here.clone())));
        assert_eq!(place(None, here.clone()), Ok((here.clone(), false)));
    }
}
