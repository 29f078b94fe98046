//! The syntax of the options about labels: numbers by output.

use serde::{Deserialize, Serialize};

/// Numbers: `[1.0, 0.5]`, `"1,0.5"`, or a single one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenNumbers", into = "Vec<f64>")]
pub struct Numbers(pub Vec<f64>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be numbers with commas between, or a list of numbers")]
enum WrittenNumbers {
    One(f64),
    Text(String),
    Many(Vec<OneNumber>),
}

/// A word of the command line may hold several numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneNumber {
    Number(f64),
    Text(String),
}

impl From<Numbers> for Vec<f64> {
    fn from(numbers: Numbers) -> Self {
        numbers.0
    }
}

impl TryFrom<WrittenNumbers> for Numbers {
    type Error = String;

    fn try_from(written: WrittenNumbers) -> Result<Self, String> {
        let parts = match written {
            WrittenNumbers::One(number) => vec![OneNumber::Number(number)],
            WrittenNumbers::Text(text) => vec![OneNumber::Text(text)],
            WrittenNumbers::Many(many) => many,
        };
        let mut numbers = Vec::new();
        for part in parts {
            match part {
                OneNumber::Number(number) => numbers.push(number),
                OneNumber::Text(text) => {
                    let between = |c: char| c == ',' || c.is_whitespace() || c == '[' || c == ']';
                    for word in text.split(between).filter(|word| !word.is_empty()) {
                        numbers.push(word.parse().map_err(|_| format!("{word:?} is not a number"))?);
                    }
                }
            }
        }
        match numbers.is_empty() {
            true => Err("must have at least one number".to_owned()),
            false => Ok(Self(numbers)),
        }
    }
}

/// Weights of classes: numbers, or `balanced`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenWeights", into = "WrittenWeights")]
pub enum ClassWeights {
    /// `rows / (classes * rows of the class)`, over the training rows, as scikit-learn has it; 0 for a class without rows.
    Balanced,
    /// One number per class.
    Numbers(Numbers),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "must be balanced, or numbers with commas between")]
enum WrittenWeights {
    Text(String),
    Many(Vec<String>),
    Numbers(Numbers),
}

impl From<ClassWeights> for WrittenWeights {
    fn from(weights: ClassWeights) -> Self {
        match weights {
            ClassWeights::Balanced => Self::Text("balanced".to_owned()),
            ClassWeights::Numbers(numbers) => Self::Numbers(numbers),
        }
    }
}

impl TryFrom<WrittenWeights> for ClassWeights {
    type Error = String;

    fn try_from(written: WrittenWeights) -> Result<Self, String> {
        let text = match written {
            WrittenWeights::Numbers(numbers) => return Ok(Self::Numbers(numbers)),
            WrittenWeights::Text(text) => text,
            WrittenWeights::Many(words) => words.join(","),
        };
        match text.trim() {
            "balanced" => Ok(Self::Balanced),
            text => Numbers::try_from(WrittenNumbers::Text(text.to_owned())).map(Self::Numbers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        weights: ClassWeights,
        numbers: Numbers,
    }

    #[test]
    fn numbers_come_as_text_and_as_lists_and_go_back() {
        for (weights, numbers) in [
            ("\"1, 0.5 2\"", "[1, 0.5, 2]"),
            ("[1.0, 0.5, 2.0]", "\"[1,0.5,2]\""),
            ("[\"1,0.5\", \"2\"]", "[\"1,0.5\",\"2\"]"),
        ] {
            let both: Both = toml::from_str(&format!("weights = {weights}\nnumbers = {numbers}")).unwrap();
            let expected = Numbers(vec![1.0, 0.5, 2.0]);
            assert_eq!(both, Both { weights: ClassWeights::Numbers(expected.clone()), numbers: expected });
            assert_eq!(toml::from_str::<Both>(&toml::to_string(&both).unwrap()).unwrap(), both);
        }
        let both: Both = toml::from_str("weights = \"balanced\"\nnumbers = 3").unwrap();
        assert_eq!(both, Both { weights: ClassWeights::Balanced, numbers: Numbers(vec![3.0]) });
        assert_eq!(toml::from_str::<Both>(&toml::to_string(&both).unwrap()).unwrap(), both);
        for wrong in ["\"balance\"", "\"\"", "true", "[\"a\"]"] {
            assert!(toml::from_str::<Both>(&format!("weights = {wrong}\nnumbers = 3")).is_err(), "{wrong}");
        }
    }
}
