//! Whole fine-tuning runs against transformers + PEFT: logits, losses, gradients, final adapters (f32, CPU).
//!
//! The fixtures in `tests/golden/` were computed with transformers 4.57.6 and PEFT 0.18.1; their README says how.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tanren::batch::{Batch, IGNORE_INDEX, Target};
use tanren::config::{LrScheduler, ModelConfig};
use tanren::device::Device;
use tanren::formats::adapter::read_adapter;
use tanren::formats::model_folder::ModelFolder;
use tanren::formats::safetensors::TensorFile;
use tanren::model::{Adapter, Decoder, PassOptions, load};
use tanren::optim::{Optimizer, Schedule, Update};

/// One case, loaded.
struct Case {
    dir: PathBuf,
    json: Value,
    device: Device,
    model: Decoder<f32>,
    expected: TensorFile,
}

impl Case {
    fn open(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let folder = ModelFolder::open(&dir.join(json["model_dir"].as_str().unwrap())).unwrap();
        let (path, text) = folder.config_json();
        let config = ModelConfig::from_json(path, text).unwrap();
        let device = Device::cpu(2).unwrap();
        let loaded = load::load(&device, &config, &folder, &|_, _| {}).unwrap();
        assert!(loaded.unused.is_empty(), "{:?}", loaded.unused);
        let expected = TensorFile::open(&dir.join("expected.safetensors")).unwrap();
        Self { dir, json, device, model: Decoder { config, weights: loaded.weights }, expected }
    }

    fn adapter(&self, folder: &str) -> Adapter<f32> {
        let dir = self.dir.join(folder);
        let peft = read_adapter(&dir).unwrap();
        Adapter::from_peft(&self.device, &self.model.config, &peft.config, &peft.tensors, &dir).unwrap()
    }

    /// The micro-batches of a step.
    fn micro_batches(&self, step: usize) -> Vec<Vec<(Vec<u32>, Vec<i64>)>> {
        let numbers = |v: &Value| -> Vec<i64> { serde_json::from_value(v.clone()).unwrap() };
        let sequence =
            |s: &Value| (numbers(&s["input_ids"]).iter().map(|&i| i as u32).collect(), numbers(&s["labels"]));
        let batches = self.json["steps"][step]["micro_batches"].as_array().unwrap();
        batches.iter().map(|b| b.as_array().unwrap().iter().map(sequence).collect()).collect()
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        self.expected.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let view = self.expected.get(name).unwrap();
        let bytes = view.bytes().chunks_exact(view.dtype().size());
        bytes.map(|b| i64::from_le_bytes(std::array::from_fn(|i| *b.get(i).unwrap_or(&0))) as usize).collect()
    }
}

/// Sequences as one packed batch; a target for every label but the first one of a sequence.
fn pack(sequences: &[(Vec<u32>, Vec<i64>)]) -> Batch {
    let mut batch = Batch::default();
    for (input_ids, labels) in sequences {
        let start = batch.total_tokens();
        batch.push_segment(input_ids, None, 0);
        for (t, &label) in labels.iter().enumerate().skip(1).filter(|(_, l)| **l != IGNORE_INDEX) {
            batch.targets.push(Target { row: start + t - 1, token: label as u32, weight: 1.0 });
        }
    }
    batch
}

fn close(name: &str, got: &[f32], expected: &[f32], rtol: f32, atol: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= rtol * e.abs() + atol, "{name}[{i}]: got {g}, expected {e}");
    }
}

fn check(name: &str) {
    let case = Case::open(name);
    let (device, model) = (&case.device, &case.model);
    let mut adapters = vec![case.adapter("adapter_init")];

    // Logits and log-probabilities of step 0, packed together, without and with the adapter.
    let step0: Vec<_> = case.micro_batches(0).concat();
    let batch = pack(&step0);
    assert_eq!(batch.cu_seqlens(), case.integers("cu_seqlens"));
    let rows: Vec<usize> = (0..batch.total_tokens()).collect();
    for (suffix, adapters) in [("base", &[][..]), ("adapter", &adapters[..])] {
        let logits = model.logits(device, &batch, adapters, &rows).unwrap();
        close(suffix, logits.data(), &case.tensor(&format!("logits_{suffix}")), 1e-5, 2e-5);
        let scores = model.score(device, &batch, adapters).unwrap();
        let logprobs: Vec<f32> = scores.iter().map(|s| s.logprob as f32).collect();
        close(suffix, &logprobs, &case.tensor(&format!("label_logprobs_{suffix}")), 1e-5, 2e-5);
    }
    let target_rows: Vec<usize> = batch.targets.iter().map(|t| t.row).collect();
    assert_eq!(target_rows, case.integers("label_rows"));

    // Six steps.
    let mut optimizer = Optimizer::new(device, &adapters[0]).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let settings = &case.json["schedule"];
    let schedule = Schedule {
        kind: LrScheduler::Cosine,
        peak: number(&settings["peak_lr"]),
        warmup_steps: settings["warmup_steps"].as_u64().unwrap(),
        total_steps: settings["total_steps"].as_u64().unwrap(),
    };
    let adamw = &case.json["optimizer"];
    for (step, expected) in case.json["steps"].as_array().unwrap().iter().enumerate() {
        let learning_rate = schedule.learning_rate(step as u64);
        assert!((learning_rate - number(&expected["lr"])).abs() < 1e-12);
        let scale = 1.0 / number(&expected["num_items"]);
        let options = PassOptions { scale, dropout: None, policies: &[] };
        let mut grads = vec![adapters[0].zeros_like(device).unwrap()];
        let mut loss = 0.0;
        for sequences in case.micro_batches(step) {
            let scores =
                model.score_and_backward(device, &pack(&sequences), &adapters, &mut grads, options).unwrap();
            loss -= scale * scores.iter().map(|s| s.logprob).sum::<f64>();
        }
        let expected_loss = number(&expected["loss"]);
        assert!((loss / expected_loss - 1.0).abs() < 1e-4, "step {step}: {loss} {expected_loss}");
        if step == 0 {
            for (name, grad) in grads[0].named_tensors() {
                let expected = case.tensor(&format!("grad.{name}"));
                let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                close(&name, grad.data(), &expected, 1e-4, 1e-5 * largest);
            }
        }
        let norm = optimizer.grad_norm(device, &grads[0]);
        let expected_norm = number(&expected["grad_norm"]);
        assert!((norm / expected_norm - 1.0).abs() < 1e-4, "step {step}: {norm} {expected_norm}");
        let update = Update {
            learning_rate,
            beta1: number(&adamw["beta1"]),
            beta2: number(&adamw["beta2"]),
            epsilon: number(&adamw["eps"]),
            weight_decay: number(&adamw["weight_decay"]),
            max_grad_norm: Some(number(&adamw["max_grad_norm"])),
        };
        optimizer.apply(device, &update, norm, &mut adapters[0], &grads[0]).unwrap();
    }

    let last = case.adapter("adapter_final");
    let expected: BTreeMap<_, _> = last.named_tensors().into_iter().collect();
    for (name, tensor) in adapters[0].named_tensors() {
        close(&name, tensor.data(), expected[&name].data(), 1e-4, 1e-5);
    }
    let scores = model.score(device, &batch, &adapters).unwrap();
    let logprobs: Vec<f32> = scores.iter().map(|s| s.logprob as f32).collect();
    close("final", &logprobs, &case.tensor("label_logprobs_final"), 1e-4, 1e-4);
    let window = -scores.iter().map(|s| s.logprob).sum::<f64>() / scores.len() as f64;
    let expected = number(&case.json["loss_step0_window_after_training"]);
    assert!((window / expected - 1.0).abs() < 1e-4, "{window} {expected}");
}

#[test]
fn qwen3_lora() {
    check("qwen3_lora");
}

#[test]
fn qwen3_headdim128() {
    check("qwen3_headdim128");
}

#[test]
fn qwen2_lora() {
    check("qwen2_lora");
}

#[test]
fn qwen2_rslora() {
    check("qwen2_rslora");
}

#[test]
fn qwen3_dora() {
    check("qwen3_dora");
}
