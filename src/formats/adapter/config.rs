//! `adapter_config.json`: reads files of PEFT 0.17 and later, and writes the 32 keys that all of these
//! versions know.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::CODE;
use crate::error::{Error, InputError, Result};
use crate::formats::python_json;
use crate::formats::strict_json::UniqueMap;

/// The configuration of a LoRA adapter, with PEFT's names. Defaults are PEFT's.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale: the update is `lora_alpha / r * B A x`, or `lora_alpha / sqrt(r)` with [`Self::use_rslora`].
    pub lora_alpha: f64,
    /// Probability that an element of the input of A is zeroed in training.
    pub lora_dropout: f64,
    /// The modules that are adapted.
    pub target_modules: TargetModules,
    /// The modules that are excluded although they match.
    pub exclude_modules: Option<TargetModules>,
    /// Layers to which `target_modules` is limited.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the layer lists that the indices of `layers_to_transform` refer to.
    pub layers_pattern: Option<Vec<String>>,
    /// Rank of the modules whose name matches a key; the first one counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// `lora_alpha` of the modules whose name matches a key; the first one counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the scale is `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Whether weights are split into magnitude and direction (DoRA).
    pub use_dora: bool,
    /// Which biases are trained: "none", "all" or "lora_only".
    pub bias: String,
    /// Whether base weights are stored as `[in, out]` (GPT-2).
    pub fan_in_fan_out: bool,
    /// Other modules that are trained and stored whole, such as a classifier head.
    pub modules_to_save: Option<Vec<String>>,
    /// The model that the adapter belongs to.
    pub base_model_name_or_path: Option<String>,
    /// Its commit.
    pub revision: Option<String>,
    /// "CAUSAL_LM", "SEQ_CLS", ...
    pub task_type: Option<String>,
    /// Whether PEFT freezes the adapter when it loads it; true in every saved file.
    pub inference_mode: bool,
    /// Unknown keys of the file. They have no effect; one that is true is refused.
    pub unknown_keys: Vec<String>,
}

/// The target modules of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Modules whose name is one of these, or ends in a dot and one of these.
    List(Vec<String>),
    /// "all-linear", or a regular expression for the whole name.
    Name(String),
    /// PEFT's default for the architecture; written as `null`.
    ModelDefault,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::ModelDefault,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
            bias: "none".to_owned(),
            fan_in_fan_out: false,
            modules_to_save: None,
            base_model_name_or_path: None,
            revision: None,
            task_type: None,
            inference_mode: true,
            unknown_keys: Vec::new(),
        }
    }
}

/// Keys that have no effect on a saved adapter, or that are read together with another key.
const IGNORED: [&str; 12] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "velora_config",
];

/// Keys that change the result in an unsupported way; refused unless null, false or empty.
const UNSUPPORTED: [&str; 11] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// Maximum rank; larger than the width of any model.
const MAX_RANK: u64 = 1 << 16;

impl AdapterConfig {
    /// Reads the text of an `adapter_config.json`; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] that names the key, if the text is no JSON object with distinct keys, the adapter is not LoRA, a
    /// value has the wrong type, or asks for something unsupported.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object: UniqueMap<Value> = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => {
                let line = error.line();
                let error = Error::input(CODE, format!("invalid JSON: {error}")).path(path).line(line);
                return error.fix("copy the file from the adapter again").into();
            }
        };
        Ok(Self::from_object(object.0).map_err(|error| error.path(path))?)
    }

    /// The text of the file: 32 keys, sorted, as Python writes them, without a newline at the end.
    pub fn to_json(&self) -> String {
        let list = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names.dedup();
            json!(names)
        };
        let targets = |targets: &TargetModules| match targets {
            TargetModules::List(names) => list(names),
            TargetModules::Name(name) => json!(name),
            TargetModules::ModelDefault => Value::Null,
        };
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let ranks: Map<_, _> = self.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let value = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": self.bias,
            "corda_config": null,
            "eva_config": null,
            "exclude_modules": self.exclude_modules.as_ref().map(targets),
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": self.inference_mode,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": self.layers_pattern,
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": self.modules_to_save.as_deref().map(list),
            "peft_type": "LORA",
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": targets(&self.target_modules),
            "target_parameters": null,
            "task_type": self.task_type,
            "trainable_token_indices": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
        });
        python_json::dumps(&value)
    }

    #[expect(clippy::result_large_err, reason = "read once per run; the path is added by the caller")]
    fn from_object(object: BTreeMap<String, Value>) -> Result<Self, InputError> {
        let mut keys = Keys(object);
        keys.require_lora()?;
        for key in UNSUPPORTED {
            keys.refuse(key)?;
        }
        keys.check_init()?;
        let default = Self::default();
        let mut config = Self {
            r: keys.take("r", "a whole number from 1 to 65536", rank)?.unwrap_or(default.r),
            lora_alpha: keys.take("lora_alpha", "a positive number", alpha)?.unwrap_or(default.lora_alpha),
            lora_dropout: keys
                .take("lora_dropout", "a number from 0 to below 1", probability)?
                .unwrap_or(0.0),
            target_modules: keys
                .optional("target_modules", "a name or a list of names", targets)?
                .unwrap_or(default.target_modules),
            exclude_modules: keys.optional("exclude_modules", "a name or a list of names", targets)?,
            layers_to_transform: keys.optional(
                "layers_to_transform",
                "a layer or a list of layers",
                layers,
            )?,
            layers_pattern: keys.optional("layers_pattern", "a name or a list of names", name_or_names)?,
            rank_pattern: keys.take("rank_pattern", "ranks by name", |v| map(v, rank))?.unwrap_or_default(),
            alpha_pattern: keys
                .take("alpha_pattern", "positive numbers by name", |v| map(v, alpha))?
                .unwrap_or_default(),
            use_rslora: keys.take("use_rslora", "true or false", Value::as_bool)?.unwrap_or(false),
            use_dora: keys.take("use_dora", "true or false", Value::as_bool)?.unwrap_or(false),
            bias: keys.take("bias", "\"none\", \"all\" or \"lora_only\"", bias)?.unwrap_or(default.bias),
            fan_in_fan_out: keys.take("fan_in_fan_out", "true or false", Value::as_bool)?.unwrap_or(false),
            modules_to_save: keys.optional("modules_to_save", "a list of names", names)?,
            base_model_name_or_path: keys.optional("base_model_name_or_path", "text", text)?,
            revision: keys.optional("revision", "text", text)?,
            task_type: keys.optional("task_type", "text", text)?,
            inference_mode: keys.take("inference_mode", "true or false", Value::as_bool)?.unwrap_or(true),
            unknown_keys: Vec::new(),
        };
        keys.refuse_switches()?;
        config.unknown_keys = keys.0.into_keys().filter(|key| !IGNORED.contains(&key.as_str())).collect();
        Ok(config)
    }
}

/// The keys of the file that have not been read yet.
struct Keys(BTreeMap<String, Value>);

#[expect(clippy::result_large_err, reason = "read once per run; the path is added by the caller")]
impl Keys {
    /// The value of `key`, which is `expected`; `None` if the key is missing.
    fn take<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, InputError> {
        let Some(value) = self.0.remove(key) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong(key, &value).expected(expected).fix("correct the value")),
        }
    }

    /// As [`Keys::take`], but null counts as missing.
    fn optional<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, InputError> {
        if self.0.get(key).is_some_and(Value::is_null) {
            self.0.remove(key);
        }
        self.take(key, expected, read)
    }

    fn require_lora(&self) -> Result<(), InputError> {
        match self.0.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => Ok(()),
            Some(other) => Err(wrong("peft_type", other).expected("\"LORA\"").fix("use a LoRA adapter")),
            None => Err(wrong("peft_type", &Value::Null)
                .expected("\"LORA\"")
                .fix("use an adapter that PEFT saved")),
        }
    }

    /// Takes a key that must not be in use.
    fn refuse(&mut self, key: &str) -> Result<(), InputError> {
        let Some(value) = self.0.remove(key) else { return Ok(()) };
        let unused = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match unused {
            true => Ok(()),
            false => {
                let error = Error::input(CODE, "this kind of adapter is not supported").field(key).got(value);
                Err(error.fix("use an adapter without it; ignoring it would give wrong results"))
            }
        }
    }

    /// An unknown switch that is on may change the result.
    fn refuse_switches(&mut self) -> Result<(), InputError> {
        let is_on = |(key, value): &(&String, &Value)| {
            **value == Value::Bool(true) && !IGNORED.contains(&key.as_str())
        };
        let on = self.0.iter().find(is_on).map(|(key, _)| key.clone());
        on.map_or(Ok(()), |key| self.refuse(&key))
    }

    /// Some initializations of an adapter also change the base weights, which are not in its file.
    fn check_init(&mut self) -> Result<(), InputError> {
        let key = "init_lora_weights";
        let Some(value) = self.0.remove(key) else { return Ok(()) };
        let harmless = match &value {
            Value::Null | Value::Bool(_) => true,
            Value::String(name) => matches!(name.as_str(), "gaussian" | "eva" | "orthogonal"),
            _ => false,
        };
        match harmless {
            true => Ok(()),
            false => Err(Error::input(CODE, "the adapter belongs to a changed base model")
                .field(key)
                .got(value)
                .fix("save it as plain LoRA (PEFT: path_initial_model_for_weight_conversion)")),
        }
    }
}

fn wrong(key: &str, value: &Value) -> InputError {
    Error::input(CODE, "wrong value").field(key).got(value)
}

/// An integer where it is one: PEFT writes `"lora_alpha": 16`.
fn number(value: f64) -> Value {
    const EXACT: f64 = (1u64 << 53) as f64;
    match value.fract() == 0.0 && value.abs() < EXACT {
        true => json!(value as i64),
        false => json!(value),
    }
}

fn rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|r| (1..=MAX_RANK).contains(r)).and_then(|r| usize::try_from(r).ok())
}

fn alpha(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| *x > 0.0 && x.is_finite())
}

fn probability(value: &Value) -> Option<f64> {
    value.as_f64().filter(|p| (0.0..1.0).contains(p))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn bias(value: &Value) -> Option<String> {
    text(value).filter(|bias| matches!(bias.as_str(), "none" | "all" | "lora_only"))
}

fn names(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text).collect()
}

fn name_or_names(value: &Value) -> Option<Vec<String>> {
    names(value).or_else(|| Some(vec![text(value)?]))
}

fn targets(value: &Value) -> Option<TargetModules> {
    names(value).map(TargetModules::List).or_else(|| text(value).map(TargetModules::Name))
}

fn layers(value: &Value) -> Option<Vec<usize>> {
    let layer = |value: &Value| value.as_u64().and_then(|i| usize::try_from(i).ok());
    match value {
        Value::Array(list) => list.iter().map(layer).collect(),
        one => Some(vec![layer(one)?]),
    }
}

fn map<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(key, value)| Some((key.clone(), read(value)?))).collect()
}
