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

mod alternative;
mod error;
mod path;
mod union;
mod value;

pub(crate) use alternative::Alternative;
pub use error::DeError;
pub use path::{Mode, TYPED_DEPTH_MAX};
pub use union::{BASE, FLAT_UNION, TAG, VARIANT};

use crate::{Object, QmpError, Value, json, keyval};
use serde::Deserialize;

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
            /// All there are.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$arm),+];

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
                self.variant.kind()
            }
        }

        impl $variant {
            /// The discriminator.
            pub fn kind(&self) -> $kind {
                match self { $($variant::$arm(_) => $kind::$arm,)+ }
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
