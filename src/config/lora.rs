//! The adapter: rank, scale, dropout, and which linear layers get one. Names are those of PEFT; `targets.rs` has its rules.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::aliases::nearest;
use super::sites::last_part;
use crate::error::{Error, InputError, Result};

/// Largest rank that is accepted.
pub const MAX_RANK: usize = 4096;

/// Names of linear layers in the families of the variant files; other names are treated as typing errors.
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
    /// Probability that an element of the input of A is dropped.
    pub dropout: f64,
    /// The target layers.
    pub target_modules: TargetModules,
    /// Layers that are excluded although they match.
    pub exclude_modules: Option<TargetModules>,
    /// Blocks to which a list of names is limited; all if absent or empty.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the block lists that the indices of `layers_to_transform` refer to; any if empty.
    pub layers_pattern: Vec<String>,
    /// Ranks of layers whose path ends in a match; the first one counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of layers whose path ends in a match; the first one counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the scale is `alpha / sqrt(r)` (rank-stabilised LoRA) instead of `alpha / r`.
    pub use_rslora: bool,
    /// Whether the weight is split into magnitude and direction.
    pub use_dora: bool,
}

impl LoraConfig {
    /// The factor before `B A` of a layer without patterns.
    pub fn scaling(&self) -> f64 {
        self.scaling_of(self.r, self.alpha)
    }

    /// The factor before `B A` for a rank and alpha. Nothing else in the crate divides alpha by r.
    pub(super) fn scaling_of(&self, r: usize, alpha: f64) -> f64 {
        let r = r as f64;
        alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// The target layers, as text.
    pub fn describe_layers(&self) -> String {
        let mut text = match &self.target_modules {
            TargetModules::AllLinear => "all linear layers".to_owned(),
            modules => modules.to_string(),
        };
        if let Some(modules) = &self.exclude_modules {
            text += &format!(" without {modules}");
        }
        if let Some(layers) = self.layers_to_transform.as_deref().filter(|layers| !layers.is_empty()) {
            let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
            text += &format!(" of blocks {}", numbers.join(","));
        }
        for (what, patterns) in [
            ("r", self.rank_pattern.iter().map(|(name, r)| format!("{name}={r}")).collect::<Vec<_>>()),
            ("alpha", self.alpha_pattern.iter().map(|(name, x)| format!("{name}={x}")).collect()),
        ] {
            if !patterns.is_empty() {
                text += &format!(", {what} {}", patterns.join(","));
            }
        }
        text
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
        let is_rank = |r: &usize| (1..=MAX_RANK).contains(r);
        let is_alpha = |alpha: &f64| *alpha > 0.0 && alpha.is_finite();
        let ranks = self.rank_pattern.iter().find(|(_, r)| !is_rank(r));
        let alphas = self.alpha_pattern.iter().find(|(_, alpha)| !is_alpha(alpha));
        let (rank, alpha) = ("1 to 4096", "a finite number above 0");
        let (field, got, expected, fix) = if !is_rank(&self.r) {
            ("lora_r", self.r.to_string(), rank, "8 to 64 is usual")
        } else if !is_alpha(&self.alpha) {
            ("lora_alpha", self.alpha.to_string(), alpha, "twice lora_r is usual")
        } else if !(0.0..1.0).contains(&self.dropout) {
            ("lora_dropout", self.dropout.to_string(), "0 to below 1", "0 to 0.1 is usual")
        } else if let Some((name, r)) = ranks {
            ("rank_pattern", format!("{name}={r}"), rank, "8 to 64 is usual")
        } else if let Some((name, x)) = alphas {
            ("alpha_pattern", format!("{name}={x}"), alpha, "twice the rank is usual")
        } else {
            let target = self.target_modules.fault("target_modules");
            let exclude = || self.exclude_modules.as_ref()?.fault("exclude_modules");
            return target
                .map(|fault| ("target_modules", fault))
                .or_else(|| Some(("exclude_modules", exclude()?)));
        };
        let fault = Error::input("CONFIG", "out of range").field(field).got(got).expected(expected).fix(fix);
        Some((field, fault))
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
        }
    }
}

/// Some linear layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub enum TargetModules {
    /// Every linear layer of every block, not the head.
    AllLinear,
    /// Those with these paths, or with paths that end in a dot and one of these.
    List(Vec<String>),
    /// Those whose whole path matches this regular expression.
    Pattern(String),
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str("all-linear"),
            Self::List(names) => f.write_str(&names.join(",")),
            Self::Pattern(text) => f.write_str(text),
        }
    }
}

impl TargetModules {
    /// True if a text is a regular expression and not names: names contain none of these characters.
    pub(crate) fn is_expression(text: &str) -> bool {
        text.contains(['*', '+', '?', '^', '$', '|', '(', ')', '\\', '{', '}'])
            || text.contains(['[', ']']) && !(text.starts_with('[') && text.ends_with(']'))
    }

    /// The first broken rule: there must be names, each with an end that is known and given once.
    fn fault(&self, field: &str) -> Option<InputError> {
        let error = |what: &str| {
            Error::input("CONFIG", what)
                .field(field)
                .expected(format!("all-linear or names such as {}", MODULE_NAMES[..7].join(", ")))
        };
        let names = match self {
            Self::AllLinear if field == "exclude_modules" => {
                return Some(
                    error("this excludes every layer").got(self).fix("name the layers to leave out"),
                );
            }
            Self::AllLinear | Self::Pattern(_) => return None,
            Self::List(names) => names,
        };
        if names.is_empty() {
            return Some(error("no layer is named").fix("use all-linear"));
        }
        for (index, name) in names.iter().enumerate() {
            let end = last_part(name);
            if !MODULE_NAMES.contains(&end) {
                let fix = match nearest(end, MODULE_NAMES) {
                    Some(known) => format!("did you mean {known}?"),
                    None => "give the path of a layer or its end, such as q_proj or layers.0.mlp.up_proj"
                        .to_owned(),
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

/// The forms in a file: `"all-linear"`, `"a,b"`, `["a", "b"]`, or a regular expression.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "must be all-linear, names with commas between, a list of names, or a regular expression"
)]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<Names> for TargetModules {
    type Error = String;
    fn try_from(names: Names) -> Result<Self, String> {
        let expression = match &names {
            Names::One(text) => Some(text),
            Names::Many(names) => names.first().filter(|_| names.len() == 1),
        };
        if let Some(text) = expression.filter(|text| Self::is_expression(text)) {
            return Ok(Self::Pattern(text.clone()));
        }
        let names = match names {
            Names::One(text) => split_names(&text),
            // Each item may hold several names, as words of the command line do.
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
            TargetModules::Pattern(text) => Self::One(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(target_modules: TargetModules) -> LoraConfig {
        LoraConfig { target_modules, ..LoraConfig::default() }
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
            (LoraConfig { exclude_modules: Some(TargetModules::AllLinear), ..good() }, "exclude_modules"),
            (LoraConfig { exclude_modules: Some(list(&["qq"])), ..good() }, "exclude_modules"),
            (LoraConfig { rank_pattern: vec![("q_proj".into(), 0)], ..good() }, "rank_pattern"),
            (LoraConfig { alpha_pattern: vec![("q_proj".into(), -1.0)], ..good() }, "alpha_pattern"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(field), "{bad:?}");
        }
        let error = lora(list(&["qproj"])).validate().unwrap_err().to_string();
        assert!(error.contains("did you mean q_proj?"), "{error}");
        let error = lora(list(&["model.layers.0.self_attn.qproj"])).validate().unwrap_err().to_string();
        assert!(error.contains("did you mean q_proj?"), "{error}");
    }

    #[test]
    fn expressions_are_told_from_names() {
        let read = |text: &str| TargetModules::try_from(Names::One(text.to_owned())).unwrap();
        for text in [r".*\.[qv]_proj", "model.layers.[01].*q_proj", ".*(q|v)_proj", r"(?!.*\.0\.).*up_proj"] {
            assert_eq!(read(text), TargetModules::Pattern(text.to_owned()));
            assert_eq!(TargetModules::try_from(Names::from(read(text))).unwrap(), read(text), "{text}");
        }
        assert_eq!(read("model.layers.0.mlp.up_proj"), list(&["model.layers.0.mlp.up_proj"]));
    }
}
