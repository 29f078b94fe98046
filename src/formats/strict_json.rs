//! A JSON object that refuses duplicate keys and has a bounded number of entries.
//!
//! serde_json keeps the last of two equal keys, so two programs may read two different files out of the same bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Most entries of one object: as many as a tensor file may have tensors.
const MAX_ENTRIES: usize = 1_000_000;

/// An object whose keys are all different.
#[derive(Debug)]
pub(super) struct UniqueMap<V>(pub(super) BTreeMap<String, V>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Object<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format!("more than {MAX_ENTRIES} entries")));
                    }
                    match entries.entry(key) {
                        Entry::Vacant(place) => place.insert(map.next_value()?),
                        Entry::Occupied(place) => {
                            return Err(A::Error::custom(format!("duplicate key {:?}", place.key())));
                        }
                    };
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_refused_however_they_are_spelled() {
        let read = |text: &str| serde_json::from_str::<UniqueMap<u8>>(text);
        assert_eq!(read(r#"{"b":1,"a":2}"#).unwrap().0.len(), 2);
        let error = read(r#"{"a":1,"\u0061":2}"#).unwrap_err().to_string();
        assert!(error.contains("duplicate key \"a\""), "{error}");
        assert!(read("[1]").is_err());
    }
}
