//! Other names of the options: those of Hugging Face, TRL, PEFT, LLaMA-Factory, axolotl, Unsloth and torchtune.
//!
//! One table for TOML files and for the command line, so that both understand the same words. Names are in the spelling of
//! the command line; a file may write `_` for `-`.

/// An option (TOML spelling) and its other names (command line spelling).
pub type Alias = (&'static str, &'static [&'static str]);

/// Other names of the options of `train`.
pub const TRAIN: &[Alias] = &[
    ("model", &["model-name", "model-name-or-path", "base-model", "pretrained-model-name-or-path"]),
    ("train_file", &["train-data", "train-files", "data-file"]),
    ("eval_file", &["eval-data", "valid-file", "validation-file"]),
    ("eval_fraction", &["val-size", "val-set-size", "test-size"]),
    ("task", &["task-type", "lora-task-type"]),
    ("init_adapter", &["adapter-name-or-path", "adapter", "lora-model-dir"]),
    ("resume", &["resume-from-checkpoint"]),
    ("overwrite", &["force", "overwrite-output-dir"]),
    ("dtype", &["torch-dtype", "bnb-4bit-compute-dtype"]),
    ("num_epochs", &["num-train-epochs", "epochs"]),
    ("batch_size", &["per-device-train-batch-size", "train-batch-size", "micro-batch-size"]),
    ("eval_batch_size", &["per-device-eval-batch-size"]),
    ("learning_rate", &["lr"]),
    ("lr_scheduler", &["lr-scheduler-type"]),
    ("warmup_steps", &["num-warmup-steps"]),
    ("max_grad_norm", &["clip-grad-norm", "max-norm"]),
    ("seed", &["random-state"]),
    (
        "max_seq_length",
        &["cutoff-len", "max-length", "max-len", "sequence-len", "max-seq-len", "model-max-length"],
    ),
    ("lora_r", &["lora-rank", "r"]),
    ("label_smoothing", &["label-smoothing-factor"]),
    ("class_weights", &["class-weight"]),
    ("num_labels", &["num-classes"]),
    ("target_modules", &["lora-target", "lora-target-modules", "lora-attn-modules"]),
    ("layers_to_transform", &["lora-layers-to-transform", "peft-layers-to-transform"]),
    ("use_dora", &["peft-use-dora"]),
    ("use_rslora", &["peft-use-rslora"]),
    ("quant", &["bnb-4bit-quant-type", "quantization-type"]),
    ("double_quant", &["bnb-4bit-use-double-quant", "use-bnb-nested-quant", "double-quantization"]),
];

/// Other names of the options of `score`.
pub const SCORE: &[Alias] = &[
    ("model", &["model-name", "model-name-or-path", "base-model", "pretrained-model-name-or-path"]),
    ("adapter", &["adapter-name-or-path", "peft-model"]),
    ("data_file", &["test-file", "eval-file", "test-data", "eval-data"]),
    ("output", &["output-file", "predictions"]),
    ("overwrite", &["force"]),
    ("dtype", &["torch-dtype", "bnb-4bit-compute-dtype"]),
    ("batch_size", &["per-device-eval-batch-size", "eval-batch-size"]),
    (
        "max_seq_length",
        &["cutoff-len", "max-length", "max-len", "sequence-len", "max-seq-len", "model-max-length"],
    ),
    ("quant", &["bnb-4bit-quant-type"]),
];

/// A switch that stands for a value of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// Its name (TOML spelling).
    pub name: &'static str,
    /// The option it stands for (TOML spelling).
    pub option: &'static str,
    /// The value where it is on.
    pub on: &'static str,
    /// What it says where it is off.
    pub off: Off,
}

/// What a switch says that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// This value of the option.
    Value(&'static str),
    /// Nothing, and why.
    Nothing(&'static str),
    /// That the option is given by its own name.
    Named,
}

impl Switch {
    /// The value of the option where it is switched to `on`; none if that is no value.
    pub fn value(&self, on: bool) -> Option<&'static str> {
        match self.off {
            _ if on => Some(self.on),
            Off::Value(value) => Some(value),
            Off::Nothing(_) | Off::Named => None,
        }
    }
}

/// The switches of other tools.
pub const SWITCHES: &[Switch] = &[
    Switch { name: "fp32", option: "dtype", on: "f32", off: Off::Nothing(DTYPE) },
    Switch { name: "load_in_4bit", option: "quant", on: "nf4", off: Off::Value("none") },
    Switch { name: "gradient_checkpointing", option: "activation_policy", on: "checkpoint", off: KEEP },
    Switch { name: "use_gradient_checkpointing", option: "activation_policy", on: "checkpoint", off: KEEP },
    Switch {
        name: "enable_activation_checkpointing",
        option: "activation_policy",
        on: "checkpoint",
        off: KEEP,
    },
    Switch { name: "use_cpu", option: "device", on: "cpu", off: Off::Nothing(DEVICE) },
    Switch { name: "no_cuda", option: "device", on: "cpu", off: Off::Nothing(DEVICE) },
    Switch { name: "lora_target_linear", option: "target_modules", on: "all-linear", off: Off::Named },
];

const KEEP: Off = Off::Value("keep_all");
const DTYPE: &str = "dtype says it; without it numbers are f32 on the CPU and bf16 on a GPU";
const DEVICE: &str = "device says it; without it a GPU is taken if there is one that can be used";

/// Names, words, and the option with its value that they stand for, if any.
type Word = (&'static [&'static str], &'static [&'static str], Option<(&'static str, &'static str)>);

/// Values of other tools, by name and word, that say another option, or nothing.
const WORDS: &[Word] = &[
    (&["resume", "resume_from_checkpoint"], &["true"], Some(("resume", "auto"))),
    (&["resume", "resume_from_checkpoint"], &["false", "none", "null", ""], None),
    (&["max_steps"], &["-1"], None),
    (&["val_size", "val_set_size", "test_size"], &["0", "0.0", "none", "null"], None),
    (&["torch_dtype", "dtype"], &["auto", "none", "null"], None),
    (&["adapter"], &["lora", "none", "null", ""], None),
    (&["adapter"], &["qlora"], Some(("quant", "nf4"))),
    (&["quantization_bit"], &["4"], Some(("quant", "nf4"))),
    (&["quantization_bit"], &["none", "null"], None),
    (
        &["use_gradient_checkpointing", "gradient_checkpointing"],
        &["unsloth", "offload"],
        Some(("activation_policy", "checkpoint")),
    ),
];

/// What the value `word` under `name` stands for: another option and its value, or nothing. None if it is itself.
pub fn meaning(name: &str, word: &str) -> Option<Option<(&'static str, &'static str)>> {
    let (name, word) = (name.replace('-', "_"), word.to_lowercase());
    let says = |(names, words, _): &&Word| names.contains(&name.as_str()) && words.contains(&word.as_str());
    WORDS.iter().find(says).map(|(_, _, meaning)| *meaning)
}

/// A truth value as people and other tools write it.
pub fn truth(word: &str) -> Option<bool> {
    match word.to_lowercase().as_str() {
        "true" | "yes" | "y" | "t" | "on" | "1" => Some(true),
        "false" | "no" | "n" | "f" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The option called `name`, directly or by an alias. `-` and `_` are the same.
pub fn canonical<'a>(name: &str, keys: &[&'a str], aliases: &'a [Alias]) -> Option<&'a str> {
    let name = name.replace('-', "_");
    keys.iter().find(|key| **key == name).copied().or_else(|| {
        let same = |alias: &&str| alias.replace('-', "_") == name;
        aliases.iter().find(|(_, names)| names.iter().any(same)).map(|(key, _)| *key)
    })
}

/// The candidate most like `word`, if it is a few letters away: a typing error, and not another word that begins alike.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| {
            let other = candidate.to_lowercase().replace('-', "_");
            (strsim::normalized_damerau_levenshtein(&word, &other), candidate)
        })
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_both_spellings() {
        let keys = ["batch_size", "lora_r"];
        assert_eq!(canonical("batch-size", &keys, TRAIN), Some("batch_size"));
        assert_eq!(canonical("per_device_train_batch_size", &keys, TRAIN), Some("batch_size"));
        assert_eq!(canonical("lora_rank", &keys, TRAIN), Some("lora_r"));
        assert_eq!(canonical("lora_q", &keys, TRAIN), None);
    }

    #[test]
    fn the_nearest_name_is_a_plausible_one() {
        let keys = ["learning_rate", "lora_r", "batch_size"];
        assert_eq!(nearest("learnig_rate", keys), Some("learning_rate"));
        assert_eq!(nearest("batchsize", keys), Some("batch_size"));
        for word in ["xyz", "lora_plus", "learning", "batch_sampler"] {
            assert_eq!(nearest(word, keys), None, "{word}");
        }
    }

    #[test]
    fn words_of_other_tools_have_a_meaning() {
        assert_eq!(meaning("resume-from-checkpoint", "True"), Some(Some(("resume", "auto"))));
        assert_eq!((meaning("max_steps", "-1"), meaning("max_steps", "5")), (Some(None), None));
        assert_eq!((truth("True"), truth("off"), truth("maybe")), (Some(true), Some(false), None));
    }

    #[test]
    fn no_name_means_two_things() {
        for table in [TRAIN, SCORE] {
            let mut names: Vec<&str> = table.iter().flat_map(|(_, names)| names.iter().copied()).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
