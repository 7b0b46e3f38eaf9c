//! Where in the input we are, and how that is written.

/// Deepest nesting of members that [`super::from_value`] follows. Types that contain themselves (a node in
/// a node) would otherwise let the input decide how much stack is used.
pub const TYPED_DEPTH_MAX: usize = 32;

/// How scalars are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As strings, converted to what the type wants: `on`, `0x10`, `64K`.
    Keyval,
    /// As JSON's own types.
    Json,
}

/// Where in the input we are; a list through the stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl Path<'_> {
    pub(super) fn depth(&self) -> usize {
        match self {
            Path::Root => 0,
            Path::Member(parent, _) | Path::Element(parent, _) => parent.depth() + 1,
        }
    }

    /// The dotted name; QEMU writes indices as `a.0` or `a[0]`, as the input would.
    pub(super) fn name(&self, mode: Mode) -> String {
        match self {
            Path::Root => String::new(),
            Path::Member(Path::Root, name) => (*name).to_owned(),
            Path::Member(parent, name) => format!("{}.{name}", parent.name(mode)),
            Path::Element(parent, n) => match mode {
                Mode::Keyval => format!("{}.{n}", parent.name(mode)),
                Mode::Json => format!("{}[{n}]", parent.name(mode)),
            },
        }
    }

    /// The last name alone: what QEMU prints for a wrong enum value.
    pub(super) fn leaf(&self) -> &str {
        match self {
            Path::Root => "",
            Path::Member(_, name) => name,
            // It has no name, and QEMU says so.
            Path::Element(..) => "null",
        }
    }
}
