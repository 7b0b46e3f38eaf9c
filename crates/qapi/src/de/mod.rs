//! From JSON or keyval values to Rust types, with QEMU's error texts.
//!
//! [`from_value`] drives `serde::Deserialize` implementations. Members are visited in the order in
//! which the type declares them, whatever the order of the input; so of several mistakes the same
//! one is always reported, and a missing member before a later wrong one. Unknown members are
//! refused, always: `deny_unknown_fields` is not needed.
//!
//! Two of QAPI's constructions have no counterpart in serde. They are expressed by names:
//!
//! * A *flat union* is a struct whose serde name is [`FLAT_UNION`] followed by the name of the
//!   discriminator, with the members [`TAG`] (an enum), [`BASE`] (a struct) and [`VARIANT`] (an
//!   enum of newtype variants). All three are read from the one object.
//!   The macro `flat_union` writes them.
//! * An *alternate* is an enum with variants named after JSON types: `@string`, `@object`, `@array`.

mod value;

use crate::{Object, QmpError, Value, json, keyval};
use serde::Deserialize;
use std::cell::RefCell;
use std::fmt;

/// What the serde name of a flat union begins with; its discriminator follows.
pub const FLAT_UNION: &str = "@";
/// The member of a flat union that is its discriminator.
pub const TAG: &str = "@tag";
/// The member of a flat union that has what all variants share.
pub const BASE: &str = "@base";
/// The member of a flat union that depends on the discriminator.
pub const VARIANT: &str = "@variant";

/// Deepest nesting of members that [`from_value`] follows. Types that contain themselves (a node in
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

/// Makes a `T` from an object.
pub fn from_object<'de, T: Deserialize<'de>>(
    object: &'de Object,
    mode: Mode,
) -> Result<T, QmpError> {
    let node = value::Node::root(value::Input::Object(object), mode);
    T::deserialize(node).map_err(Into::into)
}

/// Makes a `T` from a value.
pub fn from_value<'de, T: Deserialize<'de>>(value: &'de Value, mode: Mode) -> Result<T, QmpError> {
    T::deserialize(value::Node::root(value::Input::Value(value), mode)).map_err(Into::into)
}

/// Makes a `T` from the argument of a command line option: JSON if it begins with `{`, else
/// keyval. `implied_key` is the key of a first keyval item without `=`.
pub fn from_argument<T: for<'de> Deserialize<'de>>(
    text: &str,
    implied_key: Option<&str>,
) -> Result<T, QmpError> {
    if text.starts_with('{') {
        let value = json::parse(text).map_err(|e| QmpError::generic(e.to_string()))?;
        from_value(&value, Mode::Json)
    } else {
        from_object(&keyval::parse(text, implied_key)?, Mode::Keyval)
    }
}

/// Why a value is not what the type wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct DeError {
    desc: String,
}

impl DeError {
    fn new(desc: impl fmt::Display) -> Self {
        DeError {
            desc: desc.to_string(),
        }
    }
}

impl From<DeError> for QmpError {
    fn from(e: DeError) -> Self {
        QmpError::generic(e.desc)
    }
}

impl serde::de::Error for DeError {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        DeError::new(msg)
    }

    fn missing_field(field: &'static str) -> Self {
        DeError::new(format_args!("Parameter '{field}' is missing"))
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        DeError::new(format_args!("Parameter '{field}' is unexpected"))
    }
}

/// Where in the input we are; a list through the stack.
#[derive(Clone, Copy, Debug)]
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn depth(&self) -> usize {
        match self {
            Path::Root => 0,
            Path::Member(parent, _) | Path::Element(parent, _) => parent.depth() + 1,
        }
    }

    /// The dotted name; QEMU writes indices as `a.0` or `a[0]`, as the input would.
    fn name(&self, mode: Mode) -> String {
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
    fn leaf(&self) -> &str {
        match self {
            Path::Root => "",
            Path::Member(_, name) => name,
            Path::Element(parent, _) => parent.leaf(),
        }
    }
}

/// The object that the parts of a flat union share.
#[derive(Clone, Copy, Debug)]
struct Shared<'a> {
    tag: &'static str,
    /// Members that a part of the union has asked for.
    known: &'a RefCell<Vec<&'static str>>,
}

/// Defines a flat union: an object whose discriminator decides which further members it has. The
/// name of the discriminator is written with [`FLAT_UNION`] before it.
///
/// It makes three types: the union (public fields `base` and `variant`), the enum of the
/// discriminator and the enum of the variants.
macro_rules! flat_union {
    (
        $(#[$doc:meta])*
        pub struct $union:ident { tag: $tag:literal, base: $base:ty }
        $(#[$kind_doc:meta])*
        pub enum $kind:ident;
        $(#[$variant_doc:meta])*
        pub enum $variant:ident {
            $($(#[$arm_doc:meta])* $arm:ident($name:literal, $options:ty),)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $union {
            /// The members that every variant has.
            pub base: $base,
            /// The members that depend on the discriminator.
            pub variant: $variant,
        }

        $(#[$kind_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $kind {
            $($(#[$arm_doc])* #[serde(rename = $name)] $arm,)+
        }

        impl $kind {
            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self { $($kind::$arm => $name,)+ }
            }
        }

        $(#[$variant_doc])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        pub enum $variant {
            $($(#[$arm_doc])* #[serde(rename = $name)] $arm($options),)+
        }

        impl $union {
            /// The discriminator.
            pub fn kind(&self) -> $kind {
                match self.variant { $($variant::$arm(_) => $kind::$arm,)+ }
            }
        }

        impl<'de> serde::Deserialize<'de> for $union {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(rename = $tag)]
                struct Flat {
                    // First, so that its errors come first. The variant says the same again.
                    #[serde(rename = "@tag")]
                    _tag: $kind,
                    #[serde(rename = "@base")]
                    base: $base,
                    #[serde(rename = "@variant")]
                    variant: $variant,
                }
                let flat = Flat::deserialize(deserializer)?;
                Ok($union { base: flat.base, variant: flat.variant })
            }
        }

        impl serde::Serialize for $union {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                #[derive(serde::Serialize)]
                #[serde(untagged)]
                enum Options<'a> { $($arm(&'a $options),)+ }

                #[derive(serde::Serialize)]
                struct Flat<'a> {
                    #[serde(flatten)]
                    tag: std::collections::BTreeMap<&'static str, &'static str>,
                    #[serde(flatten)]
                    base: &'a $base,
                    #[serde(flatten)]
                    options: Options<'a>,
                }

                let tag = [($tag.trim_start_matches($crate::de::FLAT_UNION), self.kind().name())];
                Flat {
                    tag: tag.into(),
                    base: &self.base,
                    options: match &self.variant { $($variant::$arm(o) => Options::$arm(o),)+ },
                }
                .serialize(serializer)
            }
        }
    };
}
pub(crate) use flat_union;
