//! The keys of a configuration type, derived from the type itself, so that there is no second list of
//! options.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Names of the fields of `T`, a struct that derives `Deserialize`, in the order of its declaration.
pub fn keys_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    // A derived implementation hands its field names to the deserializer before it reads anything.
    match T::deserialize(FieldNames) {
        Err(Names(names)) => names,
        Ok(_) => &[],
    }
}

/// A deserializer that reads nothing and captures the field names it is asked for.
struct FieldNames;

/// The captured names, returned as an error.
#[derive(Debug)]
struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for FieldNames {
    type Error = Names;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_their_order() {
        #[derive(serde::Deserialize)]
        struct Sample {
            #[expect(dead_code, reason = "only its name is looked at")]
            second: u8,
            #[expect(dead_code, reason = "only its name is looked at")]
            first: Option<String>,
        }
        assert_eq!(keys_of::<Sample>(), ["second", "first"]);
        assert!(keys_of::<u8>().is_empty());
    }
}
