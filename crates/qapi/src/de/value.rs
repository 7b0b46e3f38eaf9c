//! The deserializer itself.

use super::alternative::Alternative;
use super::error::DeError;
use super::path::{Mode, Path, TYPED_DEPTH_MAX};
use super::union::{BASE, FLAT_UNION, Shared, TAG, VARIANT};
use crate::{Object, Size, Value};
use serde::de::value::{BorrowedStrDeserializer, U64Deserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;

/// What stands at a place in the input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input<'de> {
    /// Nothing: an optional member that is not there.
    Missing,
    Object(&'de Object),
    Value(&'de Value),
}

/// One place in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'de, 'a> {
    input: Input<'de>,
    path: Path<'a>,
    mode: Mode,
    /// Set while parts of a flat union are read from one object.
    shared: Option<Shared<'a>>,
}

/// An enum access that names an alternate's variant by the kind of the value.
const ALTERNATE_STRING: &str = "@string";
const ALTERNATE_OBJECT: &str = "@object";
const ALTERNATE_ARRAY: &str = "@array";
const ALTERNATE_NULL: &str = "@null";
const ALTERNATES: [&str; 4] = [
    ALTERNATE_STRING,
    ALTERNATE_OBJECT,
    ALTERNATE_ARRAY,
    ALTERNATE_NULL,
];

impl<'de, 'a> Node<'de, 'a> {
    pub(super) fn root(input: Input<'de>, mode: Mode) -> Self {
        Node {
            input,
            path: Path::Root,
            mode,
            shared: None,
        }
    }

    fn name(&self) -> String {
        self.path.name(self.mode)
    }

    fn wrong_type(&self, expected: &str) -> DeError {
        match self.input {
            Input::Missing => self.missing(),
            _ => DeError::new(format_args!(
                "Invalid parameter type for '{}', expected: {expected}",
                self.name()
            )),
        }
    }

    /// Of an alternate QEMU prints the last name alone.
    fn wrong_alternate(&self, expected: &str) -> DeError {
        DeError::new(format_args!(
            "Invalid parameter type for '{}', expected: {expected}",
            self.path.leaf()
        ))
    }

    fn expects(&self, what: &str) -> DeError {
        DeError::new(format_args!("Parameter '{}' expects {what}", self.name()))
    }

    fn missing(&self) -> DeError {
        DeError::new(format_args!("Parameter '{}' is missing", self.name()))
    }

    fn object(&self) -> Result<&'de Object, DeError> {
        match self.input {
            Input::Object(object) | Input::Value(Value::Object(object)) => Ok(object),
            _ => Err(self.wrong_type("object")),
        }
    }

    /// The text of a scalar in keyval mode.
    fn keyval_text(&self, expected: &str) -> Result<&'de str, DeError> {
        match self.input {
            Input::Value(Value::String(text)) => Ok(text),
            Input::Value(Value::Object(_) | Value::Array(_)) | Input::Object(_) => {
                Err(DeError::new(format_args!(
                    "Parameters '{}.*' are unexpected",
                    self.name()
                )))
            }
            _ => Err(self.wrong_type(expected)),
        }
    }

    fn text(&self) -> Result<&'de str, DeError> {
        match (self.mode, self.input) {
            (_, Input::Value(Value::String(text))) => Ok(text),
            (Mode::Keyval, _) => self.keyval_text("string"),
            (Mode::Json, _) => Err(self.wrong_type("string")),
        }
    }

    fn boolean(&self) -> Result<bool, DeError> {
        match (self.mode, self.input) {
            (Mode::Json, Input::Value(Value::Bool(value))) => Ok(*value),
            (Mode::Json, _) => Err(self.wrong_type("boolean")),
            (Mode::Keyval, _) => match self.keyval_text("boolean")? {
                "on" | "yes" | "true" | "y" => Ok(true),
                "off" | "no" | "false" | "n" => Ok(false),
                _ => Err(self.expects("'on' or 'off'")),
            },
        }
    }

    fn signed(&self) -> Result<i64, DeError> {
        match (self.mode, self.input) {
            (Mode::Json, Input::Value(value)) => {
                value.as_i64().ok_or_else(|| self.wrong_type("integer"))
            }
            (Mode::Json, _) => Err(self.wrong_type("integer")),
            (Mode::Keyval, _) => parse_integer(self.keyval_text("integer")?)
                .and_then(|n| i64::try_from(n).ok())
                .ok_or_else(|| self.expects("integer")),
        }
    }

    /// Negative numbers wrap around, as with QEMU: whoever takes a `u64` sees a very large one.
    fn unsigned(&self, type_name: &str) -> Result<u64, DeError> {
        match (self.mode, self.input) {
            (Mode::Json, Input::Value(Value::Number(number))) => number
                .as_u64()
                .or_else(|| number.as_i64().map(i64::cast_unsigned))
                .ok_or_else(|| self.expects("uint64")),
            (Mode::Json, Input::Missing) => Err(self.missing()),
            (Mode::Json, _) => Err(self.expects("uint64")),
            (Mode::Keyval, _) => {
                let number = parse_integer(self.keyval_text("integer")?)
                    .ok_or_else(|| self.expects("integer"))?;
                u64::try_from(number)
                    .or_else(|_| i64::try_from(number).map(i64::cast_unsigned))
                    .map_err(|_| self.expects(type_name))
            }
        }
    }

    fn size(&self) -> Result<u64, DeError> {
        match self.mode {
            Mode::Json => self.unsigned("uint64"),
            Mode::Keyval => Size::parse(self.keyval_text("size")?)
                .map(|size| size.0)
                .ok_or_else(|| self.expects("size")),
        }
    }

    fn member(&'a self, object: &'de Object, name: &'static str) -> Node<'de, 'a> {
        Node {
            input: object.get(name).map_or(Input::Missing, Input::Value),
            path: Path::Member(&self.path, name),
            mode: self.mode,
            shared: None,
        }
    }

    /// Refuses members that nobody asked for.
    fn check_unexpected(&self, object: &Object, known: &[&str]) -> Result<(), DeError> {
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let name = Path::Member(&self.path, key).name(self.mode);
                Err(DeError::new(format_args!(
                    "Parameter '{name}' is unexpected"
                )))
            }
        }
    }
}

/// A C integer: optional space and sign, base by prefix, nothing behind.
fn parse_integer(text: &str) -> Option<i128> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // from_str_radix takes a sign of its own.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
        .filter(|h| !h.is_empty())
    {
        if hex.starts_with(['+', '-']) {
            return None;
        }
        u64::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse::<u64>()
    };
    let magnitude = i128::from(magnitude.ok()?);
    Some(if negative { -magnitude } else { magnitude })
}

macro_rules! unsigned {
    ($($method:ident, $visit:ident, $type:ty, $name:literal;)+) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
                let number = self.unsigned($name)?;
                visitor.$visit(<$type>::try_from(number).map_err(|_| self.expects($name))?)
            }
        )+
    };
}

macro_rules! signed {
    ($($method:ident, $visit:ident, $type:ty, $name:literal;)+) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
                let number = self.signed()?;
                visitor.$visit(<$type>::try_from(number).map_err(|_| self.expects($name))?)
            }
        )+
    };
}

impl<'de> Deserializer<'de> for Node<'de, '_> {
    type Error = DeError;

    unsigned! {
        deserialize_u8, visit_u8, u8, "uint8_t";
        deserialize_u16, visit_u16, u16, "uint16_t";
        deserialize_u32, visit_u32, u32, "uint32_t";
        deserialize_u64, visit_u64, u64, "uint64";
    }
    signed! {
        deserialize_i8, visit_i8, i8, "int8_t";
        deserialize_i16, visit_i16, i16, "int16_t";
        deserialize_i32, visit_i32, i32, "int32_t";
        deserialize_i64, visit_i64, i64, "integer";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.input {
            Input::Missing => Err(self.missing()),
            Input::Object(object) => {
                Deserializer::deserialize_any(object, visitor).map_err(DeError::new)
            }
            Input::Value(value) => {
                Deserializer::deserialize_any(value, visitor).map_err(DeError::new)
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_bool(self.boolean()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.input {
            Input::Missing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        if name == "Size" {
            let size: U64Deserializer<DeError> = self.size()?.into_deserializer();
            visitor.visit_newtype_struct(size)
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.input {
            Input::Value(Value::Array(array)) => visitor.visit_seq(Elements {
                node: &self,
                array,
                next: 0,
            }),
            _ => Err(self.wrong_type("array")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let object = self.object()?;
        if self.path.depth() > TYPED_DEPTH_MAX {
            return Err(DeError::new(format_args!(
                "Parameter '{}' is nested too deeply, at most {TYPED_DEPTH_MAX} levels are accepted",
                self.name()
            )));
        }
        if let Some(tag) = name.strip_prefix(FLAT_UNION) {
            let known = RefCell::new(vec![tag]);
            let shared = Some(Shared { tag, known: &known });
            let node = Node { shared, ..self };
            let value = visitor.visit_map(Members {
                node: &node,
                object,
                fields,
                at: 0,
            })?;
            self.check_unexpected(object, &known.borrow())?;
            return Ok(value);
        }
        let value = visitor.visit_map(Members {
            node: &self,
            object,
            fields,
            at: 0,
        })?;
        match self.shared {
            // The union checks when all its parts have been read.
            Some(shared) => shared.known.borrow_mut().extend(fields),
            None => self.check_unexpected(object, fields)?,
        }
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        if variants.iter().any(|v| ALTERNATES.contains(v)) {
            let variant = match self.input {
                Input::Missing => return Err(self.missing()),
                Input::Value(Value::String(_)) => ALTERNATE_STRING,
                Input::Value(Value::Object(_)) | Input::Object(_) => ALTERNATE_OBJECT,
                Input::Value(Value::Array(_)) => ALTERNATE_ARRAY,
                Input::Value(Value::Null) => ALTERNATE_NULL,
                Input::Value(_) => return Err(self.wrong_alternate(name)),
            };
            if !variants.contains(&variant) {
                return Err(self.wrong_alternate(name));
            }
            return visitor.visit_enum(Alternative::new(variant, self));
        }
        let named = match self.shared {
            Some(shared) => self.object()?.get(shared.tag),
            None => None,
        };
        let at = match (self.shared, named) {
            (Some(shared), Some(value)) => Node {
                input: Input::Value(value),
                path: Path::Member(&self.path, shared.tag),
                shared: None,
                mode: self.mode,
            },
            _ => Node {
                shared: None,
                ..self
            },
        };
        let variant = at.text()?;
        let reject = |_| {
            DeError::new(format_args!(
                "Parameter '{}' does not accept value '{variant}'",
                at.path.leaf()
            ))
        };
        // The type may accept further spellings, so it decides; but only a name can be wrong in
        // an enum without contents, and its contents report their own errors.
        if self.shared.is_some() && !variants.contains(&variant) {
            return Err(reject(()));
        }
        let value = visitor.visit_enum(Alternative::new(variant, self));
        if self.shared.is_some() {
            value
        } else {
            value.map_err(|_| reject(()))
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier
    }
}

/// Members of an object, in the order in which the type declares them.
struct Members<'de, 'n, 'a> {
    node: &'n Node<'de, 'a>,
    object: &'de Object,
    fields: &'static [&'static str],
    at: usize,
}

impl<'de> MapAccess<'de> for Members<'de, '_, '_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeError> {
        match self.fields.get(self.at) {
            Some(field) => seed
                .deserialize(BorrowedStrDeserializer::new(field))
                .map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        let Some(&field) = self.fields.get(self.at) else {
            return Err(DeError::new("a value was asked for before its name"));
        };
        self.at += 1;
        match (field, self.node.shared) {
            (TAG, Some(shared)) => seed.deserialize(self.node.member(self.object, shared.tag)),
            (BASE | VARIANT, Some(_)) => seed.deserialize(*self.node),
            _ => seed.deserialize(self.node.member(self.object, field)),
        }
    }
}

/// Elements of an array.
struct Elements<'de, 'n, 'a> {
    node: &'n Node<'de, 'a>,
    array: &'de [Value],
    next: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de, '_, '_> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        let Some(value) = self.array.get(self.next) else {
            return Ok(None);
        };
        let node = Node {
            input: Input::Value(value),
            path: Path::Element(&self.node.path, self.next),
            mode: self.node.mode,
            shared: None,
        };
        self.next += 1;
        seed.deserialize(node).map(Some)
    }
}
