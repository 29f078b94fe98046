//! The words an option may take, as types: each has its names in one list that files, flags and messages share.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::aliases::nearest;

/// Defines an enum whose values are words: the first literal is the name, the others are accepted too. Expands to the enum,
/// `WORDS` (all literals, by value), `Display` (the name) and `TryFrom<String>`, through which serde reads and writes it.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$value_doc:meta])* $value:ident = $($word:literal)|+,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $type { $($(#[$value_doc])* $value,)+ }
        impl $type {
            /// Per value: its name, then other spellings that are understood.
            pub const WORDS: &'static [&'static [&'static str]] = &[$(&[$($word),+]),+];
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => [$($word),+][0],)+ })
            }
        }
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() { $($($word)|+ => Ok(Self::$value),)+ _ => Err(unknown_word(&text, Self::WORDS)) }
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self { value.to_string() }
        }
    };
}

words!(
    /// What the model learns.
    Task {
        /// The next token, over the supervised tokens.
        Causal = "causal" | "causal_lm" | "CAUSAL_LM",
        /// One of a list of labels.
        Classify = "classify" | "seq_cls" | "SEQ_CLS",
        /// A number.
        Regress = "regress" | "regression",
    }
);

words!(
    /// How base weights are stored.
    Quant {
        /// As numbers of the computing type.
        None = "none",
        /// 4-bit NormalFloat of bitsandbytes.
        Nf4 = "nf4",
        /// 4-bit floating point of bitsandbytes.
        Fp4 = "fp4",
    }
);

words!(
    /// How a row becomes one text.
    Format {
        /// Chat for conversations and instructions if the model has a template, else plain.
        Auto = "auto",
        /// Input, a newline, output, end of text.
        Plain = "plain",
        /// The chat template of the model.
        Chat = "chat",
        /// A template over the columns of the row.
        Template = "template",
    }
);

words!(
    /// Which rows take part, by `meta.mode`.
    TrainMode {
        /// Rows that answer at once.
        Direct = "direct",
        /// Rows that reason first.
        Cot = "cot",
        /// All rows.
        Auto = "auto",
    }
);

words!(
    /// Course of the learning rate after the warm-up.
    LrScheduler {
        /// It stays.
        Constant = "constant" | "constant_with_warmup",
        /// A straight line to 0 at the last step.
        Linear = "linear",
        /// Half a cosine wave to 0 at the last step.
        Cosine = "cosine",
    }
);

words!(
    /// The loss.
    Loss {
        /// Negative log-probability.
        CrossEntropy = "cross_entropy" | "cross-entropy",
        /// Squared error.
        Mse = "mse",
        /// Squared error of the sigmoid of the output.
        SigmoidMse = "sigmoid_mse" | "sigmoid-mse",
        /// Binary cross-entropy of the sigmoid of the output.
        Bce = "bce",
    }
);

words!(
    /// How much of the dropout of the frozen model is applied in training.
    #[derive(Default)]
    BaseDropoutMode {
        /// None.
        #[default]
        Off = "off",
        /// That of embeddings, hidden states and the head, and not that of attention weights.
        Hidden = "hidden",
        /// All that config.json has; refused where that cannot be done.
        Config = "config",
    }
);

impl BaseDropoutMode {
    /// Whether this is [`BaseDropoutMode::Off`].
    pub(super) fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

impl TargetShift {
    /// Whether this is [`TargetShift::None`].
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

words!(
    /// How regression targets are moved before training, by numbers of the training file.
    #[derive(Default)]
    TargetShift {
        /// Not at all.
        #[default]
        None = "none",
        /// Minus the minimum.
        Min = "min",
        /// To the range from 0 to 1.
        Minmax = "minmax",
    }
);

words!(
    /// What happens to a row that is longer than `max_seq_length`.
    Truncation {
        /// An error that names the line.
        Error = "error",
        /// The oldest text is cut, and old turns; the last answer and the template stay.
        PromptLeft = "prompt-left" | "prompt_left",
        /// The row is left out and counted.
        Skip = "skip",
    }
);

words!(
    /// Type of weights and activations.
    Dtype {
        /// IEEE 754 single.
        F32 = "f32" | "float32" | "fp32",
        /// The upper half of a single; sums and statistics stay f32.
        Bf16 = "bf16" | "bfloat16",
    }
);

words!(
    /// What blocks keep for the backward pass: memory against work. It changes no result.
    ActivationPolicy {
        /// What costs least work within the memory limit.
        Auto = "auto",
        /// Everything that is read again.
        KeepAll = "keep_all" | "keep-all",
        /// Everything but gate and up of the MLP.
        DropGateUp = "drop_gate_up" | "drop-gate-up",
        /// The input of every block.
        Checkpoint = "checkpoint",
    }
);

words!(
    /// What is computed for every row of a data file.
    ScoreMode {
        /// What the adapter was trained for; without an adapter, log-probabilities.
        Auto = "auto",
        /// Log-probabilities of the supervised tokens.
        Logprob = "logprob",
        /// Which of the given answers is most probable.
        Choice = "choice" | "direct",
        /// The answer, token by token.
        Generate = "generate" | "cot",
        /// The most probable labels.
        Classify = "classify",
        /// The predicted number.
        Regress = "regress",
    }
);

/// The compute device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best device there is.
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
    /// The GPU kernels, run by an emulator on the processor.
    Emulated,
}

impl DeviceChoice {
    /// Whether the kernels of GPUs are asked for by name, wherever they run.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda(_) | Self::Emulated)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Emulated => f.write_str("emulated"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        match (text.as_str(), index) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda" | "gpu", _) => Ok(Self::Cuda(0)),
            ("emulated", _) => Ok(Self::Emulated),
            (_, Some(index)) => Ok(Self::Cuda(index)),
            _ => Err("must be auto, cpu, cuda, cuda:N or emulated".to_owned()),
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(value: DeviceChoice) -> Self {
        value.to_string()
    }
}

/// Where a run goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Resume {
    /// The newest complete checkpoint in the output folder; a fresh start if there is none.
    Auto,
    /// This checkpoint folder.
    Dir(PathBuf),
}

impl From<PathBuf> for Resume {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::Dir(path) }
    }
}

impl From<Resume> for PathBuf {
    fn from(resume: Resume) -> Self {
        match resume {
            Resume::Auto => "auto".into(),
            Resume::Dir(path) => path,
        }
    }
}

/// How rows are grouped into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// This many rows.
    Samples(usize),
    /// As many rows as fit into this many tokens. In training a longer row is an error, in scoring a batch of its own.
    Tokens(usize),
}

/// Reads one text or a list of texts; lists may be written `a,b` where `split` says so.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// For serde: a path or a list of paths.
pub(super) fn paths<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(match OneOrMany::deserialize(from).map_err(|_| list_expected())? {
        OneOrMany::One(path) => vec![path.into()],
        OneOrMany::Many(paths) => paths.into_iter().map(PathBuf::from).collect(),
    })
}

/// For serde: `"a,b"` or `["a", "b"]`.
pub(super) fn list<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(match OneOrMany::deserialize(from).map_err(|_| list_expected())? {
        OneOrMany::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        OneOrMany::Many(parts) => parts,
    })
}

fn list_expected<E: serde::de::Error>() -> E {
    E::custom("must be a text or a list of texts")
}

/// The message for a word that is in none of the lists.
fn unknown_word(text: &str, words: &[&[&str]]) -> String {
    let names: Vec<&str> = words.iter().map(|spellings| spellings[0]).collect();
    let hint = nearest(text, names.iter().copied()).map(|name| format!(" (did you mean \"{name}\"?)"));
    format!("must be one of {}{}", names.join(", "), hint.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_their_aliases_and_print_their_name() {
        assert_eq!(Dtype::try_from("bfloat16".to_owned()), Ok(Dtype::Bf16));
        assert_eq!(Dtype::Bf16.to_string(), "bf16");
        let error = LrScheduler::try_from("linaer".to_owned()).unwrap_err();
        assert_eq!(error, "must be one of constant, linear, cosine (did you mean \"linear\"?)");
    }

    #[test]
    fn devices_have_indices() {
        for text in ["auto", "cpu", "cuda", "cuda:3", "emulated"] {
            assert_eq!(DeviceChoice::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        assert_eq!(DeviceChoice::try_from("cuda:0".to_owned()), Ok(DeviceChoice::Cuda(0)));
        for text in ["cuda:", "cuda:x", "tpu", ""] {
            assert!(DeviceChoice::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
