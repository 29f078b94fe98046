//! Other names of the options: those of Hugging Face, TRL, PEFT, LLaMA-Factory and axolotl, and those of older scripts.
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
    ("init_adapter", &["adapter-name-or-path", "adapter"]),
    ("resume", &["resume-from-checkpoint"]),
    ("overwrite", &["force", "overwrite-output-dir"]),
    ("dtype", &["torch-dtype", "bnb-4bit-compute-dtype"]),
    ("num_epochs", &["num-train-epochs", "epochs"]),
    ("batch_size", &["per-device-train-batch-size", "train-batch-size", "micro-batch-size"]),
    ("eval_batch_size", &["per-device-eval-batch-size"]),
    ("learning_rate", &["lr"]),
    ("lr_scheduler", &["lr-scheduler-type"]),
    ("max_grad_norm", &["clip-grad-norm"]),
    (
        "max_seq_length",
        &["cutoff-len", "max-length", "max-len", "sequence-len", "max-seq-len", "model-max-length"],
    ),
    ("lora_r", &["lora-rank"]),
    ("target_modules", &["lora-target", "lora-target-modules"]),
    ("quant", &["bnb-4bit-quant-type"]),
    ("double_quant", &["bnb-4bit-use-double-quant"]),
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
#[derive(Debug, Clone, Copy)]
pub struct Switch {
    /// Its name (TOML spelling).
    pub name: &'static str,
    /// The option it stands for (TOML spelling).
    pub option: &'static str,
    /// The value where it is on.
    pub on: &'static str,
    /// The value where it is off, if that says anything.
    pub off: Option<&'static str>,
}

impl Switch {
    /// What it means to switch it to `on`.
    pub fn value(&self, on: bool) -> Option<&'static str> {
        if on { Some(self.on) } else { self.off }
    }
}

/// The switches of other tools.
pub const SWITCHES: &[Switch] = &[
    Switch { name: "bf16", option: "dtype", on: "bf16", off: None },
    Switch { name: "fp16", option: "dtype", on: "fp16", off: None },
    Switch { name: "fp32", option: "dtype", on: "f32", off: None },
    Switch { name: "load_in_4bit", option: "quant", on: "nf4", off: None },
    Switch {
        name: "gradient_checkpointing",
        option: "activation_policy",
        on: "checkpoint",
        off: Some("keep_all"),
    },
];

/// The option called `name`, directly or by an alias. `-` and `_` are the same.
pub fn canonical<'a>(name: &str, keys: &[&'a str], aliases: &'a [Alias]) -> Option<&'a str> {
    let name = name.replace('-', "_");
    keys.iter().find(|key| **key == name).copied().or_else(|| {
        let same = |alias: &&str| alias.replace('-', "_") == name;
        aliases.iter().find(|(_, names)| names.iter().any(same)).map(|(key, _)| *key)
    })
}

/// The candidate most like `word`, if one is close enough to be a typing error.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| {
            (strsim::jaro_winkler(&word, &candidate.to_lowercase().replace('-', "_")), candidate)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
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
        assert_eq!(nearest("xyz", keys), None);
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
