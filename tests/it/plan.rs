//! Plans and policies from outside: policies change no byte of results, plans hold in real runs, and the
//! content of a plan.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they measured")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tanren::config::{
    ActivationPolicy, Dtype, MemorySize, ModelConfig, Resume, TrainConfig, Variant, variant,
};
use tanren::error::Error;
use tanren::model::Policy;
use tanren::model::open::write_random;
use tanren::train::{Context, Event, Plan, run};

use crate::cli::{accepted, program, refused, tanren};
use crate::train::{Setup, setup, train, train_until, write_rows};

/// Writes a random model whose activations are larger than everything else.
fn wide_model(dir: &Path) -> String {
    let base = tiny().with_num_hidden_layers(6).with_blocks(|block| {
        (block.attn.heads, block.attn.kv_heads, block.attn.head_dim, block.mlp.size) = (4, 2, 16, 192);
    });
    let shape = ModelConfig { hidden_size: 64, vocab_size: 311, ..base };
    let path = dir.join("model");
    write_model(&shape, &path);
    path.display().to_string()
}

fn tiny() -> ModelConfig {
    variant("qwen3-tiny").unwrap().model_config().unwrap()
}

/// Writes a random model of a shape that no variant has.
fn write_model(shape: &ModelConfig, dir: &Path) {
    let made = Variant { config_json: shape.to_json().leak(), ..*variant("qwen3-tiny").unwrap() };
    write_random(&made, dir, 3, Dtype::F32).unwrap();
}

/// A short run of that model, all rows at once.
fn wide(edit: impl FnOnce(&mut TrainConfig)) -> Setup {
    setup(|c| {
        c.model = wide_model(c.train_file[0].parent().unwrap());
        (c.batch_size, c.max_steps) = (Some(24), Some(2));
        edit(c);
    })
}

/// The plan of a run that is not done.
fn planned(config: &TrainConfig) -> Plan {
    let mut found = None;
    let config = TrainConfig { dry_run: true, ..config.clone() };
    run(&config, &Context::default(), &mut |event| {
        if let Event::Planned(plan) = event {
            found = Some(plan.clone());
        }
    })
    .unwrap();
    found.unwrap()
}

/// Adapter and optimizer after the last step.
fn result(config: &TrainConfig, step: u64) -> [Vec<u8>; 2] {
    let dir = config.output_dir.join(format!("checkpoint-{step}"));
    ["adapter_model.safetensors", "optimizer.safetensors"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

#[test]
fn what_blocks_keep_changes_no_byte_and_takes_the_planned_memory() {
    let kinds: [fn(&mut TrainConfig); 3] = [
        |c| c.lora_dropout = 0.2,
        |c| (c.lora_dropout, c.use_dora) = (0.1, true),
        |c| (c.lora_dropout, c.share_prefix, c.max_tokens_per_pass) = (0.1, true, 200),
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let with = |policy: ActivationPolicy, limit: Option<u64>| {
            let setup = wide(|c| {
                kind(c);
                (c.activation_policy, c.memory_limit) = (policy, limit.map(MemorySize::from_bytes));
            });
            let plan = planned(&setup.config);
            let summary = train(&setup.config);
            if setup.config.max_tokens_per_pass > 200 {
                // The longest pass of the plan is that of the run.
                assert_eq!(summary.peak_bytes, plan.peak_bytes, "{policy}: {plan:?}");
            }
            (result(&setup.config, 2), plan)
        };
        let (expected, keep_all) = with(ActivationPolicy::KeepAll, None);
        let mut peaks = vec![keep_all.peak_bytes];
        for policy in [ActivationPolicy::DropGateUp, ActivationPolicy::Checkpoint] {
            let (bytes, plan) = with(policy, None);
            assert!(bytes == expected, "{policy}, kind {i}");
            assert!(plan.step_flops > keep_all.step_flops, "{policy}");
            peaks.push(plan.peak_bytes);
        }
        assert!(peaks[0] > peaks[1] && peaks[1] > peaks[2], "{peaks:?}");
        // A limit between two policies makes blocks differ, and is kept.
        let limit = (peaks[0] + peaks[2]) / 2;
        let (bytes, plan) = with(ActivationPolicy::Auto, Some(limit));
        assert!(bytes == expected, "auto, kind {i}");
        assert!(plan.fits && plan.peak_bytes <= limit, "{plan:?}");
        let policies = plan.activation_policy.as_slice();
        assert!(policies[0] != Policy::KeepAll && policies[5] == Policy::KeepAll, "{policies:?}");
    }
}

/// Rows with these numbers of tokens, and of supervised tokens at the end.
fn write_shapes(path: &Path, shapes: &[(usize, usize)]) {
    let row = |&(tokens, targets): &(usize, usize)| {
        let ids: Vec<usize> = (0..tokens).map(|t| t * 7 % 311).collect();
        let label = |(t, &id): (usize, &usize)| if t < tokens - targets { -100 } else { id as i64 };
        let labels: Vec<i64> = ids.iter().enumerate().map(label).collect();
        format!("{}\n", serde_json::json!({ "input_ids": ids, "labels": labels }))
    };
    std::fs::write(path, shapes.iter().map(row).collect::<String>()).unwrap();
}

#[test]
fn a_pass_that_is_second_in_tokens_and_in_targets_may_take_the_most() {
    for policy in [ActivationPolicy::KeepAll, ActivationPolicy::Auto] {
        let setup = wide(|c| {
            write_shapes(&c.train_file[0], &[(1001, 1), (1000, 500), (502, 501)]);
            (c.batch_size, c.max_steps, c.activation_policy) = (Some(1), Some(3), policy);
        });
        let plan = planned(&setup.config);
        let summary = train(&setup.config);
        assert_eq!(plan.peak_bytes, summary.peak_bytes, "{policy}");
    }
}

#[test]
fn an_evaluation_that_does_not_fit_is_named() {
    let setup = wide(|c| {
        let eval = c.train_file[0].with_file_name("eval.jsonl");
        write_shapes(&c.train_file[0], &[(20, 3), (25, 4)]);
        write_shapes(&eval, &[(300, 2); 12]);
        (c.batch_size, c.eval_file, c.eval_batch_size) = (Some(1), vec![eval], Some(12));
    });
    let whole = planned(&setup.config);
    assert_eq!(whole.largest_pass_tokens, 12 * 299);
    let alone =
        planned(&TrainConfig { eval_file: Vec::new(), eval_batch_size: None, ..setup.config.clone() });
    assert!(alone.peak_bytes < whole.peak_bytes && alone.largest_pass_tokens == 24);
    let limit = MemorySize::from_bytes(u64::midpoint(alone.peak_bytes, whole.peak_bytes));
    let config = TrainConfig { memory_limit: Some(limit), ..setup.config.clone() };
    let text = run(&config, &Context::default(), &mut |_| ()).unwrap_err().to_string();
    for part in ["the training alone would fit", "fewer than 3588 tokens", "eval_batch_size", "MiB"] {
        assert!(text.contains(part), "{text}");
    }
}

/// Work on a GPU is counted by the tokens that are computed: those that rows share count once, as on the CPU.
#[cfg(feature = "emulated")]
#[test]
fn the_work_of_a_run_is_the_same_everywhere() {
    use tanren::config::DeviceChoice;

    for share_prefix in [false, true] {
        let work = |device: DeviceChoice, dtype| {
            let setup = wide(|c| {
                write_shapes(&c.train_file[0], &[(60, 2), (80, 12), (100, 8), (140, 1)]);
                (c.batch_size, c.share_prefix, c.shuffle) = (Some(4), share_prefix, false);
                (c.device, c.dtype) = (device, dtype);
            });
            train(&setup.config);
            let log = std::fs::read_to_string(setup.config.output_dir.join("training_log.jsonl")).unwrap();
            let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
            last["total_flos"].as_f64().unwrap()
        };
        let [cpu, gpu] = [work(DeviceChoice::Cpu, Dtype::F32), work(DeviceChoice::Emulated, Dtype::Bf16)];
        assert!((gpu / cpu - 1.0).abs() < 0.02, "{cpu:e} {gpu:e}");
    }
}

/// On an emulator a run has exactly the planned memory.
#[cfg(feature = "emulated")]
#[test]
fn a_run_on_a_gpu_takes_what_was_planned() {
    use serde_json::json;
    use tanren::config::DeviceChoice;

    type Edit = fn(&mut TrainConfig);
    let labelled = |ids: &[u32]| {
        let labels: Vec<i64> =
            ids.iter().enumerate().map(|(i, &id)| if i < 3 { -100 } else { id.into() }).collect();
        format!("{}\n", json!({ "input_ids": ids, "labels": labels }))
    };
    // A few long rows among many short ones, as batches filled by tokens have them; and the turns of a conversation, each of
    // which continues the one before.
    let ids = |len: u32, first: u32| (0..len).map(|t| (t * 7 + first) % 311).collect::<Vec<_>>();
    let mixed = |i: u32| labelled(&ids(if i.is_multiple_of(13) { 90 + i } else { 5 + i % 17 }, i));
    let mixed: String = (0..40).map(mixed).collect();
    let turns: String = (1..=9).map(|turn| labelled(&ids(20 * turn, 0))).collect();
    let kinds: [(&str, Edit); 3] = [
        (&mixed, |c| (c.tokens_per_batch, c.max_tokens_per_pass, c.lora_dropout) = (Some(150), 150, 0.1)),
        (&mixed, |c| (c.tokens_per_batch, c.use_dora, c.gradient_accumulation_steps) = (Some(200), true, 2)),
        (&turns, |c| (c.batch_size, c.share_prefix, c.shuffle) = (Some(9), true, false)),
    ];
    for (rows, kind) in kinds {
        let setup = wide(|c| {
            std::fs::write(&c.train_file[0], rows).unwrap();
            // Longer than any row that trains.
            let eval = c.train_file[0].with_file_name("eval.jsonl");
            std::fs::write(&eval, labelled(&[7; 140])).unwrap();
            (c.eval_file, c.batch_size, c.max_steps) = (vec![eval], None, Some(2));
            (c.device, c.dtype) = (DeviceChoice::Emulated, Dtype::Bf16);
            kind(c);
        });
        let plan = planned(&setup.config);
        let summary = train(&setup.config);
        // The weights of a run are allocated separately and not rounded up to 256 bytes.
        let arena = plan.arena_bytes.unwrap();
        let weights = 11 * 6 + 3;
        assert!((arena - 256 * weights..=arena).contains(&summary.peak_bytes), "{summary:?} {plan:?}");
        assert!(summary.eval.is_some());
    }
}

#[test]
fn a_run_goes_on_with_another_policy() {
    let whole = wide(|c| (c.max_steps, c.lora_dropout) = (Some(3), 0.1));
    train(&whole.config);
    let mut part = wide(|c| {
        (c.max_steps, c.lora_dropout) = (Some(3), 0.1);
        c.activation_policy = ActivationPolicy::Checkpoint;
    });
    part.config.train_file = whole.config.train_file.clone();
    part.config.model = whole.config.model.clone();
    assert!(matches!(train_until(&part.config, 1), Err(Error::Interrupted { step: 1, .. })));
    part.config.resume = Some(Resume::Auto);
    part.config.activation_policy = ActivationPolicy::DropGateUp;
    part.config.memory_limit = Some(MemorySize::from_bytes(1 << 40));
    train(&part.config);
    assert!(result(&whole.config, 3) == result(&part.config, 3));
    assert!(whole.dir.path().exists());
}

#[test]
fn a_limit_that_nothing_fits_ends_the_run_before_its_first_step() {
    let setup = wide(|c| c.memory_limit = Some(MemorySize::from_bytes(2 << 20)));
    let mut shown = false;
    let error = run(&setup.config, &Context::default(), &mut |event| {
        shown |= matches!(event, Event::Planned(plan) if !plan.fits);
    });
    let error = error.unwrap_err();
    assert!(shown && error.exit_code() == 2, "{error}");
    let text = error.to_string();
    assert!(text.contains("memory_limit") && text.contains("tokens at once"), "{text}");
    assert!(!setup.config.output_dir.join("checkpoint-2").exists());
}

#[test]
fn a_plan_for_a_card_needs_no_files() {
    let plan = ["inspect", "plan", "--variant", "Qwen3-0.6B", "--gpu", "rtx3080"];
    let out = accepted(
        &plan,
        &[
            "bf16",
            "keep_all",
            "GeForce RTX 3080 10 GB",
            "not a measurement",
            "tokens/s",
            "it fits",
            "adapter master",
        ],
    );
    assert!(out.contains("maximum tokens per pass") && out.contains("base linears"), "{out}");
    let json = accepted(&[&plan[..], &["--json", "--tokens", "9000"]].concat(), &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["device"], &json["fits"]), (&"rtx3080".into(), &true.into()));
    assert_eq!(
        (&json["largest_pass_tokens"], &json["capacity"][0]["activation_policy"]),
        (&9000.into(), &"keep_all".into())
    );
    assert!(json["prediction"]["tokens_per_second"].as_f64().unwrap() > 10_000.0);
    let sum: u64 =
        json["peak_by_use"].as_array().unwrap().iter().map(|of| of["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["peak_bytes"].as_u64(), Some(sum));
    // A plan that does not fit is shown too, and gives an error with settings that would fit.
    let run = tanren(&["inspect", "plan", "--variant", "Qwen3-4B", "--gpu", "rtx3080", "--tokens", "8192"]);
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert!(run.out.contains("does NOT fit"), "{}", run.out);
    assert!(run.err.contains("at most") && run.err.contains("tokens at once"), "{}", run.err);
    refused(&["inspect", "plan", "--variant", "Qwen3-9B"], 2, &["variant", "Qwen3-8B"]);
    refused(&["inspect", "plan", "--variant", "Qwen3-4B", "--gpu", "rtx2"], 2, &["gpu", "h200"]);
    refused(&["inspect", "plan"], 2, &["model"]);
}

#[test]
fn the_plan_of_a_run_is_for_its_rows_here_or_on_a_card() {
    let dir = tempfile::tempdir().unwrap();
    let (model, rows) = (wide_model(dir.path()), dir.path().join("rows.jsonl"));
    write_rows(&rows, 24, 1);
    let options = ["--model", &model, "--train-file", rows.to_str().unwrap(), "--lora-r", "3"];
    let out = accepted(
        &[&["inspect", "plan"], &options[..]].concat(),
        &["r 3,", "blocks keep", "% of the memory that is free", "saved gate, up", "maximum tokens per pass"],
    );
    assert!(!out.contains("predicted"), "{out}");
    let out = dir.path().join("out");
    let train = [&["train", "--dry-run", "--output-dir", out.to_str().unwrap()], &options[..]].concat();
    accepted(&[&train[..], &["--gpu", "h200"]].concat(), &["H200 SXM", "bf16", "nothing was trained"]);
    accepted(&[&train[..], &["--gradient-checkpointing"]].concat(), &["checkpoint"]);
    accepted(&[&train[..], &["--activation-policy", "drop_gate_up"]].concat(), &["drop_gate_up"]);
    refused(&[&train[..], &["--memory-limit", "1MB"]].concat(), 2, &["memory_limit", "smaller model"]);
    refused(&[&train[..], &["--memory-limit", "lots"]].concat(), 2, &["memory_limit", "9.3GiB"]);
    let json = accepted(&[&["inspect", "plan", "--json"], &options[..]].concat(), &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["device"], "cpu");
    assert!(!out.exists());
}

/// Peak resident memory of the program with these arguments, in bytes, as the kernel counts it.
#[cfg(target_os = "linux")]
fn peak_memory(args: &[&str]) -> u64 {
    let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let path = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        // The high-water mark only grows; the last one before the end counts.
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok());
        peak = peak.max(1024 * kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[cfg(target_os = "linux")]
#[test]
fn the_planned_peak_is_that_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny().with_num_hidden_layers(6).with_blocks(|block| {
        (block.attn.heads, block.attn.kv_heads, block.mlp.size) = (6, 3, 1152);
    });
    let shape = ModelConfig { hidden_size: 384, vocab_size: 20_000, ..base };
    let model = dir.path().join("model");
    write_model(&shape, &model);
    let rows = dir.path().join("rows.jsonl");
    let row: Vec<u32> = (0..512).map(|i| i * 7 % 311).collect();
    let labels: Vec<i64> =
        row.iter().enumerate().map(|(i, &id)| if i < 480 { -100 } else { i64::from(id) }).collect();
    let line = serde_json::json!({ "input_ids": row, "labels": labels });
    std::fs::write(&rows, format!("{line}\n{line}\n")).unwrap();
    for policy in ["keep_all", "checkpoint"] {
        let out = dir.path().join(policy);
        let args = [
            "train",
            "--model",
            model.to_str().unwrap(),
            "--train-file",
            rows.to_str().unwrap(),
            "--output-dir",
            out.to_str().unwrap(),
            "--batch-size",
            "2",
            "--max-steps",
            "1",
            "--threads",
            "2",
            "--preset",
            "none",
            "--activation-policy",
            policy,
        ];
        // The memory of the program itself: the same run up to its first step, without weights.
        let dry = [&args[..], &["--dry-run"]].concat();
        let fixed = peak_memory(&dry);
        let taken = peak_memory(&args) - fixed;
        let plan: Value = {
            let inspect = [&["inspect", "plan", "--json"], &args[1..5], &args[7..]].concat();
            serde_json::from_str(&accepted(&inspect, &[])).unwrap()
        };
        let planned = plan["peak_bytes"].as_u64().unwrap();
        let difference = taken as f64 / planned as f64 - 1.0;
        println!("{policy}: planned {planned}, taken {taken} ({:+.1}%), fixed {fixed}", 100.0 * difference);
        assert!(difference.abs() < 0.05, "{policy}: planned {planned}, taken {taken}");
    }
}
