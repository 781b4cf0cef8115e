//! The names of all fields that a type reads, found by having it read from something that has them all.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, Error};
use serde::de::{
    DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserializer, forward_to_deserialize_any};

/// What every text is: something that those fields take too which want a text of a certain form.
const CAPABILITY: &str = "CAP_CHOWN";
const PROCESSORS: &str = "0-1";

/// The paths of the fields of `T` that have no fields themselves, `/` before each name and `*` for what a list or a map
/// holds.
pub(super) fn fields<T: DeserializeOwned>() -> BTreeSet<String> {
    let leaves = RefCell::default();
    T::deserialize(Everything { path: String::new(), leaves: &leaves }).unwrap();
    leaves.into_inner()
}

/// A value that is whatever is wanted of it.
struct Everything<'a> {
    path: String,
    leaves: &'a RefCell<BTreeSet<String>>,
}

impl Everything<'_> {
    fn below(&self, name: impl fmt::Display) -> Self {
        Self { path: format!("{}/{name}", self.path), leaves: self.leaves }
    }

    fn leaf(&self) {
        self.leaves.borrow_mut().insert(self.path.clone());
    }

    fn text(&self) -> &'static str {
        if self.path.contains("execCPUAffinity") { PROCESSORS } else { CAPABILITY }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
            self.leaf();
            visitor.visit_u8(0)
        })*
    };
}

impl Deserializer<'static> for Everything<'_> {
    type Error = Error;

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_bool(false)
    }

    fn deserialize_any<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_borrowed_str(self.text())
    }

    fn deserialize_option<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        let names = vec!["*"];
        visitor.visit_seq(Members { of: self, names })
    }

    fn deserialize_map<V: Visitor<'static>>(self, visitor: V) -> Result<V::Value, Error> {
        let names = vec!["*"];
        visitor.visit_map(Members { of: self, names })
    }

    fn deserialize_struct<V: Visitor<'static>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if fields.is_empty() {
            self.leaf();
        }
        visitor.visit_map(Members { of: self, names: fields.iter().rev().copied().collect() })
    }

    fn deserialize_enum<V: Visitor<'static>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_enum(Variant(variants[0]))
    }

    forward_to_deserialize_any! { <V: Visitor<'static>>
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// What a list, a map or a structure holds; the last name comes first.
struct Members<'a> {
    of: Everything<'a>,
    names: Vec<&'static str>,
}

impl<'a> MapAccess<'static> for Members<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'static>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.names.last().map(|name| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'static>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.of.below(self.names.pop().unwrap()))
    }
}

impl<'a> SeqAccess<'static> for Members<'a> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'static>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.names.pop().map(|name| seed.deserialize(self.of.below(name))).transpose()
    }
}

fn holds_something() -> Error {
    serde::de::Error::custom("an enumeration that holds something: the walk does not know it")
}

/// A variant of an enumeration, which has nothing in it.
struct Variant(&'static str);

impl EnumAccess<'static> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'static>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(BorrowedStrDeserializer::new(self.0))?, self))
    }
}

impl VariantAccess<'static> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'static>>(self, _: T) -> Result<T::Value, Error> {
        Err(holds_something())
    }

    fn tuple_variant<V: Visitor<'static>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(holds_something())
    }

    fn struct_variant<V: Visitor<'static>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(holds_something())
    }
}
