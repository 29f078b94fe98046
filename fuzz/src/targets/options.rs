//! Options of a training and of scoring: TOML files, and pairs with numbers at the edges of their types.

use tanren::config::{Options, ScoreConfig, TrainConfig, Value};

use super::{Choices, name};

/// The text of a file of options.
pub(super) fn train_toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(config) = TrainConfig::from_toml(name(), text) {
        accepted(&config);
    }
}

/// The same for scoring.
pub(super) fn score_toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(mut config) = ScoreConfig::from_toml(name(), text) else { return };
    let _ = (config.batching(), config.check_supported());
    config.validate().unwrap();
    config.notes.clear();
    let written = toml::to_string(&config).unwrap();
    assert_eq!(ScoreConfig::from_toml(name(), &written).unwrap(), config, "{written}");
}

/// What holds of every configuration that is accepted.
fn accepted(config: &TrainConfig) {
    let _ = (config.batching(), config.eval_batching(), config.lora(), config.check_supported());
    for steps_per_epoch in [1, 1000, 1 << 40, u64::MAX] {
        let steps = config.num_training_steps(steps_per_epoch);
        let _ = config.num_warmup_steps(steps);
    }
    for number in [config.learning_rate, config.num_epochs, config.lora_alpha, config.lora().scaling()] {
        assert!(number.is_finite() && number > 0.0, "{number}");
    }
    assert!(!(config.is_better(1.0, 2.0) && config.is_better(2.0, 1.0)));
    let plain = TrainConfig { notes: Vec::new(), ..config.clone() };
    let written = plain.to_toml();
    let table: toml::Table = written.parse().unwrap();
    let read = match config.dry_run {
        true => TrainConfig::resolve_plan(pairs(table), None),
        false => TrainConfig::from_toml(name(), &written),
    };
    assert_eq!(read.unwrap_or_else(|error| panic!("{error}\n{written}")), plain, "{written}");
}

/// The keys of a table as pairs.
fn pairs(table: toml::Table) -> Options {
    fn of(value: toml::Value) -> Value {
        match value {
            toml::Value::Boolean(value) => value.into(),
            toml::Value::Integer(value) => value.into(),
            toml::Value::Float(value) => value.into(),
            toml::Value::Array(values) => Value::List(values.into_iter().map(of).collect()),
            toml::Value::String(text) => text.into(),
            other => other.to_string().into(),
        }
    }
    table.into_iter().map(|(key, value)| (key, of(value))).collect()
}

/// Options that are numbers, and words of other tools for them.
const NUMBERS: [&str; 36] = [
    "threads",
    "max_tokens_per_pass",
    "memory_limit",
    "num_epochs",
    "max_steps",
    "batch_size",
    "tokens_per_batch",
    "eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "early_stopping_patience",
    "eval_fraction",
    "limit",
    "num_train_epochs",
    "per_device_train_batch_size",
    "save_strategy",
    "activation_policy",
    "gradient_checkpointing",
    "lr",
    "bf16",
];

/// Numbers at edges, as texts.
const EDGES: [&str; 40] = [
    "0",
    "1",
    "2",
    "-1",
    "-0",
    "0.0",
    "-0.0",
    "0.5",
    "0.999999999999999999",
    "1e-400",
    "5e-324",
    "1e-8",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
    "1e18",
    "1e19",
    "1e308",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1_000",
    "0x10",
    "9e9GiB",
];

/// Pairs of names and numbers: as texts, as whole numbers and as floats.
pub(super) fn quantities(input: &[u8]) {
    let mut choices = Choices(input);
    let mut train = Options::new().set("model", "m").set("train_file", "a.jsonl").set("output_dir", "out");
    let mut score =
        Options::new().set("model", "m").set("data_file", "a.jsonl").set("output", "scores.jsonl");
    for _ in 0..6 {
        if choices.is_empty() {
            break;
        }
        let name = NUMBERS[choices.below(NUMBERS.len())];
        let text = EDGES[choices.below(EDGES.len())];
        let value = match choices.below(4) {
            0 => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
            1 => text.parse::<f64>().map_or_else(|_| text.into(), Value::from),
            2 => text.parse::<u64>().map_or_else(|_| text.into(), |n| (n ^ u64::from(choices.byte())).into()),
            _ => Value::from(text),
        };
        train = train.set(name, value.clone());
        score = score.set(name, value);
    }
    if let Ok(config) = TrainConfig::from_pairs(train.clone()) {
        accepted(&config);
    }
    if let Ok(config) = TrainConfig::resolve_plan(train, None) {
        accepted(&config);
    }
    if let Ok(config) = ScoreConfig::from_pairs(score) {
        let _ = (config.batching(), config.check_supported());
        config.validate().unwrap();
    }
}
