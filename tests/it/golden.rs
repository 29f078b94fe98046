//! Whole fine-tuning runs against transformers + PEFT: logits, losses, gradients, final adapters. In f32 on the CPU, and in bf16
//! through the GPU kernels, on the emulator (or a GPU, see [`gpu_device`]).
//!
//! The fixtures in `tests/golden/` were computed with transformers 4.57.6 and PEFT 0.18.1 in f32; their
//! README says how. `bf16.json` of each case has the errors of transformers and PEFT in bf16, which are the
//! tolerance for bf16.
//!
//! `TANREN_GOLDEN` names another folder of cases made by the same generator. Every case of the folder is run, or shown to be
//! refused: cases of the default folder by a test each, others by the tests of `others`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "the figures of a test that passes, for --nocapture")]

use std::path::PathBuf;

use serde_json::Value;
use tanren::batch::{Batch, IGNORE_INDEX, TokenTarget};
use tanren::config::{LrScheduler, ModelConfig};
use tanren::device::Device;
use tanren::formats::adapter::{AdapterTensor, read_adapter};
use tanren::formats::model_folder::ModelFolder;
use tanren::formats::safetensors::TensorFile;
use tanren::model::{Adapter, Decoder, PassOptions, load};
use tanren::optim::{Optimizer, Schedule, Update};
use tanren::tensor::Real;

/// The folder of the cases.
pub(crate) fn folder() -> PathBuf {
    let default = crate::source::root().join("tests/golden");
    std::env::var_os("TANREN_GOLDEN").map_or(default, PathBuf::from)
}

/// One case, as its files have it.
struct Case {
    dir: PathBuf,
    json: Value,
    config: ModelConfig,
    folder: ModelFolder,
    expected: TensorFile,
}

/// What a run of a case gives, in the order of the files.
struct Outcome {
    /// Without and with the adapter.
    logits: [Vec<f32>; 2],
    label_logprobs: [Vec<f32>; 2],
    /// By step.
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    /// Of step 0.
    grads: Vec<(String, AdapterTensor)>,
    adapter: Vec<(String, AdapterTensor)>,
    final_logprobs: Vec<f32>,
}

impl Case {
    fn open(name: &str) -> Self {
        let dir = folder().join(name);
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let folder = ModelFolder::open(&dir.join(json["model_dir"].as_str().unwrap())).unwrap();
        let (path, text) = folder.config_json();
        let config = ModelConfig::from_json(path, text).unwrap();
        let expected = TensorFile::open(&dir.join("expected.safetensors")).unwrap();
        Self { dir, json, config, folder, expected }
    }

    fn open_if(name: &str, opens: bool) -> Option<Self> {
        opens.then(|| Self::open(name))
    }

    /// The same case with another description of its model.
    fn with_config(mut self, path: &std::path::Path) -> Self {
        self.config = ModelConfig::from_json(path, &std::fs::read_to_string(path).unwrap()).unwrap();
        self
    }

    /// An adapter of the case, in f32.
    fn adapter(&self, device: &Device, folder: &str) -> Adapter<f32> {
        let dir = self.dir.join(folder);
        let peft = read_adapter(&dir).unwrap();
        Adapter::from_peft(device, &self.config, &peft.config, &peft.tensors, &dir).unwrap()
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
        let bytes = view.bytes(usize::MAX).unwrap();
        let bytes = bytes.chunks_exact(view.dtype().bitsize() / 8);
        bytes.map(|b| i64::from_le_bytes(std::array::from_fn(|i| *b.get(i).unwrap_or(&0))) as usize).collect()
    }

    fn steps(&self) -> &[Value] {
        self.json["steps"].as_array().unwrap()
    }

    /// The case on `device`, in numbers of type `T`.
    fn run<T: Real<Stat = f32>>(&self, device: &Device) -> Outcome {
        let loaded = load::load::<T>(device, &self.config, &self.folder, &|_, _| {}).unwrap();
        assert!(loaded.unused.is_empty(), "{:?}", loaded.unused);
        let model = Decoder { config: self.config.clone(), weights: loaded.weights };
        let master = self.adapter(device, "adapter_init");
        let (mut optimizer, adapter) = Optimizer::<T>::with_master(device, master).unwrap();
        let mut adapters = vec![adapter];

        // Logits and log-probabilities of step 0, packed together, without and with the adapter.
        let batch = pack(&self.micro_batches(0).concat());
        assert_eq!(batch.cu_seqlens(), self.integers("cu_seqlens"));
        let target_rows: Vec<usize> = batch.targets.tokens().iter().map(|t| t.row).collect();
        assert_eq!(target_rows, self.integers("label_rows"));
        let rows: Vec<usize> = (0..batch.total_tokens()).collect();
        let logprobs = |adapters: &[Adapter<T>]| -> Vec<f32> {
            let scores = model.score(device, &batch, adapters).unwrap();
            scores.iter().map(|s| s.logprob as f32).collect()
        };
        let with = [&[][..], &adapters[..]];
        let logits = with.map(|adapters| {
            let logits = model.logits(device, &batch, adapters, &rows).unwrap();
            device.read(&logits).unwrap().iter().map(|x| x.to_f64() as f32).collect()
        });
        let label_logprobs = with.map(logprobs);

        let number = |v: &Value| v.as_f64().unwrap();
        let settings = &self.json["schedule"];
        let schedule = Schedule {
            kind: LrScheduler::Cosine,
            peak: number(&settings["peak_lr"]),
            warmup_steps: settings["warmup_steps"].as_u64().unwrap(),
            total_steps: settings["total_steps"].as_u64().unwrap(),
        };
        let adamw = &self.json["optimizer"];
        let (mut losses, mut grad_norms, mut first_grads) = (Vec::new(), Vec::new(), Vec::new());
        for (step, expected) in self.steps().iter().enumerate() {
            let learning_rate = schedule.learning_rate(step as u64);
            assert!((learning_rate - number(&expected["lr"])).abs() < 1e-12);
            let scale = 1.0 / number(&expected["num_items"]);
            let options = PassOptions { scale, dropout: None, policies: &[] };
            let mut grads = vec![adapters[0].zeros_like(device).unwrap()];
            let mut loss = 0.0;
            for sequences in self.micro_batches(step) {
                let batch = pack(&sequences);
                let scores =
                    model.score_and_backward(device, &batch, &adapters, &mut grads, options).unwrap();
                loss -= scale * scores.iter().map(|s| s.logprob).sum::<f64>();
            }
            losses.push(loss);
            if step == 0 {
                first_grads = grads[0].to_peft(device).unwrap();
            }
            let update = Update {
                learning_rate,
                beta1: number(&adamw["beta1"]),
                beta2: number(&adamw["beta2"]),
                epsilon: number(&adamw["eps"]),
                weight_decay: number(&adamw["weight_decay"]),
                max_grad_norm: Some(number(&adamw["max_grad_norm"])),
            };
            grad_norms.push(optimizer.update(device, &update, &mut adapters[0], &grads[0]).unwrap());
        }
        Outcome {
            logits,
            label_logprobs,
            losses,
            grad_norms,
            grads: first_grads,
            adapter: optimizer.trained_to_peft(device, &adapters[0]).unwrap(),
            final_logprobs: logprobs(&adapters),
        }
    }

    /// Errors of PyTorch in bf16, for cases without their own: of logits measured on the CPU with torch 2.9.1 over six layers of 256
    /// features, where logits had a standard deviation of 0.96; of losses and gradients the largest of the cases of this
    /// repository, because small models have larger ones.
    #[cfg(feature = "emulated")]
    fn usual_floor(&self) -> Value {
        let of = |name: &str| {
            let all: Vec<f64> = self.tensor(name).iter().map(|x| f64::from(*x)).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let spread = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
            let largest = all.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            serde_json::json!({ "max": 0.14 / 0.96 * spread, "mean": 0.017 / 0.96 * spread, "largest": largest })
        };
        let names = ["logits_base", "logits_adapter"].into_iter();
        let names = names.chain(["label_logprobs_base", "label_logprobs_adapter", "label_logprobs_final"]);
        let mut floor: serde_json::Map<String, Value> =
            names.map(|name| (name.to_owned(), of(name))).collect();
        floor.insert("loss".into(), serde_json::json!({ "max": 0.012, "mean": 0.0062 }));
        floor.insert("grad".into(), 0.0237.into());
        floor.extend(["grad_norm", "adapter_final"].map(|name| (name.to_owned(), 0.0066.into())));
        Value::Object(floor)
    }

    /// Each step's loss and norm of the gradient.
    fn expected_steps(&self) -> impl Iterator<Item = (f64, f64)> {
        self.steps().iter().map(|s| (s["loss"].as_f64().unwrap(), s["grad_norm"].as_f64().unwrap()))
    }
}

/// Sequences as one packed batch; a target for every label but the first one of a sequence.
fn pack(sequences: &[(Vec<u32>, Vec<i64>)]) -> Batch {
    let mut batch = Batch::default();
    for (input_ids, labels) in sequences {
        let start = batch.total_tokens();
        batch.push_segment(input_ids, None, 0);
        for (t, &label) in labels.iter().enumerate().skip(1).filter(|(_, l)| **l != IGNORE_INDEX) {
            batch.targets.tokens_mut().unwrap().push(TokenTarget {
                row: start + t - 1,
                token: label as u32,
                weight: 1.0,
            });
        }
    }
    batch
}

pub(crate) fn close(name: &str, got: &[f32], expected: &[f32], rtol: f32, atol: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= rtol * e.abs() + atol, "{name}[{i}]: got {g}, expected {e}");
    }
}

/// f32 on the CPU agrees with f32 of PyTorch to rounding.
fn check(name: &str) {
    let case = Case::open(name);
    let got = case.run::<f32>(&Device::cpu(2).unwrap());
    for (i, suffix) in ["base", "adapter"].into_iter().enumerate() {
        close(suffix, &got.logits[i], &case.tensor(&format!("logits_{suffix}")), 1e-5, 2e-5);
        let expected = case.tensor(&format!("label_logprobs_{suffix}"));
        close(suffix, &got.label_logprobs[i], &expected, 1e-5, 2e-5);
    }
    for (step, (loss, norm)) in case.expected_steps().enumerate() {
        assert!((got.losses[step] / loss - 1.0).abs() < 1e-4, "step {step}: {} {loss}", got.losses[step]);
        let own = got.grad_norms[step];
        assert!((own / norm - 1.0).abs() < 1e-4, "step {step}: {own} {norm}");
    }
    for (name, grad) in &got.grads {
        let expected = case.tensor(&format!("grad.{name}"));
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        close(name, &grad.data, &expected, 1e-4, 1e-5 * largest);
    }
    let last = read_adapter(&case.dir.join("adapter_final")).unwrap();
    for (name, tensor) in &got.adapter {
        assert_eq!(tensor.shape, last.tensors[name].shape, "{name}");
        close(name, &tensor.data, &last.tensors[name].data, 1e-4, 1e-5);
    }
    close("final", &got.final_logprobs, &case.tensor("label_logprobs_final"), 1e-4, 1e-4);
    let window =
        -got.final_logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / got.final_logprobs.len() as f64;
    let expected = case.json["loss_step0_window_after_training"].as_f64().unwrap();
    assert!((window / expected - 1.0).abs() < 1e-4, "{window} {expected}");
}

/// The device of the tests in bf16: the emulator with its checks and a random order of execution (another one with
/// `TANREN_TEST_SEED=N`, sums that are cut off with `TANREN_TEST_MMA=truncate`), or with `TANREN_TEST_DEVICE=cuda` the first GPU.
#[cfg(feature = "emulated")]
pub(crate) fn gpu_device(seed: u64) -> Device {
    use tanren::device::{EmulatorOptions, Schedule};
    if std::env::var("TANREN_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return Device::cuda(0).unwrap();
    }
    let shift = std::env::var("TANREN_TEST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0u64);
    let schedule = Schedule::Random(seed.wrapping_add(shift.wrapping_mul(1 << 20)));
    let truncates_mma = std::env::var("TANREN_TEST_MMA").is_ok_and(|sums| sums == "truncate");
    let options = EmulatorOptions { check: true, schedule, truncates_mma, ..EmulatorOptions::default() };
    Device::emulated(options).unwrap()
}

/// Largest and mean absolute difference.
#[cfg(feature = "emulated")]
fn distance(got: &[f32], expected: &[f32]) -> [f64; 2] {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(g, e)| f64::from((g - e).abs()));
    let (max, sum) = errors.fold((0.0f64, 0.0), |(max, sum), e| {
        assert!(e.is_finite(), "not finite");
        (max.max(e), sum + e)
    });
    [max, sum / got.len() as f64]
}

/// Euclidean distance over the norm of what is expected, over all tensors together.
#[cfg(feature = "emulated")]
pub(crate) fn relative<'a>(pairs: impl Iterator<Item = (&'a [f32], Vec<f32>)>) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (got, expected) in pairs {
        assert_eq!(got.len(), expected.len());
        error += got.iter().zip(&expected).map(|(g, e)| f64::from(g - e).powi(2)).sum::<f64>();
        norm += expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>();
    }
    (error / norm).sqrt()
}

/// bf16 through the GPU kernels is as near to f32 as PyTorch's bf16 is, within the factors of the parity rules: 1.5 for
/// logits and log-probabilities, 3 for gradients, and one unit in the last place of the largest number.
#[cfg(feature = "emulated")]
fn check_bf16(name: &str) {
    let case = Case::open(name);
    let got = case.run::<half::bf16>(&gpu_device(1));
    let floor = match std::fs::read(case.dir.join("bf16.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(_) => case.usual_floor(),
    };
    let mut report = Vec::new();
    let mut faults = Vec::new();
    let mut hold = |what: String, got: f64, limit: f64| {
        report.push(format!("{what} {got:.2e} of {limit:.2e}"));
        if got.is_nan() || got > limit {
            faults.push(format!("{what}: {got:e}, allowed {limit:e}"));
        }
    };
    let as_near = |what: &str, got: &[f32], hold: &mut dyn FnMut(String, f64, f64)| {
        let of = |key: &str| floor[what][key].as_f64().unwrap();
        let unit = of("largest") * f64::from(half::bf16::EPSILON);
        let [max, mean] = distance(got, &case.tensor(what));
        hold(format!("{what} max"), max, 1.5 * of("max") + unit);
        hold(format!("{what} mean"), mean, 1.5 * of("mean") + unit / 16.0);
    };
    for (i, suffix) in ["base", "adapter"].into_iter().enumerate() {
        as_near(&format!("logits_{suffix}"), &got.logits[i], &mut hold);
        as_near(&format!("label_logprobs_{suffix}"), &got.label_logprobs[i], &mut hold);
    }
    as_near("label_logprobs_final", &got.final_logprobs, &mut hold);
    let number = |value: &Value| value.as_f64().unwrap();
    let steps = case.steps().len() as f64;
    let (mut worst_loss, mut mean_loss, mut worst_norm) = (0.0f64, 0.0, 0.0f64);
    for (step, (loss, norm)) in case.expected_steps().enumerate() {
        worst_loss = worst_loss.max((got.losses[step] - loss).abs());
        mean_loss += (got.losses[step] - loss).abs() / steps;
        worst_norm = worst_norm.max((got.grad_norms[step] / norm - 1.0).abs());
    }
    hold("loss max".into(), worst_loss, 1.5 * number(&floor["loss"]["max"]) + 1e-3);
    hold("loss mean".into(), mean_loss, 1.5 * number(&floor["loss"]["mean"]) + 1e-3);
    hold("grad_norm".into(), worst_norm, 3.0 * number(&floor["grad_norm"]) + 1e-3);
    let grads = got.grads.iter().map(|(name, t)| (&t.data[..], case.tensor(&format!("grad.{name}"))));
    hold("gradients".into(), relative(grads), 3.0 * number(&floor["grad"]));
    let last = read_adapter(&case.dir.join("adapter_final")).unwrap();
    let finals = got.adapter.iter().map(|(name, t)| (&t.data[..], last.tensors[name].data.clone()));
    hold("final adapter".into(), relative(finals), 3.0 * number(&floor["adapter_final"]));
    assert!(faults.is_empty(), "{name}: {faults:#?}\nall: {report:#?}");
    println!("{name}: {}", report.join(", "));
}

macro_rules! cases {
    ($($name:ident),+) => {
        /// The cases that have a test of their own.
        const NAMED: &[&str] = &[$(stringify!($name)),+];

        $(#[test]
        fn $name() {
            if is_there(stringify!($name)) {
                check(stringify!($name));
            }
        })+

        #[cfg(feature = "emulated")]
        mod gpu {
            $(#[test]
            fn $name() {
                if super::is_there(stringify!($name)) {
                    super::check_bf16(stringify!($name));
                }
            })+

            #[test]
            fn others() {
                super::others(super::check_bf16);
            }
        }
    };
}

cases!(qwen3_lora, qwen3_headdim128, qwen2_lora, qwen2_rslora, qwen3_dora, gpt2_lora, llama_lora);

/// Whether the folder has the case. The default one must.
fn is_there(name: &str) -> bool {
    let there = folder().join(name).join("case.json").is_file();
    assert!(there || std::env::var_os("TANREN_GOLDEN").is_some(), "no case {name} in {}", folder().display());
    there
}

/// The kind of a case for this build.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A whole training that this build supports.
    Training,
    /// A training that this build refuses: another family of models, task, or type of weights.
    Refused,
    /// A training with a head for labels, which `golden_heads` runs.
    Labels,
    /// Not a training: other tests use it, or no test does yet.
    Other,
}

/// The cases of the folder by their names, each with its kind. Refused ones are shown to be refused.
fn cases() -> Vec<(String, Kind)> {
    let folders = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<(String, Kind)> = folders
        .filter(|path| path.join("case.json").is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let kind = kind(&path);
            (name, kind)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

fn kind(dir: &std::path::Path) -> Kind {
    let json: Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
    let is_training =
        json["steps"].is_array() && json["lora"].is_object() && dir.join("adapter_init").is_dir();
    let (true, Some(model)) = (is_training, json["model_dir"].as_str()) else { return Kind::Other };
    if dir.join("quant.safetensors").is_file() {
        return Kind::Refused;
    }
    let folder = ModelFolder::open(&dir.join(model)).unwrap();
    let (path, text) = folder.config_json();
    let config = ModelConfig::from_json(path, text);
    match config {
        Ok(_) if json["task"] == "causal_lm" => Kind::Training,
        Ok(_) => Kind::Labels,
        Err(error) => {
            let error = error.to_string();
            let named = ["model_type", "architectures", "rope", "task_type", "modules_to_save", "score"];
            assert!(named.iter().any(|word| error.contains(word)), "{}: {error}", dir.display());
            Kind::Refused
        }
    }
}

/// Runs the trainings of the folder that have no test of their own.
fn others(check: fn(&str)) {
    let cases = cases();
    let of = |kind: Kind| cases.iter().filter(|case| case.1 == kind).map(|case| case.0.as_str()).collect();
    let (trainings, refused, other): (Vec<&str>, Vec<&str>, Vec<&str>) =
        (of(Kind::Training), of(Kind::Refused), of(Kind::Other));
    let labels: Vec<&str> = of(Kind::Labels);
    println!("{}: {trainings:?} run, {refused:?} refused, {other:?} are no trainings", folder().display());
    assert!(!trainings.is_empty(), "no training in {}", folder().display());
    let (named, others): (Vec<&str>, Vec<&str>) = trainings.iter().partition(|name| NAMED.contains(name));
    others.iter().for_each(|name| check(name));
    assert_eq!(named.len() + others.len() + labels.len() + refused.len() + other.len(), cases.len());
    if std::env::var_os("TANREN_GOLDEN").is_none() {
        assert_eq!(named.len(), NAMED.len(), "a case without a test, or a test without a case");
        assert!(others.is_empty() && refused.is_empty(), "{others:?} {refused:?}: name them in `cases!`");
    }
}

/// Models that come with the descriptions of other versions of transformers are the same under each.
#[test]
fn every_spelling_of_a_configuration_is_the_same_model() {
    for (name, kind) in cases() {
        let case = Case::open_if(&name, kind == Kind::Training);
        let Some(case) = case else { continue };
        let dir = case.folder.dir().to_owned();
        for file in ["config_v5.json", "config_old.json"].map(|file| dir.join(file)) {
            if file.is_file() {
                let own = case.config.clone();
                assert_eq!(Case::open(&name).with_config(&file).config, own, "{}", file.display());
            }
        }
    }
}

#[test]
fn every_case_of_the_folder_is_run_or_refused() {
    others(check);
}
