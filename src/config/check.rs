//! The rules for numbers and pairs of options, with what to do about each.

use std::path::Path;

use super::label_options::ClassWeights;
use super::model::MAX_LABELS;
use super::score::ScoreConfig;
use super::setting_layers::Layers;
use super::train::TrainConfig;
use super::values::{Loss, Quant, Resume, TargetShift, Task, Truncation};
use crate::error::Result;

/// Far more steps than anybody trains, and few enough to count.
const MOST_STEPS: u64 = 1_000_000_000;

/// Checks single values; the first broken rule is the error.
struct Checker<'a>(&'a Layers);

impl Checker<'_> {
    fn rule(
        &self,
        good: bool,
        key: &str,
        got: impl std::fmt::Display,
        expected: &str,
        fix: &str,
    ) -> Result<()> {
        if good {
            return Ok(());
        }
        self.0.error(key, "out of range").got(got).expected(expected).fix(fix).into()
    }

    /// Above 0 and finite.
    fn positive(&self, key: &str, value: f64, fix: &str) -> Result<()> {
        self.rule(value > 0.0 && value.is_finite(), key, value, "a finite number above 0", fix)
    }

    /// At least 0 and finite.
    fn not_negative(&self, key: &str, value: f64, fix: &str) -> Result<()> {
        self.rule(value >= 0.0 && value.is_finite(), key, value, "a finite number of at least 0", fix)
    }

    /// At least 0 and below 1.
    fn part(&self, key: &str, value: f64, fix: &str) -> Result<()> {
        self.rule((0.0..1.0).contains(&value), key, value, "at least 0 and below 1", fix)
    }

    /// From 1 to `limit`.
    fn count(&self, key: &str, value: impl Into<Option<usize>>, limit: usize, fix: &str) -> Result<()> {
        match value.into() {
            Some(count) if count == 0 || count > limit => {
                self.rule(false, key, count, &format!("1 to {limit}"), fix)
            }
            _ => Ok(()),
        }
    }

    /// At least 1.
    fn steps(&self, key: &str, value: Option<u64>, fix: &str) -> Result<()> {
        self.rule(value != Some(0), key, 0, "at least 1", fix)
    }

    /// A value the command cannot do without.
    fn required(&self, key: &str, there: bool, fix: &str) -> Result<()> {
        if there { Ok(()) } else { self.0.error(key, "this option is required").fix(fix).into() }
    }

    /// Two options of which one must be left out.
    fn exclusive(&self, key: &str, given: bool, other: &str, other_given: bool) -> Result<()> {
        if !(given && other_given) {
            return Ok(());
        }
        let error = self.0.error(key, format!("\"{key}\" and \"{other}\" exclude each other"));
        error.fix(format!("leave out {key} or {other}")).into()
    }

    /// What training and scoring have in common.
    fn shared(&self, options: &Shared<'_>) -> Result<()> {
        let Shared { batch_size, tokens_per_batch, max_seq_length: length, .. } = *options;
        let there = !options.model.trim().is_empty();
        self.required("model", there, "pass --model with a model folder or Hugging Face id")?;
        self.exclusive("batch_size", batch_size.is_some(), "tokens_per_batch", tokens_per_batch.is_some())?;
        let one = batch_size.is_some() || tokens_per_batch.is_some();
        self.required("batch_size", one, "give batch_size or tokens_per_batch")?;
        self.count("batch_size", batch_size, 1 << 20, "1 to 32 is usual")?;
        self.count("tokens_per_batch", tokens_per_batch, 1 << 24, "2048 to 16384 is usual")?;
        self.count("threads", options.threads, 1024, "leave threads out to use all cores")?;
        max_seq_length(self.0, length)?;
        self.count("max_tokens_per_pass", options.max_tokens_per_pass, 1 << 24, "4096 suits most machines")
    }
}

/// The rule for the longest row, where nothing else is configured.
///
/// # Errors
/// An input error if no row could be that long.
pub fn check_max_seq_length(length: usize) -> Result<()> {
    max_seq_length(&Layers::default(), length)
}

fn max_seq_length(layers: &Layers, length: usize) -> Result<()> {
    let fix = "use at most the model's max_position_embeddings";
    Checker(layers).rule((2..=1 << 24).contains(&length), "max_seq_length", length, "2 to 16777216", fix)
}

/// The options that training and scoring have in common.
struct Shared<'a> {
    model: &'a str,
    batch_size: Option<usize>,
    tokens_per_batch: Option<usize>,
    threads: Option<usize>,
    max_seq_length: usize,
    max_tokens_per_pass: usize,
}

impl TrainConfig {
    /// The rules of training; `layers` knows where each value was given.
    pub(super) fn check(&self, layers: &Layers) -> Result<()> {
        let check = Checker(layers);
        self.check_shared(&check)?;
        let files = !self.train_file.is_empty() && self.train_file.iter().all(|path| named(path));
        check.required("train_file", files, "pass --train-file with a .jsonl or .csv file")?;
        let fix = "pass --output-dir with a folder for the results";
        check.required("output_dir", named(&self.output_dir), fix)?;
        self.check_rest(&check)
    }

    /// The rules of a plan: those of training, except that there may be no rows yet and no place for results.
    pub(super) fn check_plan(&self, layers: &Layers) -> Result<()> {
        let check = Checker(layers);
        self.check_shared(&check)?;
        let files = self.train_file.iter().all(|path| named(path));
        check.required("train_file", files, "name a .jsonl or .csv file, or leave out train_file")?;
        self.check_rest(&check)
    }

    fn check_shared(&self, check: &Checker<'_>) -> Result<()> {
        check.shared(&Shared {
            model: &self.model,
            batch_size: self.batch_size,
            tokens_per_batch: self.tokens_per_batch,
            threads: self.threads,
            max_seq_length: self.max_seq_length,
            max_tokens_per_pass: self.max_tokens_per_pass,
        })
    }

    fn check_rest(&self, check: &Checker<'_>) -> Result<()> {
        self.check_files(check)?;
        self.check_numbers(check)?;
        if let Some((key, fault)) = self.lora().fault() {
            return Err(check.0.locate(key, fault));
        }
        self.check_task(check)
    }

    fn check_files(&self, check: &Checker<'_>) -> Result<()> {
        check.exclusive(
            "eval_file",
            !self.eval_file.is_empty(),
            "eval_fraction",
            self.eval_fraction.is_some(),
        )?;
        if let Some(part) = self.eval_fraction {
            let fix = "0.05 to 0.2 is usual, or a whole number of rows";
            let good = part > 0.0 && (part < 1.0 || part.fract() == 0.0 && part < 1e9);
            check.rule(good, "eval_fraction", part, "above 0 and below 1, or a number of rows", fix)?;
        }
        if let (Some(gpu), false) = (&self.gpu, self.dry_run) {
            let error = check.0.error("gpu", "a training runs on the device it is on; a card is for plans");
            return error.got(gpu).fix("add --dry-run, or leave out gpu").into();
        }
        if let Some(Resume::Dir(path)) = &self.resume {
            check.required("resume", named(path), "use auto or a checkpoint folder")?;
        }
        let evaluates = !self.eval_file.is_empty() || self.eval_fraction.is_some();
        for (key, wanted) in [
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
            ("eval_steps", self.eval_steps.is_some()),
        ] {
            if wanted && !evaluates {
                let error = check.0.error(key, "there is nothing to evaluate on");
                return error.fix(format!("give eval_file or eval_fraction, or leave out {key}")).into();
            }
        }
        Ok(())
    }

    fn check_numbers(&self, check: &Checker<'_>) -> Result<()> {
        check.positive("num_epochs", self.num_epochs, "1 to 10 is usual")?;
        let fix = "use max_steps for very long runs";
        check.rule(self.num_epochs <= 1e6, "num_epochs", self.num_epochs, "at most 1000000", fix)?;
        let fix = "leave it out to train num_epochs epochs";
        check.steps("max_steps", self.max_steps, fix)?;
        let is_possible = self.max_steps.is_none_or(|steps| steps <= MOST_STEPS);
        check.rule(is_possible, "max_steps", self.max_steps.unwrap_or(0), "at most 1000000000", fix)?;
        check.count("eval_batch_size", self.eval_batch_size, 1 << 20, "leave it out to use batch_size")?;
        let accumulation = self.gradient_accumulation_steps;
        check.count("gradient_accumulation_steps", accumulation, 1 << 20, "1 means no accumulation")?;
        check.positive("learning_rate", self.learning_rate, "1e-5 to 1e-3 is usual for LoRA")?;
        check.part("warmup_ratio", self.warmup_ratio, "0.03 to 0.1 is usual; steps go in warmup_steps")?;
        check.not_negative("weight_decay", self.weight_decay, "0 to 0.1 is usual")?;
        check.part("adam_beta1", self.adam_beta1, "0.9 is usual")?;
        check.part("adam_beta2", self.adam_beta2, "0.999 is usual")?;
        check.positive("adam_epsilon", self.adam_epsilon, "1e-8 is usual")?;
        check.not_negative("max_grad_norm", self.max_grad_norm, "1.0 is usual; 0 switches clipping off")?;
        check.steps("logging_steps", Some(self.logging_steps), "1 logs every step")?;
        check.steps("eval_steps", self.eval_steps, "leave it out to evaluate after every epoch")?;
        check.steps("save_steps", self.save_steps, "leave it out to save after every epoch")?;
        check.count(
            "save_total_limit",
            self.save_total_limit,
            1 << 20,
            "leave it out to keep all checkpoints",
        )?;
        let fix = "leave it out to train to the end";
        check.count("early_stopping_patience", self.early_stopping_patience, 1 << 20, fix)
    }

    fn check_task(&self, check: &Checker<'_>) -> Result<()> {
        let losses: &[Loss] = match self.task {
            Task::Causal => &[Loss::CrossEntropy],
            Task::Classify => &[Loss::CrossEntropy, Loss::Bce],
            Task::Regress => &[Loss::Mse, Loss::SigmoidMse, Loss::Bce],
        };
        if !losses.contains(&self.loss) {
            let names: Vec<String> = losses.iter().map(Loss::to_string).collect();
            let error = check.0.error("loss", format!("the task \"{}\" has no such loss", self.task));
            let error = error.got(self.loss).expected(names.join(" or "));
            return error.fix("choose a loss of the task").into();
        }
        if self.target_shift != TargetShift::None && self.task != Task::Regress {
            let error = check.0.error("target_shift", "only regression has targets to move");
            return error.got(self.target_shift).fix("leave out target_shift").into();
        }
        self.check_labels(check)?;
        if self.use_dora && self.quant != Quant::None {
            let error = check.0.error("use_dora", "magnitudes of 4-bit weights are not defined here");
            return error.fix("leave out use_dora or quant").into();
        }
        let column = self.group_by.as_deref().is_none_or(|column| !column.is_empty());
        check.required("group_by", column, "name a column, or leave out group_by")
    }
}

impl TrainConfig {
    /// The rules of the tasks with labels.
    fn check_labels(&self, check: &Checker<'_>) -> Result<()> {
        let has_labels = self.task != Task::Causal;
        // (option, whether it is given, whether it means something, where it does)
        let is_ce = has_labels && self.loss == Loss::CrossEntropy;
        let is_bce = has_labels && self.loss == Loss::Bce;
        for (key, given, is_meant, place) in [
            (
                "num_labels",
                self.num_labels.is_some(),
                has_labels,
                "the tasks classify and regress have labels",
            ),
            (
                "class_weights",
                self.class_weights.is_some(),
                is_ce,
                "the task classify with cross_entropy has them",
            ),
            (
                "label_smoothing",
                self.label_smoothing.is_some_and(|share| share != 0.0),
                is_ce,
                "the task classify with cross_entropy has it",
            ),
            ("pos_weight", self.pos_weight.is_some(), is_bce, "the loss bce has it"),
            ("share_prefix", self.share_prefix, !has_labels, "the task causal has shared starts"),
            ("mask_history", self.mask_history, !has_labels, "the task causal has conversations"),
            (
                "truncation",
                self.truncation == Truncation::PromptLeft,
                !has_labels,
                "rows with labels are not cut: use error or skip",
            ),
        ] {
            if given && !is_meant {
                let error = check.0.error(
                    key,
                    format!("the task \"{}\" with the loss {} has no use for it", self.task, self.loss),
                );
                return error.expected(place).fix(format!("leave out {key}")).into();
            }
        }
        check.count(
            "num_labels",
            self.num_labels,
            MAX_LABELS,
            "leave it out to count the labels of the rows",
        )?;
        let smoothing = self.label_smoothing.unwrap_or(0.0);
        check.part("label_smoothing", smoothing, "0.1 is usual")?;
        let weights = match &self.class_weights {
            Some(ClassWeights::Numbers(numbers)) => Some(("class_weights", numbers)),
            Some(ClassWeights::Balanced) => None,
            None => self.pos_weight.as_ref().map(|numbers| ("pos_weight", numbers)),
        };
        let Some((key, numbers)) = weights else { return Ok(()) };
        let is_good = |weight: &f64| *weight >= 0.0 && (*weight as f32).is_finite();
        if let Some(bad) = numbers.0.iter().find(|weight| !is_good(weight)) {
            return check.rule(
                false,
                key,
                bad,
                "finite numbers of at least 0",
                "write one number per output",
            );
        }
        let some = numbers.0.iter().any(|weight| *weight > 0.0);
        check.rule(some, key, "no number above 0", "at least one above 0", "write one number per output")
    }
}

impl ScoreConfig {
    /// The rules of scoring; `layers` knows where each value was given.
    pub(super) fn check(&self, layers: &Layers) -> Result<()> {
        let check = Checker(layers);
        check.shared(&Shared {
            model: &self.model,
            batch_size: self.batch_size,
            tokens_per_batch: self.tokens_per_batch,
            threads: self.threads,
            max_seq_length: self.max_seq_length,
            max_tokens_per_pass: self.max_tokens_per_pass,
        })?;
        let files = !self.data_file.is_empty() && self.data_file.iter().all(|path| named(path));
        check.required("data_file", files, "pass --data-file with a .jsonl or .csv file")?;
        check.required("output", named(&self.output), "pass --output with a file for the results")?;
        check.count("limit", self.limit, usize::MAX, "leave it out to score every row")?;
        let Some(choices) = &self.choices else { return Ok(()) };
        let fix = "write them as --choices a,b,c,d";
        check.rule((2..=26).contains(&choices.len()), "choices", choices.len(), "2 to 26 answers", fix)?;
        for (index, choice) in choices.iter().enumerate() {
            if choice.is_empty() || choices[..index].contains(choice) {
                let error = layers.error("choices", "an answer is empty or given twice");
                return error.got(choice).fix(fix).into();
            }
        }
        Ok(())
    }
}

/// Whether a path is not empty.
fn named(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}
