//! Tests of the command line.

use super::*;
use crate::config::keys::keys_of;
use crate::config::{Batching, LrScheduler, Resume, TargetModules};

fn args_of(line: &str) -> Vec<OsString> {
    args(line)
}

fn args(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn run(line: &str) -> std::result::Result<Command, clap::Error> {
    parse(args(line)).map(|cli| cli.command)
}

fn train(line: &str) -> TrainConfig {
    match run(&format!("tanren train --model m --train-file t --output-dir o {line}")).unwrap() {
        Command::Train(args) => TrainConfig::resolve(args.flags().unwrap(), args.config()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn score(line: &str) -> ScoreConfig {
    match run(&format!("tanren score --model m --data-file t --output o {line}")).unwrap() {
        Command::Score(args) => ScoreConfig::resolve(args.flags().unwrap(), args.config()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The options of a command, except those that are no settings.
fn options(name: &str) -> Vec<String> {
    let parser = command();
    let found = parser.find_subcommand(name).unwrap();
    let mut ids: Vec<String> = found.get_arguments().map(|arg| arg.get_id().to_string()).collect();
    ids.retain(|id| !["config", "help", "version", "option_of_another_tool"].contains(&id.as_str()));
    ids.sort();
    ids
}

fn sorted(keys: &[&str]) -> Vec<String> {
    let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    keys.sort();
    keys
}

#[test]
fn clap_finds_nothing_wrong() {
    command().debug_assert();
}

#[test]
fn every_option_is_a_key_and_every_key_an_option() {
    assert_eq!(options("train"), sorted(keys_of::<TrainConfig>()));
    assert_eq!(options("score"), sorted(keys_of::<ScoreConfig>()));
}

#[test]
fn every_alias_reaches_its_option() {
    for (name, table) in [("train", aliases::TRAIN), ("score", aliases::SCORE)] {
        let parser = command();
        let found = parser.find_subcommand(name).unwrap();
        for (key, names) in table {
            let arg = found.get_arguments().find(|arg| arg.get_id() == key).unwrap();
            assert_eq!(arg.get_long().unwrap(), key.replace('_', "-"));
            assert_eq!(arg.get_visible_aliases().unwrap(), *names);
        }
    }
}

#[test]
fn nothing_typed_is_nothing_given() {
    let Command::Train(args) = run("tanren train").unwrap() else { panic!() };
    assert!(args.flags().unwrap().is_empty());
    let Command::Score(args) = run("tanren score").unwrap() else { panic!() };
    assert!(args.flags().unwrap().is_empty());
}

#[test]
fn flags_of_every_kind_arrive() {
    let config = train(
        "--lora-r 8 --lora_alpha=24 --target_modules q_proj,v_proj --shuffle false --use-rslora --dry-run \
         --train-file u --lr-scheduler cosine --learning-rate 1e-4 --tokens-per-batch 64 --resume auto --seed 7",
    );
    assert_eq!((config.lora_r, config.lora_alpha, config.learning_rate, config.seed), (8, 24.0, 1e-4, 7));
    assert_eq!(config.target_modules, TargetModules::List(vec!["q_proj".into(), "v_proj".into()]));
    assert!(!config.shuffle && config.use_rslora && config.dry_run);
    assert_eq!(config.train_file, [PathBuf::from("t"), PathBuf::from("u")]);
    assert_eq!((config.lr_scheduler, config.batching()), (LrScheduler::Cosine, Batching::Tokens(64)));
    let config = score("--mode choice --choices a,b,c,d --by mode,law --limit 5 --dtype float32");
    assert_eq!(config.choices.unwrap(), ["a", "b", "c", "d"]);
    assert_eq!((config.by, config.limit), (vec!["mode".to_owned(), "law".to_owned()], Some(5)));
}

#[test]
fn the_words_of_hugging_face_arrive() {
    let config = train(
        "--per_device_train_batch_size 2 --num_train_epochs 5 --lora_rank 4 --max_length 99 --dtype bfloat16 \
         --lr_scheduler_type linear --overwrite_output_dir",
    );
    assert_eq!((config.batch_size, config.num_epochs, config.lora_r), (Some(2), 5.0, 4));
    assert_eq!((config.max_seq_length, config.dtype, config.overwrite), (99, Dtype::Bf16, true));
    assert_eq!(train("--bf16 --fp32 True").dtype, Dtype::F32);
}

#[test]
fn flags_are_spelled_with_dashes_before_clap_sees_them() {
    let normal =
        normalise_args(args("tanren train --lora_r 8 --x_y=a_b c_d --load_in_4bit --fp32=false -- --e_f"));
    assert_eq!(
        normal,
        args(
            "tanren train --lora-r 8 --x-y=a_b c_d --quant=nf4 --option-of-another-tool=fp32=false -- --e_f"
        )
    );
    assert_eq!(normalise_args(args("--load_in_4bit True --fp32")), args("--quant=nf4 --dtype=f32"));
}

#[test]
fn flags_of_other_tools_arrive_with_their_values() {
    let config = train(
        "--do_train --packing True --report_to none --optim=adamw_torch --gradient_checkpointing_kwargs {} --lora_r 8 \
         --resume_from_checkpoint True --val_size 10 --shuffle False --target-modules q_proj v_proj --max_steps -1",
    );
    assert_eq!((config.notes.len(), config.lora_r, config.resume), (5, 8, Some(Resume::Auto)));
    assert_eq!((config.eval_fraction, config.shuffle, config.max_steps), (Some(10.0), false, None));
    assert_eq!(config.target_modules, TargetModules::List(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(train("--resume").resume, Some(Resume::Auto));
    assert_eq!(train("--lora_target [q_proj,v_proj]").target_modules, config.target_modules);
    let Command::Train(args) =
        run("tanren train --model m --train-file t --output-dir o --report_to wandb tensorboard").unwrap()
    else {
        panic!()
    };
    let error = TrainConfig::resolve(args.flags().unwrap(), None).unwrap_err();
    assert_eq!((error.field(), error.got()), (Some("report-to"), Some("\"wandb,tensorboard\"")));
    // A folder in scoring.
    let normal = normalise_args(args_of("tanren score --adapter lora --bf16 true"));
    assert_eq!(normal[..4], args_of("tanren score --adapter lora")[..]);
    assert_eq!(score("--bf16").notes.len(), 1);
    // No flag of ours is taken for one of theirs.
    for name in ["train", "score"] {
        let parser = command();
        for arg in parser.find_subcommand(name).unwrap().get_arguments() {
            assert!(!arg.get_long().is_some_and(crate::config::is_foreign), "{arg:?}");
        }
    }
    let parser = command();
    let plan = parser.find_subcommand("inspect").unwrap().find_subcommand("plan").unwrap();
    assert!(plan.get_arguments().all(|arg| !arg.get_long().is_some_and(crate::config::is_foreign)));
}

#[test]
fn tips_name_what_is_meant_or_nothing() {
    for (line, tip) in [
        ("tanren train --learnig-rate 1", Some("--learning-rate")),
        ("tanren train --lora-plus 1", None),
        ("tanren train --batch-sampler x", None),
        ("tanren score --choises a,b", Some("--choices")),
        ("tanren inspect tokenizer m --texts x", Some("--text")),
        ("tanren inspect tokenizer m --frobnicate x", None),
    ] {
        let error = run(line).unwrap_err().to_string();
        match tip {
            Some(flag) => assert!(error.contains(&format!("'{flag}'")), "{line}: {error}"),
            None => assert!(!error.contains("tip:"), "{line}: {error}"),
        }
    }
}

#[test]
fn the_help_offers_only_what_works() {
    for (line, absent) in [
        ("tanren train --help", &["nf4", "--quant ", "--group-by", "template]"][..]),
        ("tanren score --help", &["nf4", "generate", "option-of-another-tool"]),
    ] {
        let text = run(line).unwrap_err().to_string();
        for part in absent {
            assert!(!text.contains(part), "{line}: {part}: {text}");
        }
        assert_eq!(text.contains("emulated"), cfg!(feature = "emulated"), "{text}");
    }
}

#[test]
fn mistakes_are_explained() {
    for (line, part) in [
        ("tanren train --learnig-rate 1", "--learning-rate"),
        ("tanren train --lr-scheduler linaer", "linear"),
        ("tanren train --lora-r 8 --lora-rank 9", "cannot be used multiple times"),
        ("tanren train --lora-r x", "invalid value"),
        ("tanren trian", "train"),
        ("tanren init --variant x", "--output-dir"),
        ("tanren inspect tokenizer", "required"),
        ("tanren inspect model a --model b", "cannot be used with"),
        ("tanren inspect model --verify", "required"),
    ] {
        let error = run(line).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(part), "{line}: {error}");
    }
    // Ranges are the business of the configuration, whose messages know more.
    let Command::Train(args) =
        run("tanren train --learning-rate -1 --model m --train-file t --output-dir o").unwrap()
    else {
        panic!()
    };
    let error = TrainConfig::resolve(args.flags().unwrap(), None).unwrap_err().to_string();
    assert!(error.contains("field \"learning_rate\"") && error.contains("got -1"), "{error}");
}

#[test]
fn the_other_commands_parse() {
    let Command::Init(init) = run("tanren init --variant qwen3-tiny --output_dir d --seed 3").unwrap() else {
        panic!()
    };
    assert_eq!((init.seed, init.dtype), (3, Dtype::F32));
    for line in
        ["tanren inspect model m", "tanren inspect model --model m", "tanren inspect model m --verify"]
    {
        match run(line).unwrap() {
            Command::Inspect(InspectArgs { what: InspectCommand::Model(args) }) => {
                assert_eq!((args.model.model(), args.verify), (Some("m"), line.contains("--verify")));
            }
            other => panic!("{other:?}"),
        }
    }
    match run("tanren inspect tokenizer m a b --text c").unwrap() {
        Command::Inspect(InspectArgs { what: InspectCommand::Tokenizer(args) }) => {
            assert_eq!((args.model.model(), args.texts().collect::<Vec<_>>()), ("m", vec!["a", "b", "c"]));
        }
        other => panic!("{other:?}"),
    }
    assert!(run("tanren inspect tokenizer --model m --text a").is_ok());
    match run("tanren inspect data --model m --data-file d --rows 3 --truncation prompt_left").unwrap() {
        Command::Inspect(InspectArgs { what: InspectCommand::Data(data) }) => {
            assert_eq!((data.rows, data.truncation), (Some(3), Some(Truncation::PromptLeft)));
        }
        other => panic!("{other:?}"),
    }
    assert!(run("tanren inspect plan --model m --train-file t --lora_rank 8").is_ok());
    assert!(matches!(run("tanren render-template").unwrap(), Command::RenderTemplate));
}

#[test]
fn the_help_shows_defaults_aliases_and_examples() {
    let error = run("tanren train --help").unwrap_err();
    assert_eq!(error.exit_code(), 0);
    // Wrapped to the width of the terminal.
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "[default: 2e-4]",
        "[default: 42]",
        "--per-device-train-batch-size",
        "Optimizer:",
        "Examples:",
        "[possible values: constant, linear, cosine]",
        "--shuffle [<true|false>]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
