//! Which image a guest has seen: what its daemon is started again with has to be the same one.
//!
//! An image has a name and is an object. It may be moved, and then it is the same object under another name;
//! it may be copied (to other storage, to another machine) and put in its place, and then it is another
//! object under the same name. Either makes it the same image. What differs in both is another one: the base
//! of a snapshot, a disk of somebody else.

use std::fmt::{self, Write as _};

/// Longest name that is kept, in bytes: of a longer one its end.
const NAME_BYTES_MAX: usize = 900;
/// Longest object that is kept, in bytes.
const OBJECT_BYTES_MAX: usize = 100;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    name: String,
    object: String,
}

/// The end of `text`, of so many bytes at most.
fn end_of(text: &str, bytes_max: usize) -> String {
    let mut from = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

impl Image {
    /// Longest label ([`Self::to_label`]), in bytes.
    pub const LABEL_BYTES_MAX: usize = NAME_BYTES_MAX + OBJECT_BYTES_MAX + 1;

    /// `name`: where it is found, of a name that leads elsewhere where it leads; for a device what names its
    /// content rather than its number. `object`: what stays the same if it is moved, and is no other one's in
    /// the life of this machine; empty if nothing is known.
    pub fn new(name: &str, object: &str) -> Self {
        Self {
            name: end_of(name, NAME_BYTES_MAX),
            object: end_of(object, OBJECT_BYTES_MAX),
        }
    }

    /// Where it is found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is; empty if nothing is known.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Whether both are one image, which may have been moved or copied.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name || (!self.object.is_empty() && self.object == other.object)
    }

    /// What begins at byte `offset` of it, where that is a disk of its own: another beginning is another disk.
    #[must_use]
    pub fn from_byte(&self, offset: u64) -> Self {
        let of = |text: &str| match text.is_empty() {
            true => String::new(),
            false => format!("{text}+{offset}"),
        };
        Self::new(&of(&self.name), &of(&self.object))
    }

    /// The same read as an image of this format: what is stored there is not what the guest sees.
    #[must_use]
    pub fn read_as(&self, format: &str) -> Self {
        let of = |text: &str| match text.is_empty() {
            true => String::new(),
            false => format!("{text}+{format}"),
        };
        Self::new(&of(&self.name), &of(&self.object))
    }

    /// It as bytes, to be kept by a client.
    pub fn to_label(&self) -> Vec<u8> {
        let parts = [self.object.as_bytes(), b"\0", self.name.as_bytes()];
        parts.concat()
    }

    /// What [`Self::to_label`] has made, or anybody else: none if it is no image.
    pub fn from_label(label: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(label).ok()?;
        let (object, name) = text.split_once('\0')?;
        Some(Self::new(name, object))
    }
}

/// On one line, whatever a client has made of its label.
impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.name.chars() {
            match letter.is_control() {
                true => write!(f, "{}", letter.escape_default())?,
                false => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_or_copied_it_is_the_same() {
        let image = Image::new("/a/disk0", "1:2:3");
        assert!(image.is_same(&image));
        assert!(image.is_same(&Image::new("/b/disk0", "1:2:3")), "moved");
        assert!(image.is_same(&Image::new("/a/disk0", "4:5:6")), "copied");
        assert!(!image.is_same(&Image::new("/a/disk0.snap", "4:5:6")));
        let unknown = Image::new("null-co://", "");
        assert!(!unknown.is_same(&Image::new("/a/disk0", "")));
    }

    /// A window of an image was taken for any other one of it.
    #[test]
    fn each_beginning_is_another_disk() {
        let image = Image::new("/a/disk0", "1:2:3");
        let (one, other) = (image.from_byte(512), image.from_byte(1024));
        assert!(one.is_same(&image.from_byte(512)));
        assert!(!one.is_same(&other) && !one.is_same(&image));
        assert!(one.is_same(&Image::new("/b/disk0", "1:2:3").from_byte(512)));
        let format = image.read_as("qcow2");
        assert!(format.is_same(&Image::new("/b/disk0", "1:2:3").read_as("qcow2")));
        assert!(!format.is_same(&image) && !format.is_same(&one));
        let unknown = Image::new("null-co://", "").from_byte(512);
        assert!(!unknown.is_same(&Image::new("/a/disk0", "").from_byte(512)));
    }

    /// A client's label went to the log as it was, lines of its own and all.
    #[test]
    fn it_is_shown_on_one_line() {
        let label = b"\0/a\n2026 ERROR \x1b[31mall is lost/d\xc3\xa4'";
        let shown = Image::from_label(label).unwrap().to_string();
        assert_eq!(shown, "/a\\n2026 ERROR \\u{1b}[31mall is lost/d\u{e4}'");
    }

    #[test]
    fn labels() {
        for image in [
            Image::new("/a/disk0", "1:2:3"),
            Image::new("", ""),
            Image::new(&"\u{e9}".repeat(600), &"x".repeat(200)),
        ] {
            let label = image.to_label();
            assert!(label.len() <= Image::LABEL_BYTES_MAX);
            assert_eq!(Image::from_label(&label).as_ref(), Some(&image));
        }
        assert_eq!(Image::from_label(b"no image"), None);
        assert_eq!(Image::from_label(b"\0\xff"), None);
        let long = [b"\0".as_slice(), &[b'x'; 5000]].concat();
        let image = Image::from_label(&long).unwrap();
        assert_eq!(image.name().len(), NAME_BYTES_MAX);
    }
}
