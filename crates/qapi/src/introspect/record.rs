//! A deserializer that records what a type asks for. It answers with whatever the type accepts; where there
//! are several things that a value may be it takes another one each time.

use std::any::type_name;
use std::cell::{Cell, RefCell};

use serde::de::value::{BorrowedStrDeserializer, U64Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, Visitor,
};

use super::registry::{Kind, Member, Ref, Registry};
use crate::de::{Alternative, BASE, DeError, FLAT_UNION, TAG, VARIANT};

/// More often than this no type has to be asked.
const PASSES_MAX: usize = 1 << 12;

/// Records what `T` is made of.
pub(super) fn record<T: DeserializeOwned>(registry: &RefCell<Registry>) -> Result<Ref, DeError> {
    for _ in 0..PASSES_MAX {
        let found = Cell::default();
        T::deserialize(Recorder::new(registry, &found))?;
        let found = found.get().map(|found| found.r#type);
        let found = found.ok_or_else(|| DeError::custom("a type has asked for nothing"))?;
        if !registry.borrow().is_unfinished(found) {
            return Ok(found);
        }
    }
    Err(DeError::custom("a type has no end"))
}

#[derive(Clone, Copy, Debug)]
struct Found {
    is_optional: bool,
    r#type: Ref,
}

/// In what a value stands.
#[derive(Clone, Copy, Debug)]
enum Within<'a> {
    Anything,
    /// The part of a flat union, at this place, that depends on the discriminator.
    Union(usize),
    /// A member of the struct of that name and place, which may be a union whose content has a name; the
    /// case that its discriminator has said.
    Struct(&'static str, usize, &'a Cell<Option<usize>>),
}

struct Recorder<'a> {
    registry: &'a RefCell<Registry>,
    found: &'a Cell<Option<Found>>,
    within: Within<'a>,
}

impl<'a> Recorder<'a> {
    fn new(registry: &'a RefCell<Registry>, found: &'a Cell<Option<Found>>) -> Self {
        Recorder {
            registry,
            found,
            within: Within::Anything,
        }
    }

    /// One of several things; what it is made of is put into `found`.
    fn one<'b>(
        &self,
        variants: &'static [&'static str],
        chosen: usize,
        found: &'b Cell<Option<Found>>,
    ) -> Alternative<'static, Recorder<'b>>
    where
        'a: 'b,
    {
        let variant = variants.get(chosen).copied().unwrap_or_default();
        Alternative::new(variant, Recorder::new(self.registry, found))
    }

    fn is(&self, r#type: Ref) {
        let is_optional = self.found.get().is_some_and(|found| found.is_optional);
        self.found.set(Some(Found {
            is_optional,
            r#type,
        }));
    }

    fn builtin(&self, name: &'static str) {
        self.is(Ref::Builtin(name));
    }
}

macro_rules! integers {
    ($($method:ident, $visit:ident;)+) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
                self.builtin("int");
                visitor.$visit(0)
            }
        )+
    };
}

impl<'de> Deserializer<'de> for Recorder<'_> {
    type Error = DeError;

    integers! {
        deserialize_u8, visit_u8;
        deserialize_u16, visit_u16;
        deserialize_u32, visit_u32;
        deserialize_u64, visit_u64;
        deserialize_i8, visit_i8;
        deserialize_i16, visit_i16;
        deserialize_i32, visit_i32;
        deserialize_i64, visit_i64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.builtin("any");
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.builtin("bool");
        visitor.visit_bool(false)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.builtin("number");
        visitor.visit_f64(0.0)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.builtin("str");
        visitor.visit_borrowed_str("")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        let key = type_name::<V::Value>();
        // Something in itself; what is around it says what it is.
        if !self.registry.borrow_mut().enter(key) {
            return visitor.visit_none();
        }
        self.found.set(Some(Found {
            is_optional: true,
            r#type: Ref::Builtin("null"),
        }));
        let registry = self.registry;
        let value = visitor.visit_some(self);
        registry.borrow_mut().leave(key);
        value
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.builtin("null");
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        if name == "Size" {
            self.builtin("int");
            let size: U64Deserializer<DeError> = 0u64.into_deserializer();
            visitor.visit_newtype_struct(size)
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        let key = type_name::<V::Value>();
        if !self.registry.borrow_mut().enter(key) {
            return visitor.visit_seq(OneElement(None));
        }
        let found = Cell::default();
        let value = visitor.visit_seq(OneElement(Some(Recorder::new(self.registry, &found))));
        self.registry.borrow_mut().leave(key);
        let value = value?;
        let found: Option<Found> = found.get();
        let element = found.ok_or_else(|| DeError::custom("a list of nothing"))?;
        let array = self.registry.borrow_mut().array(element.r#type);
        self.is(Ref::Type(array));
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let tag = name.strip_prefix(FLAT_UNION);
        let object = || Kind::Object {
            members: Vec::new(),
            tag,
            cases: Vec::new(),
        };
        let at = (self.registry.borrow_mut()).at(type_name::<V::Value>(), object);
        self.is(Ref::Type(at));
        let mut fields = Fields {
            registry: self.registry,
            at,
            name,
            tag,
            fields,
            next: 0,
            case: Cell::default(),
            members: Vec::new(),
        };
        let value = visitor.visit_map(&mut fields)?;
        let members = std::mem::take(&mut fields.members);
        self.registry.borrow_mut().set_members(at, members);
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let key = type_name::<V::Value>();
        let is_alternate = variants.iter().any(|variant| variant.starts_with('@'));
        let at = match self.within {
            Within::Union(at) => at,
            Within::Struct(outer, at, case) if outer == name => {
                let chosen = self.registry.borrow_mut().choose(at, variants);
                case.set(Some(chosen));
                let values = (self.registry.borrow_mut()).at(key, || Kind::Enum(variants));
                self.is(Ref::Type(values));
                return visitor.visit_enum(self.one(variants, chosen, &Cell::default()));
            }
            _ if is_alternate => {
                let alternate = || Kind::Alternate(Vec::new());
                let at = self.registry.borrow_mut().at(key, alternate);
                self.is(Ref::Type(at));
                at
            }
            _ => {
                let at = (self.registry.borrow_mut()).at(key, || Kind::Enum(variants));
                self.is(Ref::Type(at));
                return visitor.visit_enum(self.one(variants, 0, &Cell::default()));
            }
        };
        // What leads to itself by one member would never come to the next one.
        let is_outermost = !is_alternate || self.registry.borrow_mut().enter(key);
        let chosen = match is_outermost {
            true => self.registry.borrow_mut().choose(at, variants),
            false => self.registry.borrow_mut().choose_simplest(at, variants),
        };
        let found = Cell::default();
        let value = visitor.visit_enum(self.one(variants, chosen, &found));
        if is_alternate && is_outermost {
            self.registry.borrow_mut().leave(key);
        }
        let value = value?;
        let content = found.get().map(|found| found.r#type);
        self.registry.borrow_mut().set_content(at, chosen, content);
        Ok(value)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 char bytes byte_buf unit_struct tuple tuple_struct map identifier ignored_any
    }
}

/// A list with one element.
struct OneElement<'a>(Option<Recorder<'a>>);

impl<'de> SeqAccess<'de> for OneElement<'_> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        let element = self.0.take();
        element.map(|element| seed.deserialize(element)).transpose()
    }
}

/// All members of a struct.
struct Fields<'a> {
    registry: &'a RefCell<Registry>,
    at: usize,
    name: &'static str,
    /// Of a flat union.
    tag: Option<&'static str>,
    fields: &'static [&'static str],
    next: usize,
    /// Of a union whose content has a name: what the discriminator has said.
    case: Cell<Option<usize>>,
    members: Vec<Member>,
}

impl<'de> MapAccess<'de> for &mut Fields<'_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeError> {
        let field = self.fields.get(self.next);
        field
            .map(|field| seed.deserialize(BorrowedStrDeserializer::new(field)))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        let name = self.fields.get(self.next).copied().unwrap_or_default();
        self.next += 1;
        let found = Cell::default();
        let said = self.case.get();
        let within = match (name, self.tag) {
            (VARIANT, Some(_)) => Within::Union(self.at),
            _ => Within::Struct(self.name, self.at, &self.case),
        };
        let value = seed.deserialize(Recorder {
            registry: self.registry,
            found: &found,
            within,
        })?;
        let found: Option<Found> = found.get();
        let Some(Found {
            is_optional,
            r#type,
        }) = found
        else {
            return Ok(value);
        };
        let member = |name| Member {
            name,
            is_optional,
            r#type,
        };
        match (name, self.tag, said) {
            (VARIANT, Some(_), _) => {}
            (TAG, Some(tag), _) => self.members.push(member(tag)),
            (BASE, Some(_), _) => {
                let base = self.registry.borrow().members(r#type);
                self.members.extend(base);
            }
            (_, _, Some(case)) => {
                let mut registry = self.registry.borrow_mut();
                let content = (!matches!(r#type, Ref::Builtin(_))).then(|| {
                    Ref::Type(registry.add(Kind::Object {
                        members: vec![member(name)],
                        tag: None,
                        cases: Vec::new(),
                    }))
                });
                registry.set_content(self.at, case, content);
            }
            (_, _, None) => self.members.push(member(name)),
        }
        Ok(value)
    }
}
