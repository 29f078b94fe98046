//! The adapter: rank, scale, dropout, and which linear layers get one. Names are those of PEFT.

use serde::{Deserialize, Serialize};

use super::aliases::nearest;
use super::model::{LINEAR_MODULES, ModelConfig};
use crate::error::{Error, InputError, Result};

/// Largest rank that is accepted.
pub const MAX_RANK: usize = 4096;

/// Names of linear layers in the families of the variant files; others are typing errors.
pub(super) const MODULE_NAMES: [&str; 21] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_attn",
    "c_proj",
    "c_fc",
    "query",
    "key",
    "value",
    "dense",
    "Wqkv",
    "Wi",
    "Wo",
    "lm_head",
    "embed_tokens",
    "score",
    "classifier",
];

/// An adapter: `y = W x + scaling * B A x` for every targeted linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank: rows of A and columns of B.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Probability that an input of A is dropped.
    pub dropout: f64,
    /// Which layers.
    pub target_modules: TargetModules,
    /// Whether the scale is `alpha / sqrt(r)` (rank-stabilised LoRA) instead of `alpha / r`.
    pub use_rslora: bool,
    /// Whether the weight is split into magnitude and direction.
    pub use_dora: bool,
}

impl LoraConfig {
    /// The factor before `B A`. Nothing else in the crate divides alpha by r.
    pub fn scaling(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// The targeted layers of a block of `model`, in the order of the forward pass.
    ///
    /// # Errors
    /// An input error if the model has no layer of a name.
    pub fn modules_of(&self, model: &ModelConfig) -> Result<Vec<&'static str>> {
        let all = model.linear_modules();
        let TargetModules::List(names) = &self.target_modules else {
            return Ok(all.to_vec());
        };
        match names.iter().find(|name| !all.contains(&name.as_str())) {
            None => {
                Ok(all.iter().copied().filter(|module| names.iter().any(|name| name == module)).collect())
            }
            Some(name) => Error::input("CONFIG", format!("{} models have no such layer", model.family))
                .field("target_modules")
                .got(name)
                .expected(all.join(", "))
                .fix("name layers of this model, or all-linear")
                .into(),
        }
    }

    /// Checks the numbers and names.
    ///
    /// # Errors
    /// An input error of class `CONFIG` that names the option.
    pub fn validate(&self) -> Result<()> {
        self.fault().map_or(Ok(()), |(_, fault)| fault.into())
    }

    /// The first broken rule and the option it is about.
    pub(super) fn fault(&self) -> Option<(&'static str, InputError)> {
        let (field, got, expected, fix) = if self.r == 0 || self.r > MAX_RANK {
            ("lora_r", self.r.to_string(), "1 to 4096", "8 to 64 is usual")
        } else if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            ("lora_alpha", self.alpha.to_string(), "a finite number above 0", "twice lora_r is usual")
        } else if !(0.0..1.0).contains(&self.dropout) {
            ("lora_dropout", self.dropout.to_string(), "0 to below 1", "0 to 0.1 is usual")
        } else {
            return self.target_modules.fault().map(|fault| ("target_modules", fault));
        };
        let fault = Error::input("CONFIG", "out of range").field(field).got(got).expected(expected).fix(fix);
        Some((field, fault))
    }
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub enum TargetModules {
    /// Every linear layer of every block, not the head.
    AllLinear,
    /// Layers of these names, in every block.
    List(Vec<String>),
}

impl TargetModules {
    /// The first broken rule: there must be names, each known and given once.
    fn fault(&self) -> Option<InputError> {
        let Self::List(names) = self else { return None };
        let error = |what: &str| {
            Error::input("CONFIG", what)
                .field("target_modules")
                .expected(format!("all-linear or names such as {}", LINEAR_MODULES.join(", ")))
        };
        if names.is_empty() {
            return Some(error("no layer is named").fix("use all-linear"));
        }
        for (index, name) in names.iter().enumerate() {
            if !MODULE_NAMES.contains(&name.as_str()) {
                let fix = match nearest(name, MODULE_NAMES) {
                    Some(known) => format!("did you mean {known}?"),
                    None => "give the last part of the layer's name, without a path or pattern".to_owned(),
                };
                return Some(error("not a known layer").got(name).fix(fix));
            }
            if names[..index].contains(name) {
                return Some(error("a layer is named twice").got(name).fix("name it once"));
            }
        }
        None
    }
}

/// The forms in a file: `"all-linear"`, `"a,b"` or `["a", "b"]`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "must be all-linear, names with commas between, or a list of names")]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<Names> for TargetModules {
    type Error = String;
    fn try_from(names: Names) -> Result<Self, String> {
        let names = match names {
            Names::One(text) => split_names(&text),
            // Each may be several: that is how the words of a command line arrive.
            Names::Many(names) => names.iter().flat_map(|names| split_names(names)).collect(),
        };
        // "all" is LLaMA-Factory's word.
        match names.as_slice() {
            [one] if ["all-linear", "all_linear", "all"].contains(&one.as_str()) => Ok(Self::AllLinear),
            _ => Ok(Self::List(names)),
        }
    }
}

/// Names with commas or spaces between, in brackets and quotes or not: `a,b`, `a b`, `[a, b]`, `["a", "b"]`.
fn split_names(text: &str) -> Vec<String> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if inner.trim().is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> = match inner.contains(',') {
        true => inner.split(',').collect(),
        false => inner.split_whitespace().collect(),
    };
    let bare = |name: &str| name.trim().trim_matches(['"', '\'']).to_owned();
    // A comma at the end of a word of the command line, as in `a, b`.
    names.into_iter().map(bare).filter(|name| !name.is_empty()).collect()
}

impl From<TargetModules> for Names {
    fn from(modules: TargetModules) -> Self {
        match modules {
            TargetModules::AllLinear => Self::One("all-linear".to_owned()),
            TargetModules::List(names) => Self::Many(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variant;

    fn lora(modules: TargetModules) -> LoraConfig {
        LoraConfig {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: modules,
            use_rslora: false,
            use_dora: false,
        }
    }

    fn list(names: &[&str]) -> TargetModules {
        TargetModules::List(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn scaling_follows_peft() {
        let mut config = lora(TargetModules::AllLinear);
        assert_eq!(config.scaling(), 2.0);
        config.use_rslora = true;
        assert_eq!(config.scaling(), 8.0);
    }

    #[test]
    fn lists_are_understood_as_tools_write_them() {
        for text in [
            "q_proj,v_proj",
            "q_proj v_proj",
            "[q_proj, v_proj]",
            "['q_proj', \"v_proj\"]",
            " q_proj, v_proj ",
        ] {
            let modules = TargetModules::try_from(Names::One(text.to_owned())).unwrap();
            assert_eq!(modules, list(&["q_proj", "v_proj"]), "{text}");
        }
        let words = Names::Many(vec!["q_proj,".to_owned(), "v_proj".to_owned()]);
        assert_eq!(TargetModules::try_from(words).unwrap(), list(&["q_proj", "v_proj"]));
        for text in ["all", "all-linear", "[all-linear]"] {
            assert_eq!(
                TargetModules::try_from(Names::One(text.to_owned())).unwrap(),
                TargetModules::AllLinear
            );
        }
        assert_eq!(TargetModules::try_from(Names::One("[]".to_owned())).unwrap(), list(&[]));
    }

    #[test]
    fn modules_come_in_the_order_of_the_model() {
        let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
        assert_eq!(lora(TargetModules::AllLinear).modules_of(&model).unwrap(), LINEAR_MODULES);
        let some = lora(list(&["v_proj", "q_proj"])).modules_of(&model).unwrap();
        assert_eq!(some, ["q_proj", "v_proj"]);
        let error = lora(list(&["c_attn"])).modules_of(&model).unwrap_err().to_string();
        assert!(error.contains("c_attn") && error.contains("q_proj"), "{error}");
    }

    #[test]
    fn bad_numbers_and_names_are_refused() {
        let good = || lora(TargetModules::AllLinear);
        assert!(good().validate().is_ok());
        for (bad, field) in [
            (LoraConfig { r: 0, ..good() }, "lora_r"),
            (LoraConfig { r: 4097, ..good() }, "lora_r"),
            (LoraConfig { alpha: 0.0, ..good() }, "lora_alpha"),
            (LoraConfig { alpha: f64::NAN, ..good() }, "lora_alpha"),
            (LoraConfig { dropout: -0.1, ..good() }, "lora_dropout"),
            (LoraConfig { dropout: 1.0, ..good() }, "lora_dropout"),
            (LoraConfig { dropout: f64::NAN, ..good() }, "lora_dropout"),
            (lora(list(&[])), "target_modules"),
            (lora(list(&["q_proj", "q_proj"])), "target_modules"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(field), "{bad:?}");
        }
        let error = lora(list(&["qproj"])).validate().unwrap_err().to_string();
        assert!(error.contains("did you mean q_proj?"), "{error}");
    }
}
