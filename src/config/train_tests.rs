//! Tests of the layers, with the options of training.

use toml::Table;

use super::*;
use crate::config::keys::keys_of;
use crate::config::{Resume, variants};

/// Flags as the command line gives them.
fn flags(text: &str) -> Options {
    Options::from_table(table(text))
}

fn table(text: &str) -> Table {
    let base = "model = \"m\"\ntrain_file = \"t.jsonl\"\noutput_dir = \"o\"\n";
    let mut table: Table = base.parse().unwrap();
    table.extend(text.parse::<Table>().unwrap());
    table
}

fn resolve(text: &str) -> Result<TrainConfig> {
    TrainConfig::resolve(flags(text), None)
}

fn refused(text: &str) -> String {
    let error = resolve(text).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("; fix: "), "{error}");
    error.to_string()
}

/// Resolves a file with this text and no flags but the required ones.
fn resolve_file(text: &str) -> Result<TrainConfig> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    TrainConfig::resolve(flags(""), Some(&path))
}

#[test]
fn defaults_are_those_of_the_field() {
    let config = resolve("").unwrap();
    assert_eq!(
        (config.batching(), config.num_epochs, config.learning_rate),
        (Batching::Samples(8), 3.0, 2e-4)
    );
    assert_eq!((config.lora_r, config.lora().scaling(), config.seed), (16, 2.0, 42));
    assert_eq!(config.preset, "none");
    assert!(config.check_supported().is_ok());
    let by_hand = TrainConfig {
        model: "m".to_owned(),
        train_file: vec!["t.jsonl".into()],
        output_dir: "o".into(),
        preset: "none".to_owned(),
        ..TrainConfig::default()
    };
    by_hand.validate().unwrap();
    assert_eq!(config, by_hand);
}

#[test]
fn flags_win_over_the_file_which_wins_over_the_preset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "lora_r = 24\nlearning_rate = 0.5\nmodel = \"Qwen/Qwen3-0.6B\"\n").unwrap();
    let mut given = table("learning_rate = 0.25");
    given.remove("model");
    let config = TrainConfig::resolve(Options::from_table(given), Some(&path)).unwrap();
    assert_eq!((config.learning_rate, config.lora_r, config.lora_alpha), (0.25, 24, 32.0));
    assert_eq!((config.preset.as_str(), config.batching()), ("Qwen3-0.6B", Batching::Tokens(4096)));
}

#[test]
fn a_preset_comes_by_name_by_id_by_folder_or_not_at_all() {
    assert_eq!(resolve("preset = \"qwen3-tiny\"").unwrap().learning_rate, 1e-3);
    assert_eq!(resolve("model = \"qwen/qwen3-8b\"").unwrap().max_seq_length, 1024);
    assert_eq!(resolve("model = \"Qwen/Qwen3-8B\"\npreset = \"none\"").unwrap().max_seq_length, 2048);
    let error = refused("preset = \"qwen3-tinny\"");
    assert!(error.contains("did you mean qwen3-tiny?"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let json = variant_json("qwen3-tiny");
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    let mut given = table("");
    given.insert("model".to_owned(), folder.path().to_str().unwrap().into());
    let given = Options::from_table(given);
    assert_eq!(TrainConfig::resolve(given.clone(), None).unwrap().preset, "qwen3-tiny");
    std::fs::write(folder.path().join("config.json"), "broken").unwrap();
    assert_eq!(TrainConfig::resolve(given, None).unwrap().preset, "none");
}

fn variant_json(name: &str) -> String {
    crate::config::variant(name).unwrap().model_config().unwrap().to_json()
}

#[test]
fn every_preset_resolves_and_quantizes_on_cards_only() {
    for variant in variants() {
        let config = resolve(&format!("preset = \"{}\"", variant.name)).unwrap();
        assert_eq!(config.quant, Quant::None);
        assert!(config.check_supported().is_ok(), "{}", variant.name);
        let card = resolve(&format!("preset = \"{}\"\ndevice = \"cuda:1\"", variant.name)).unwrap();
        assert_eq!(card.quant == Quant::Nf4, variant.preset.contains("nf4"));
    }
}

#[test]
fn a_batch_of_rows_replaces_a_budget_of_tokens_of_a_lower_layer() {
    let config = resolve("model = \"Qwen/Qwen3-0.6B\"\nbatch_size = 2").unwrap();
    assert_eq!((config.batch_size, config.tokens_per_batch), (Some(2), None));
    let config = resolve("tokens_per_batch = 512\neval_batch_size = 4").unwrap();
    assert_eq!((config.batching(), config.eval_batching()), (Batching::Tokens(512), Batching::Samples(4)));
    let error = refused("batch_size = 2\ntokens_per_batch = 512");
    assert!(error.contains("exclude each other"), "{error}");
}

#[test]
fn steps_override_epochs_as_in_hugging_face() {
    let config = resolve("num_epochs = 2.5\nwarmup_ratio = 0.1").unwrap();
    assert_eq!((config.num_training_steps(7), config.num_warmup_steps(18)), (18, 2));
    let config = resolve("max_steps = 5\nwarmup_steps = 3\nwarmup_ratio = 0.5").unwrap();
    assert_eq!((config.num_training_steps(7), config.num_warmup_steps(5)), (5, 3));
}

#[test]
fn the_names_of_other_tools_are_understood() {
    let text = "per_device_train_batch_size = 2\nnum-train-epochs = 4\nlora_rank = 8\nlora_target = \"q_proj, v_proj\"
        cutoff_len = 1024\nlr_scheduler_type = \"cosine\"\nper_device_eval_batch_size = 3\nfp32 = true\nlr = 1
        overwrite_output_dir = true\nresume_from_checkpoint = \"o/checkpoint-5\"\nload_in_4bit = true";
    let config = resolve(text).unwrap();
    assert_eq!((config.batch_size, config.num_epochs, config.lora_r), (Some(2), 4.0, 8));
    assert_eq!(config.lora().target_modules, TargetModules::List(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!((config.max_seq_length, config.lr_scheduler), (1024, LrScheduler::Cosine));
    assert_eq!((config.eval_batch_size, config.quant, config.overwrite), (Some(3), Quant::Nf4, true));
    assert_eq!(config.resume, Some(Resume::Dir("o/checkpoint-5".into())));
    assert_eq!(config.learning_rate, 1.0);
    let config = resolve("bf16 = true").unwrap();
    assert_eq!((config.dtype, config.notes.len()), (Dtype::F32, 1));
}

#[test]
fn files_are_read_strictly_and_errors_name_the_line() {
    for (text, parts) in [
        (
            "lora_r = 8\nlearnig_rate = 1\n",
            &["run.toml:2", "learnig_rate", "did you mean learning_rate?"][..],
        ),
        ("# a\n\nlora_r = \"8\"\n", &["run.toml:3", "field \"lora_r\"", "whole number"]),
        ("lora_r = -8", &["run.toml:1", "got -8", "at least 0"]),
        ("lora_r = 8.5", &["run.toml:1", "got 8.5"]),
        ("lora_r = 0", &["run.toml:1", "got 0", "1 to 4096"]),
        ("shuffle = \"yes\"", &["run.toml:1", "true or false"]),
        ("learning_rate = nan", &["run.toml:1", "above 0"]),
        ("seed = 1\nlora_r = 8\nlora_rank = 8", &["run.toml:3", "given twice (first on line 2)"]),
        ("lora_r = 8\nlora_r = 9", &["run.toml:2", "not TOML"]),
        ("lora_r = \n", &["run.toml:1", "not TOML"]),
        ("[lora]\nr = 8", &["run.toml:1", "unknown option"]),
        ("task = \"casual\"", &["run.toml:1", "did you mean \"causal\"?"]),
        ("device = \"tpu\"", &["run.toml:1", "cuda:N"]),
        ("train_file = 3", &["run.toml:1", "list of texts"]),
        ("target_modules = 3", &["run.toml:1", "all-linear"]),
        ("target_modules = \"q_prj\"", &["run.toml:1", "did you mean q_proj?"]),
        ("lora_dropout = 1", &["run.toml:1", "0 to below 1"]),
        ("eval_fraction = 0.0", &["run.toml:1", "above 0 and below 1"]),
        ("eval_fraction = 1.5", &["run.toml:1", "a number of rows"]),
        ("shuffle = True", &["run.toml:1", "write true in small letters"]),
        ("report_to = \"wandb\"", &["run.toml:1", "field \"report_to\"", "training_log.jsonl"]),
        ("seed = \"7\"", &["run.toml:1", "without quotes"]),
        ("batch_size = 1\ntokens_per_batch = 9", &["run.toml:1", "exclude each other"]),
    ] {
        // The required flags repeat nothing of the file but `train_file`, which they override.
        let error = match resolve_file(text) {
            Ok(_) => panic!("{text}"),
            Err(error) => error.to_string(),
        };
        for part in parts {
            assert!(error.contains(part), "{text}: {part}: {error}");
        }
    }
    let missing = TrainConfig::resolve(flags(""), Some(Path::new("no/such.toml"))).unwrap_err();
    assert_eq!(missing.exit_code(), 3);
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for text in [
        "learning_rate = 0.0",
        "learning_rate = -1e-4",
        "learning_rate = inf",
        "num_epochs = 0",
        "max_steps = 0",
        "max_steps = 1000000001",
        "batch_size = 0",
        "tokens_per_batch = 0",
        "eval_batch_size = 0",
        "gradient_accumulation_steps = 0",
        "warmup_ratio = 1.0",
        "weight_decay = -0.1",
        "adam_beta1 = 1.0",
        "adam_beta2 = -0.1",
        "adam_epsilon = 0.0",
        "max_grad_norm = -1.0",
        "max_seq_length = 1",
        "max_tokens_per_pass = 0",
        "threads = 0",
        "logging_steps = 0",
        "save_steps = 0",
        "save_total_limit = 0",
        "early_stopping_patience = 1",
        "load_best_model_at_end = true",
        "eval_steps = 5",
        "group_by = \"\"",
        "model = \" \"",
        "train_file = []",
        "output_dir = \"\"",
        "loss = \"mse\"",
        "target_shift = \"min\"",
    ] {
        let key = text.split(' ').next().unwrap();
        assert!(refused(text).contains(&format!("field \"{key}\"")), "{text}: {}", refused(text));
    }
    let error = refused("eval_file = \"e\"\neval_fraction = 0.1");
    assert!(error.contains("exclude each other"), "{error}");
    assert!(resolve("task = \"regress\"\nloss = \"sigmoid_mse\"\ntarget_shift = \"min\"").is_ok());
}

#[test]
fn what_cannot_be_done_yet_is_refused_in_one_place() {
    for text in [
        "quant = \"nf4\"",
        "dtype = \"bf16\"",
        "dtype = \"f32\"\ndevice = \"cuda\"",
        "format = \"template\"",
        "group_by = \"QuestionId\"",
    ] {
        let key = text.split(' ').next().unwrap();
        let error = resolve(text).unwrap().check_supported().unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{key}\": not supported by this build: got")), "{error}");
    }
    for device in ["auto", "cpu", "cuda:1", "emulated"] {
        let config = resolve(&format!("format = \"chat\"\ndevice = \"{device}\"")).unwrap();
        assert!(config.check_supported().is_ok(), "{device}");
    }
}

#[test]
fn the_echo_resolves_to_the_same_value() {
    for text in [
        "",
        "model = \"Qwen/Qwen3-4B\"",
        "model = \"Qwen/Qwen3-4B\"\nbatch_size = 3\ndevice = \"cuda:2\"",
        "tokens_per_batch = 99\nmax_steps = 7\nnum_epochs = 2\nwarmup_steps = 3\nresume = \"auto\"",
        "eval_file = [\"a\", \"b\"]\ntarget_modules = \"q_proj,v_proj\"\nmetric_for_best_model = \"accuracy\"
         load_best_model_at_end = true\nearly_stopping_patience = 2\nadam_epsilon = 1e-300\nseed = 9223372036854775807",
        "eval_fraction = 0.1\neval_steps = 3\nsave_steps = 4\nsave_total_limit = 2\nthreads = 3\ngroup_by = \"g\"
         init_adapter = \"a b\"\nresume = \"o/checkpoint-3\"\ngreater_is_better = true\neval_batch_size = 1",
    ] {
        let config = resolve(text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("training_config.toml");
        std::fs::write(&path, config.to_toml()).unwrap();
        assert_eq!(TrainConfig::from_file(&path).unwrap(), config, "{}", config.to_toml());
    }
}

#[test]
fn measures_know_their_direction() {
    let config = resolve("").unwrap();
    assert!(config.is_better(1.0, 2.0) && !config.is_better(2.0, 1.0) && !config.is_better(f64::NAN, 1.0));
    let config = resolve("metric_for_best_model = \"accuracy\"").unwrap();
    assert_eq!(config.metric_for_best_model, "eval_accuracy");
    assert!(config.is_better(2.0, 1.0));
    let config = resolve("greater_is_better = true").unwrap();
    assert!(config.is_better(2.0, 1.0));
}

#[test]
fn aliases_and_replacements_point_to_options() {
    let keys = keys_of::<TrainConfig>();
    for (key, names) in TrainConfig::ALIASES {
        assert!(keys.contains(key), "{key}");
        for name in *names {
            assert!(!keys.contains(&name.replace('-', "_").as_str()), "{name} is an option of its own");
        }
    }
    for (key, other) in TrainConfig::REPLACES {
        assert!(keys.contains(key) && keys.contains(other));
    }
    for key in crate::config::variant::PRESET_KEYS {
        assert!(keys.contains(&key), "{key}");
    }
}

#[test]
fn memory_and_policy_have_their_words() {
    use crate::config::{ActivationPolicy, MemorySize};
    let config = resolve("").unwrap();
    assert_eq!((config.activation_policy, config.memory_limit), (ActivationPolicy::Auto, None));
    let config = resolve("activation_policy = \"drop-gate-up\"\nmemory_limit = \"9.3GiB\"").unwrap();
    assert_eq!(config.activation_policy, ActivationPolicy::DropGateUp);
    assert_eq!(config.memory_limit.map(MemorySize::bytes), Some(9_985_798_963));
    assert_eq!(
        resolve("memory_limit = 1000").unwrap().memory_limit,
        resolve("memory_limit = \"1kB\"").unwrap().memory_limit
    );
    for (value, policy) in [("true", ActivationPolicy::Checkpoint), ("false", ActivationPolicy::KeepAll)] {
        let config = resolve_file(&format!("gradient_checkpointing = {value}")).unwrap();
        assert_eq!(config.activation_policy, policy);
    }
    let error = refused("memory_limit = \"much\"");
    assert!(error.contains("memory_limit") && error.contains("9.3GiB"), "{error}");
    assert!(refused("activation_policy = \"checkpiont\"").contains("did you mean \"checkpoint\"?"));
    let error = resolve_file("gradient_checkpointing = true\nactivation_policy = \"auto\"").unwrap_err();
    assert!(error.to_string().contains("given twice"), "{error}");
}

#[test]
fn a_card_is_for_plans_and_computes_in_bf16() {
    assert!(refused("gpu = \"rtx3080\"").contains("--dry-run"));
    let config = resolve("gpu = \"rtx3080\"\ndry_run = true").unwrap();
    assert_eq!(config.dtype, Dtype::Bf16);
    config.check_supported().unwrap();
    let config = resolve("gpu = \"rtx3080\"\ndry_run = true\ndtype = \"f32\"").unwrap();
    assert_eq!(config.dtype, Dtype::F32);
    assert!(resolve("dtype = \"bf16\"").unwrap().check_supported().is_err());
}

#[test]
fn a_plan_needs_neither_rows_nor_a_folder() {
    let plan = |text: &str| TrainConfig::resolve_plan(Options::from_table(text.parse().unwrap()), None);
    let config = plan("model = \"Qwen3-0.6B\"").unwrap();
    assert!(config.dry_run && config.train_file.is_empty() && config.lora_r == 16);
    assert!(plan("lora_r = 8").unwrap_err().to_string().contains("model"));
    assert!(plan("model = \"m\"\nlora_r = 0").is_err());
    assert!(plan("model = \"m\"\ntrain_file = \"\"").is_err());
}

#[test]
fn pairs_are_read_as_on_the_command_line() {
    let base = [("model", "m"), ("train_file", "t.jsonl"), ("output_dir", "o")];
    let with = |name: &'static str, value: &'static str| {
        TrainConfig::from_pairs(base.into_iter().chain([(name, value)]))
    };
    assert_eq!(with("lora_r", "8").unwrap().lora_r, 8);
    assert_eq!(with("learning-rate", "1e-4").unwrap().learning_rate, 1e-4);
    assert_eq!(with("num_epochs", "2").unwrap().num_epochs, 2.0);
    for (word, on) in [("True", true), ("false", false), ("1", true), ("no", false)] {
        assert_eq!(with("shuffle", word).unwrap().shuffle, on, "{word}");
    }
    // A text that looks like a number stays one where the option is a text.
    assert_eq!(with("group_by", "7").unwrap().group_by.as_deref(), Some("7"));
    assert_eq!(with("eval_file", "1e5").unwrap().eval_file, [PathBuf::from("1e5")]);
    for (name, value, part) in [
        ("lora_r", "8.5", "got 8.5, expected a whole number"),
        ("lora_r", "-8", "got -8, expected a whole number of at least 0"),
        ("lora_r", "eight", "expected a whole number; fix: write a number"),
        ("shuffle", "maybe", "expected true or false"),
        ("lora_r", "0", "1 to 4096"),
    ] {
        let error = with(name, value).unwrap_err();
        assert_eq!((error.code(), error.field()), ("CONFIG", Some(name)));
        assert!(error.to_string().contains(part), "{name} {value}: {error}");
    }
    let options = Options::new().set("model", "m").set("seed", u64::MAX);
    assert!(TrainConfig::from_pairs(options).unwrap_err().to_string().contains("seed"));
}

#[test]
fn values_of_other_tools_mean_what_they_mean_there() {
    let config =
        resolve("resume_from_checkpoint = true\nmax_steps = -1\nval_size = 10\ntorch_dtype = \"auto\"")
            .unwrap();
    assert_eq!(
        (config.resume, config.max_steps, config.eval_fraction),
        (Some(Resume::Auto), None, Some(10.0))
    );
    let config =
        resolve("resume_from_checkpoint = \"false\"\nval_set_size = 0.0\nadapter = \"lora\"").unwrap();
    assert_eq!((config.resume, config.eval_fraction, config.init_adapter), (None, None, None));
    let config = resolve("adapter = \"qlora\"\nuse_cpu = true\nlora_target_linear = true").unwrap();
    assert_eq!((config.quant, config.device), (Quant::Nf4, DeviceChoice::Cpu));
    // A switch that is off leaves it to an option to say what is meant, or says nothing; both are said.
    let named = "lora_target_linear = false\ntarget_modules = \"q_proj\"";
    let config = resolve(&format!("{named}\nfp32 = false\nuse_cpu = false\nload_in_4bit = false")).unwrap();
    assert_eq!(config.target_modules, TargetModules::List(vec!["q_proj".into()]));
    assert_eq!((config.quant, config.device, config.notes.len()), (Quant::None, DeviceChoice::Auto, 3));
    for name in ["lora_target_linear", "fp32", "use_cpu"] {
        let start = format!("{name} = false changes nothing: ");
        assert!(config.notes.iter().any(|note| note.starts_with(&start)), "{name}: {:?}", config.notes);
    }
    let error = resolve_file("lora_target_linear = false").unwrap_err();
    assert_eq!((error.field(), error.got()), (Some("lora_target_linear"), Some("false")));
    assert!(error.fix().unwrap().contains("give target_modules") && error.line().is_some(), "{error}");
    assert!(
        resolve("load_in_4bit = false\nbnb_4bit_quant_type = \"nf4\"").is_err(),
        "it is quantized, and is not"
    );
    assert_eq!(resolve("adapter = \"runs/a\"").unwrap().init_adapter, Some("runs/a".into()));
    let config = resolve_file("shuffle = \"False\"\nuse_gradient_checkpointing = \"unsloth\"").unwrap();
    assert_eq!((config.shuffle, config.activation_policy), (false, ActivationPolicy::Checkpoint));
}

#[test]
fn options_of_other_tools_are_said_or_refused_by_name() {
    let config = resolve(
        "packing = true\noptim = \"adamw_torch\"\ndo_train = true\nreport_to = [\"none\"]\nflash_attn = \"fa2\"
        gradient_checkpointing_kwargs = {use_reentrant = false}\nfp16 = false",
    )
    .unwrap();
    assert_eq!(config.notes.len(), 7, "{:?}", config.notes);
    assert!(
        config.notes.iter().any(|note| note.starts_with("packing changes nothing: ")),
        "{:?}",
        config.notes
    );
    for text in [
        "optim = \"adamw_8bit\"",
        "fp16 = true",
        "do_train = false",
        "neftune_noise_alpha = 5",
        "stage = \"dpo\"",
        "finetuning_type = \"full\"",
        "deepspeed = \"ds.json\"",
        "train_on_inputs = true",
        "dataset = \"alpaca\"",
    ] {
        let key = text.split(' ').next().unwrap();
        assert!(refused(text).contains(&format!("field \"{key}\": an option of another tool")), "{text}");
    }
}

/// A folder with the configuration of an adapter.
fn adapter(json: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), json).unwrap();
    folder
}

#[test]
fn an_adapter_to_start_from_brings_its_settings() {
    let folder = adapter(
        "{\"r\": 4, \"lora_alpha\": 6, \"lora_dropout\": 0.1, \"use_rslora\": true, \"target_modules\": [\"q_proj\"]}",
    );
    let with = |text: &str| {
        resolve(&format!(
            "preset = \"qwen3-tiny\"\ninit_adapter = {:?}\n{text}",
            folder.path().display().to_string()
        ))
    };
    let lora = with("").unwrap().lora();
    assert_eq!((lora.r, lora.alpha, lora.dropout, lora.use_rslora), (4, 6.0, 0.1, true));
    assert_eq!(lora.target_modules, TargetModules::List(vec!["q_proj".into()]));
    // What says the same is no contradiction, and dropout belongs to the run.
    let lora = with("lora_r = 4\nlora_alpha = 6.0\nlora_dropout = 0.0").unwrap().lora();
    assert_eq!((lora.r, lora.dropout), (4, 0.0));
    for (text, got) in [
        ("lora_r = 8", "got 8, expected 4"),
        ("lora_alpha = 8", "got 8"),
        ("use_rslora = false", "got false"),
    ] {
        let error = with(text).unwrap_err().to_string();
        assert!(error.contains(got) && error.contains("adapter_config.json"), "{error}");
    }
    // Loading the adapter says what is wrong with it.
    for broken in ["{", "[]", "{\"r\": \"x\"}"] {
        let folder = adapter(broken);
        let config = resolve(&format!("init_adapter = {:?}", folder.path().display().to_string())).unwrap();
        assert_eq!(config.lora_r, 16);
    }
}
