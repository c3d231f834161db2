//! A JSON list, or `null` for an empty one, that is bounded while it is read: a reply of nothing but
//! commas has millions of items.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// The first `MOST` items, and how many there are.
#[derive(Default)]
pub(super) struct List<'a, const MOST: usize> {
    pub(super) items: Vec<&'a RawValue>,
    pub(super) length: usize,
}

impl<'de: 'a, 'a, const MOST: usize> Deserialize<'de> for List<'a, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<const MOST: usize>;

        impl<'de, const MOST: usize> Visitor<'de> for Items<MOST> {
            type Value = List<'de, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or null")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(List::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = List::default();
                while list.length < MOST
                    && let Some(item) = seq.next_element()?
                {
                    list.items.push(item);
                    list.length += 1;
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    list.length += 1;
                }
                Ok(list)
            }
        }

        deserializer.deserialize_any(Items::<MOST>)
    }
}
