//! What the options of a node say of the nodes below it.

use super::{
    BACKING, BlockdevDriverOptions, BlockdevOptions, BlockdevRef, BlockdevRefOrNull, DATA_FILE,
    Referred,
};

impl BlockdevOptions {
    /// The children that the options name, in the order in which they are opened, and what they are to the node
    /// (`file`, `data-file`, `backing`, `image`).
    pub fn children(&self) -> Vec<(&'static str, Referred<'_>)> {
        match &self.variant {
            BlockdevDriverOptions::File(_)
            | BlockdevDriverOptions::HostDevice(_)
            | BlockdevDriverOptions::NullCo(_)
            | BlockdevDriverOptions::NullAio(_) => Vec::new(),
            BlockdevDriverOptions::Raw(options) => vec![("file", options.file.referred())],
            BlockdevDriverOptions::Qcow2(options) => {
                let backing = options
                    .backing
                    .as_ref()
                    .and_then(BlockdevRefOrNull::referred);
                let backing = backing.map(|backing| (BACKING, backing));
                let data_file = options.data_file.as_ref().map(BlockdevRef::referred);
                let data_file = data_file.map(|data_file| (DATA_FILE, data_file));
                let file = ("file", options.file.referred());
                let files = std::iter::once(file).chain(data_file);
                files.chain(backing).collect()
            }
            BlockdevDriverOptions::Throttle(options) => vec![("file", options.file.referred())],
            BlockdevDriverOptions::CopyOnRead(options) => vec![("file", options.file.referred())],
            BlockdevDriverOptions::Quota(options) => vec![("file", options.file.referred())],
            BlockdevDriverOptions::Blkdebug(options) => vec![("image", options.image.referred())],
        }
    }

    /// Child `role`, one of [`Self::children`], is the node `name` from now on.
    pub fn set_child(&mut self, role: &str, name: &str) {
        let name = name.to_owned();
        let child = match &mut self.variant {
            BlockdevDriverOptions::File(_)
            | BlockdevDriverOptions::HostDevice(_)
            | BlockdevDriverOptions::NullCo(_)
            | BlockdevDriverOptions::NullAio(_) => return,
            BlockdevDriverOptions::Qcow2(options) if role == BACKING => {
                options.backing = Some(BlockdevRefOrNull::Reference(name));
                return;
            }
            BlockdevDriverOptions::Qcow2(options) if role == DATA_FILE => {
                options.data_file = Some(BlockdevRef::Reference(name));
                return;
            }
            BlockdevDriverOptions::Raw(options) => &mut options.file,
            BlockdevDriverOptions::Qcow2(options) => &mut options.file,
            BlockdevDriverOptions::Throttle(options) => &mut options.file,
            BlockdevDriverOptions::CopyOnRead(options) => &mut options.file,
            BlockdevDriverOptions::Quota(options) => &mut options.file,
            BlockdevDriverOptions::Blkdebug(options) => &mut options.image,
        };
        *child = BlockdevRef::Reference(name);
    }

    /// Whether the driver has a child [`BACKING`] that the options say nothing of: the image says which one it is.
    pub fn leaves_backing_to_image(&self) -> bool {
        matches!(&self.variant, BlockdevDriverOptions::Qcow2(options) if options.backing.is_none())
    }

    /// The same of the child [`DATA_FILE`], which only some images have.
    pub fn leaves_data_file_to_image(&self) -> bool {
        matches!(&self.variant, BlockdevDriverOptions::Qcow2(options) if options.data_file.is_none())
    }
}

impl BlockdevRef {
    fn referred(&self) -> Referred<'_> {
        match self {
            Self::Reference(name) => Referred::Reference(name),
            Self::Definition(options) => Referred::Definition(options),
        }
    }
}

impl BlockdevRefOrNull {
    /// As with QEMU no name at all is none, too.
    fn referred(&self) -> Option<Referred<'_>> {
        match self {
            Self::Reference(name) if name.is_empty() => None,
            Self::Reference(name) => Some(Referred::Reference(name)),
            Self::Definition(options) => Some(Referred::Definition(options)),
            Self::Null => None,
        }
    }
}
