//! The syntax of the options about layers: block numbers, and values by name.

use serde::{Deserialize, Serialize};

/// Numbers of blocks: `3`, `[0, 1]`, or `"0,1"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenBlocks", into = "Vec<usize>")]
pub struct BlockNumbers(pub Vec<usize>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be the number of a block, or a list of numbers")]
enum WrittenBlocks {
    One(usize),
    Text(String),
    Many(Vec<OneBlock>),
}

/// A word of the command line may hold several numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneBlock {
    Number(usize),
    Text(String),
}

impl From<BlockNumbers> for Vec<usize> {
    fn from(blocks: BlockNumbers) -> Self {
        blocks.0
    }
}

impl TryFrom<WrittenBlocks> for BlockNumbers {
    type Error = String;

    fn try_from(written: WrittenBlocks) -> Result<Self, String> {
        let texts = match written {
            WrittenBlocks::One(number) => return Ok(Self(vec![number])),
            WrittenBlocks::Text(text) => vec![OneBlock::Text(text)],
            WrittenBlocks::Many(many) => many,
        };
        let mut numbers = Vec::new();
        for item in texts {
            match item {
                OneBlock::Number(number) => numbers.push(number),
                OneBlock::Text(text) => {
                    for word in words(&text) {
                        let number = word.parse().map_err(|_| format!("{word:?} is not a block number"))?;
                        numbers.push(number);
                    }
                }
            }
        }
        Ok(Self(numbers))
    }
}

/// Values by name, in the order in which they were given: `["q_proj=8", "mlp.up_proj=4"]`, `"q_proj=8,up_proj=4"`, or a table,
/// whose names count in alphabetical order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "V: Clone + ToString", deserialize = "V: Deserialize<'de> + std::str::FromStr"))]
#[serde(try_from = "WrittenValues<V>", into = "Vec<String>")]
pub struct ByName<V>(pub Vec<(String, V)>);

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be names with values, as in \"q_proj=8,up_proj=4\"")]
enum WrittenValues<V> {
    Text(String),
    Many(Vec<String>),
    Table(std::collections::BTreeMap<String, V>),
}

impl<V: ToString> From<ByName<V>> for Vec<String> {
    fn from(values: ByName<V>) -> Self {
        values.0.into_iter().map(|(name, value)| format!("{name}={}", value.to_string())).collect()
    }
}

impl<V: std::str::FromStr> TryFrom<WrittenValues<V>> for ByName<V> {
    type Error = String;

    fn try_from(written: WrittenValues<V>) -> Result<Self, String> {
        let pairs = match written {
            WrittenValues::Table(table) => return Ok(Self(table.into_iter().collect())),
            WrittenValues::Text(text) => vec![text],
            WrittenValues::Many(many) => many,
        };
        let mut values = Vec::new();
        for text in &pairs {
            // A comma may stand in an expression; a pair ends with its number.
            for pair in pairs_of(text) {
                let (name, value) =
                    pair.rsplit_once('=').ok_or_else(|| format!("{pair:?} has no value, as in q_proj=8"))?;
                let value = value.trim().parse().map_err(|_| format!("{pair:?} has no number after ="))?;
                values.push((name.trim().to_owned(), value));
            }
        }
        Ok(Self(values))
    }
}

/// The parts of a text that end in `=` and a number, by commas or spaces.
fn pairs_of(text: &str) -> Vec<&str> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while let Some(equals) = rest.find('=') {
        let end = rest[equals..].find([',', ' ']).map_or(rest.len(), |end| equals + end);
        pairs.push(&rest[..end]);
        rest = rest[end..].trim_start_matches([',', ' ']);
    }
    if !rest.is_empty() {
        pairs.push(rest);
    }
    pairs
}

/// Numbers with commas or spaces between, in brackets or not.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let between = |c: char| c == ',' || c.is_whitespace() || c == '[' || c == ']';
    text.split(between).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        blocks: BlockNumbers,
        ranks: ByName<usize>,
    }

    fn read(text: &str) -> Result<Sample, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn every_form_is_the_same_list() {
        let ranks = vec![("layers.0.mlp.up_proj".to_owned(), 4), ("q_proj".to_owned(), 8)];
        let expected = Sample { blocks: BlockNumbers(vec![0, 2]), ranks: ByName(ranks) };
        for (blocks, ranks) in [
            ("[0, 2]", "[\"layers.0.mlp.up_proj=4\", \"q_proj=8\"]"),
            ("\"0,2\"", "\"layers.0.mlp.up_proj=4,q_proj=8\""),
            ("[\"0\", \"2\"]", "\"layers.0.mlp.up_proj=4 q_proj=8\""),
            ("\"[0, 2]\"", "{ q_proj = 8, \"layers.0.mlp.up_proj\" = 4 }"),
        ] {
            let sample = read(&format!("blocks = {blocks}\nranks = {ranks}")).unwrap();
            assert_eq!(sample, expected, "{blocks} {ranks}");
            assert_eq!(read(&toml::to_string(&sample).unwrap()).unwrap(), expected);
        }
        assert_eq!(read("blocks = 3\nranks = []").unwrap().blocks, BlockNumbers(vec![3]));
        assert!(read("blocks = -1\nranks = []").is_err());
        assert!(read("blocks = \"a\"\nranks = []").unwrap_err().message().contains("\"a\""));
        for ranks in ["\"q_proj\"", "\"q_proj=\"", "\"q_proj=x\"", "\"q_proj=8,up\"", "[3]"] {
            assert!(read(&format!("blocks = 1\nranks = {ranks}")).is_err(), "{ranks}");
        }
    }
}
