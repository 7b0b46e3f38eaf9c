//! The names by which a type says that it is a flat union.

use std::cell::RefCell;

/// What the serde name of a flat union begins with; its discriminator follows.
pub const FLAT_UNION: &str = "@";
/// The member of a flat union that is its discriminator.
pub const TAG: &str = "@tag";
/// The member of a flat union that has what all variants share.
pub const BASE: &str = "@base";
/// The member of a flat union that depends on the discriminator.
pub const VARIANT: &str = "@variant";

/// The object that the parts of a flat union share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    pub(super) tag: &'static str,
    /// Members that a part of the union has asked for.
    pub(super) known: &'a RefCell<Vec<&'static str>>,
}
