//! One variant of an enum, for a visitor that wants one.

use super::error::DeError;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor,
};

/// One variant of an enum and what it is made of.
pub(crate) struct Alternative<'v, D> {
    variant: &'v str,
    content: D,
}

impl<'v, D> Alternative<'v, D> {
    /// `content` is asked for what the variant contains, if it contains anything.
    pub(crate) fn new(variant: &'v str, content: D) -> Self {
        Self { variant, content }
    }
}

impl<'de, D: Deserializer<'de, Error = DeError>> EnumAccess<'de> for Alternative<'_, D> {
    type Error = DeError;
    type Variant = Content<D>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), DeError> {
        let name: StrDeserializer<'_, DeError> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, Content(self.content)))
    }
}

pub(crate) struct Content<D>(D);

impl<'de, D: Deserializer<'de, Error = DeError>> VariantAccess<'de> for Content<D> {
    type Error = DeError;

    fn unit_variant(self) -> Result<(), DeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DeError> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, DeError> {
        self.0.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        self.0.deserialize_struct("", fields, visitor)
    }
}
