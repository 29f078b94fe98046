//! Heads for labels against transformers + PEFT: classification with decoders, regression with encoders, every loss, and the hidden
//! states of a real encoder. In f32 on the CPU, and trainings in bf16 through the kernels.
//!
//! Like `golden`, these tests run every case of their kind that is in the folder that `TANREN_GOLDEN` names.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "what was run, for --nocapture")]

use std::path::{Path, PathBuf};

use serde_json::Value;
#[cfg(feature = "emulated")]
use serde_json::json;
use tanren::batch::{Batch, Label, LabelTarget, Targets};
use tanren::config::head::{HeadSpec, Pool};
use tanren::config::{LrScheduler, ModelConfig};
use tanren::device::Device;
use tanren::formats::adapter::{AdapterTensor, read_adapter};
use tanren::formats::model_folder::ModelFolder;
use tanren::formats::safetensors::TensorFile;
use tanren::model::{Adapter, Decoder, PassOptions, load};
use tanren::ops::label_head::{LabelScore, Loss};
use tanren::optim::{Optimizer, Schedule, Update};
use tanren::tensor::{DType, Real};

use crate::golden::{close, folder};
#[cfg(feature = "emulated")]
use crate::golden::{gpu_device, relative};

/// A case: its files, and the model with a head of the right size.
struct Case<T: Real> {
    dir: PathBuf,
    json: Value,
    expected: TensorFile,
    device: Device,
    model: Decoder<T>,
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

impl<T: Real<Stat = f32>> Case<T> {
    /// `change` may change the head that config.json says.
    fn open(name: &str, device: Device, change: impl Fn(ModelConfig) -> ModelConfig) -> Self {
        let dir = folder().join(name);
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let folder = ModelFolder::open(&dir.join(text(&json["model_dir"]))).unwrap();
        let (path, config) = folder.config_json();
        let config = change(ModelConfig::from_json(path, config).unwrap());
        let loaded = load::load(&device, &config, &folder, &|_, _| {}).unwrap();
        let model = Decoder { config, weights: loaded.weights };
        let expected = TensorFile::open(&dir.join("expected.safetensors")).unwrap();
        Self { dir, json, expected, device, model }
    }

    fn adapter<A: Real<Stat = f32>>(&self, folder: &str) -> Adapter<A> {
        let dir = self.dir.join(folder);
        let peft = read_adapter(&dir).unwrap();
        let adapter =
            Adapter::from_peft(&self.device, &self.model.config, &peft.config, &peft.tensors, &dir).unwrap();
        // What is written is what was read.
        let written = adapter.peft_config("m");
        assert_eq!(written.modules_to_save, peft.config.modules_to_save);
        assert_eq!(written.task_type, peft.config.task_type);
        for (name, tensor) in adapter.to_peft(&self.device).unwrap() {
            assert!(A::DTYPE != DType::F32 || tensor == peft.tensors[&name], "{name}");
        }
        adapter
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        self.expected.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
    }

    /// Sequences as one batch, with these labels.
    fn batch<'v>(&self, sequences: impl IntoIterator<Item = (&'v Value, Label)>) -> Batch {
        let HeadSpec::Labels(head) = &self.model.config.head else { panic!("no head for labels") };
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let (mut batch, mut targets) = (Batch::default(), Vec::new());
        for (sequence, label) in sequences {
            let (start, input_ids) = (batch.total_tokens(), ids(&sequence["input_ids"]));
            batch.push_segment(&input_ids, None, 0);
            if sequence["token_type_ids"].is_array() {
                batch.token_type_ids.extend(ids(&sequence["token_type_ids"]));
            }
            let rows = head.pool.rows(start..start + input_ids.len());
            targets.push(LabelTarget { rows, label, weight: 1.0 });
        }
        batch.targets = Targets::Labels(targets);
        batch
    }

    /// The micro-batches of a step.
    fn micro_batches(&self, step: usize) -> Vec<Batch> {
        let is_class = self.json["task"] == "seq_cls";
        let label = |sequence: &Value| match is_class {
            true => Label::Class(sequence["label"].as_u64().unwrap() as u32),
            false => Label::Numbers(vec![number(&sequence["label"]) as f32]),
        };
        let batches = self.json["steps"][step]["micro_batches"].as_array().unwrap();
        let batch = |sequences: &Value| {
            self.batch(sequences.as_array().unwrap().iter().map(|sequence| (sequence, label(sequence))))
        };
        batches.iter().map(batch).collect()
    }

    fn loss(&self) -> Loss {
        if self.json["task"] == "seq_cls" { Loss::cross_entropy() } else { Loss::SigmoidMse }
    }

    /// Logits of the data of step 0, its micro-batches one after another.
    fn logits(&self, adapters: &[Adapter<T>]) -> Vec<f32> {
        let of = |batch: &Batch| {
            let scores = self.model.score_labels(&self.device, batch, adapters, &self.loss()).unwrap();
            scores.into_iter().flat_map(|score| score.logits)
        };
        self.micro_batches(0).iter().flat_map(of).collect()
    }
}

fn check_tensors<'a>(
    got: impl IntoIterator<Item = &'a (String, AdapterTensor)>,
    expected: impl Fn(&str) -> Vec<f32>,
    atol: Option<f32>,
) {
    for (name, tensor) in got {
        let expected = expected(name);
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        close(name, &tensor.data, &expected, 1e-4, atol.unwrap_or(1e-5 * largest));
    }
}

/// What a training gave.
struct Trained {
    logits: [Vec<f32>; 3],
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Of the first step.
    grads: Vec<(String, AdapterTensor)>,
    last: Vec<(String, AdapterTensor)>,
}

/// All steps of a case.
fn trained<T: Real<Stat = f32>>(case: &Case<T>) -> Trained {
    let device = &case.device;
    let base = case.logits(&[]);
    let (mut optimizer, adapter) =
        Optimizer::<T>::with_master(device, case.adapter::<f32>("adapter_init")).unwrap();
    let schedule = Schedule {
        kind: LrScheduler::Cosine,
        peak: number(&case.json["schedule"]["peak_lr"]),
        warmup_steps: case.json["schedule"]["warmup_steps"].as_u64().unwrap(),
        total_steps: case.json["schedule"]["total_steps"].as_u64().unwrap(),
    };
    let adamw = &case.json["optimizer"];
    let mut adapters = [adapter];
    let with_adapter = case.logits(&adapters);
    let (mut losses, mut norms, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for (step, expected) in case.json["steps"].as_array().unwrap().iter().enumerate() {
        let mut grads = [adapters[0].zeros_like(device).unwrap()];
        let options =
            PassOptions { scale: 1.0 / number(&expected["num_items"]), dropout: None, policies: &[] };
        let mut loss = 0.0;
        for batch in case.micro_batches(step) {
            let scores = case.model.score_labels_and_backward(
                device,
                &batch,
                (&adapters, &mut grads),
                &case.loss(),
                options,
            );
            loss += options.scale * scores.unwrap().iter().map(|score| score.loss).sum::<f64>();
        }
        losses.push(loss);
        if step == 0 {
            first = grads[0].to_peft(device).unwrap();
        }
        let update = Update {
            learning_rate: schedule.learning_rate(step as u64),
            beta1: number(&adamw["beta1"]),
            beta2: number(&adamw["beta2"]),
            epsilon: number(&adamw["eps"]),
            weight_decay: number(&adamw["weight_decay"]),
            max_grad_norm: Some(number(&adamw["max_grad_norm"])),
        };
        norms.push(optimizer.update(device, &update, &mut adapters[0], &grads[0]).unwrap());
    }
    let last = optimizer.trained_to_peft(device, &adapters[0]).unwrap();
    let logits = [base, with_adapter, case.logits(&adapters)];
    Trained { logits, losses, norms, grads: first, last }
}

/// A whole training: logits with the model's own head and with the adapter's, losses, norms, gradients and the final adapter.
fn check_training(name: &str) {
    let case = Case::<f32>::open(name, Device::cpu(2).unwrap(), |config| config);
    let device = &case.device;
    let got = trained(&case);
    close("logits_base", &got.logits[0], &case.tensor("logits_base"), 1e-5, 2e-5);
    close("logits_adapter", &got.logits[1], &case.tensor("logits_adapter"), 1e-5, 2e-5);
    close("logits_final", &got.logits[2], &case.tensor("logits_final"), 1e-4, 1e-4);
    for (step, expected) in case.json["steps"].as_array().unwrap().iter().enumerate() {
        let (loss, norm) = (got.losses[step], got.norms[step]);
        assert!((loss / number(&expected["loss"]) - 1.0).abs() < 1e-4, "step {step}: {loss}");
        assert!((norm / number(&expected["grad_norm"]) - 1.0).abs() < 1e-4, "step {step}: norm {norm}");
    }
    check_tensors(&got.grads, |name| case.tensor(&format!("grad.{name}")), None);
    let last = read_adapter(&case.dir.join("adapter_final")).unwrap();
    assert_eq!(got.last.len(), last.tensors.len());
    check_tensors(&got.last, |name| last.tensors[name].data.clone(), Some(1e-5));

    // One batch, or as many as there are sequences: the same gradients.
    let one = [case.adapter::<f32>("adapter_init")];
    let parts = case.micro_batches(0);
    let gradient = |batches: &[Batch]| {
        let mut grads = [one[0].zeros_like(device).unwrap()];
        for batch in batches {
            let options = PassOptions { scale: 1.0, dropout: None, policies: &[] };
            let to = (&one[..], &mut grads[..]);
            case.model.score_labels_and_backward(device, batch, to, &case.loss(), options).unwrap();
        }
        grads[0].to_peft(device).unwrap()
    };
    let singles: Vec<Batch> = (0..).map_while(|i| alone(&parts, i)).collect();
    assert!(singles.len() > parts.len());
    for ((name, together), (_, apart)) in gradient(&parts).into_iter().zip(gradient(&singles)) {
        let largest = together.data.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        close(&name, &apart.data, &together.data, 1e-4, 2e-6 * largest);
    }

    // Another pooling is another model.
    if case.expected.get("logits_adapter_cls_pooling").is_some() {
        let cls = Case::<f32>::open(name, Device::cpu(2).unwrap(), |mut config| {
            config.label_head.pool = Pool::First;
            let labels = config.label_head.num_labels;
            config.with_label_head(labels)
        });
        let logits = cls.logits(&[cls.adapter("adapter_init")]);
        close("cls", &logits, &case.tensor("logits_adapter_cls_pooling"), 1e-5, 2e-5);
    }
}

/// What PyTorch loses in bf16: of this case (`bf16.json`), or where it has none, the largest of the cases of this repository.
#[cfg(feature = "emulated")]
fn floor(case: &Case<half::bf16>) -> Value {
    if let Ok(bytes) = std::fs::read(case.dir.join("bf16.json")) {
        return serde_json::from_slice(&bytes).unwrap();
    }
    let mut floor =
        json!({ "loss": { "max": 0.0, "mean": 0.0 }, "grad": 0.0, "grad_norm": 0.0, "adapter_final": 0.0 });
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut logits = 0.0f64;
    for name in ["bert_regress", "modernbert_regress", "qwen3_seqcls", "xlmr_regress"] {
        let other: Value =
            serde_json::from_slice(&std::fs::read(own.join(name).join("bf16.json")).unwrap()).unwrap();
        for key in ["/loss/max", "/loss/mean", "/grad", "/grad_norm", "/adapter_final"] {
            let most = number(floor.pointer(key).unwrap()).max(number(other.pointer(key).unwrap()));
            *floor.pointer_mut(key).unwrap() = most.into();
        }
        for name in LOGITS {
            logits = logits.max(number(&other[name]["max"]) / number(&other[name]["largest"]));
        }
    }
    for name in LOGITS {
        let largest = case.tensor(name).iter().fold(0.0f32, |most, x| most.max(x.abs()));
        floor[name] = json!({ "max": logits * f64::from(largest), "largest": largest });
    }
    floor
}

#[cfg(feature = "emulated")]
const LOGITS: [&str; 3] = ["logits_base", "logits_adapter", "logits_final"];

/// bf16 through the kernels is as near to f32 as PyTorch's bf16 is, within the factors of the parity rules: 1.5 for logits and losses,
/// 3 for gradients, and one unit in the last place of the largest number.
#[cfg(feature = "emulated")]
fn check_training_bf16(name: &str) {
    let case = Case::<half::bf16>::open(name, gpu_device(1), |config| config);
    let (got, floor) = (trained(&case), floor(&case));
    let mut faults = Vec::new();
    let mut hold = |what: &str, got: f64, limit: f64| {
        println!("{name}: {what} {got:.2e} of {limit:.2e}");
        if got.is_nan() || got > limit {
            faults.push(format!("{what}: {got:e}, allowed {limit:e}"));
        }
    };
    for (name, got) in LOGITS.into_iter().zip(&got.logits) {
        let expected = case.tensor(name);
        let worst = got.iter().zip(&expected).fold(0.0f32, |worst, (g, e)| worst.max((g - e).abs()));
        let unit = number(&floor[name]["largest"]) * f64::from(half::bf16::EPSILON);
        hold(name, f64::from(worst), 1.5 * number(&floor[name]["max"]) + unit);
    }
    let steps = case.json["steps"].as_array().unwrap();
    let losses: Vec<f64> =
        steps.iter().zip(&got.losses).map(|(step, loss)| (loss - number(&step["loss"])).abs()).collect();
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    hold("loss max", losses.iter().copied().fold(0.0, f64::max), 1.5 * number(&floor["loss"]["max"]) + 1e-3);
    hold("loss mean", mean, 1.5 * number(&floor["loss"]["mean"]) + 1e-3);
    let norms =
        steps.iter().zip(&got.norms).map(|(step, norm)| (norm / number(&step["grad_norm"]) - 1.0).abs());
    hold("grad_norm", norms.fold(0.0, f64::max), 3.0 * number(&floor["grad_norm"]) + 1e-3);
    let grads = got.grads.iter().map(|(name, t)| (&t.data[..], case.tensor(&format!("grad.{name}"))));
    hold("gradients", relative(grads), 3.0 * number(&floor["grad"]));
    let last = read_adapter(&case.dir.join("adapter_final")).unwrap();
    let finals = got.last.iter().map(|(name, t)| (&t.data[..], last.tensors[name].data.clone()));
    hold("final adapter", relative(finals), 3.0 * number(&floor["adapter_final"]));
    assert!(faults.is_empty(), "{name}: {faults:#?}");
}

/// Through the kernels.
#[cfg(feature = "emulated")]
mod gpu {
    #[test]
    fn trainings_with_labels_agree_with_peft() {
        super::trainings().iter().for_each(|name| super::check_training_bf16(name));
    }

    #[test]
    fn every_loss_is_that_of_pytorch() {
        super::every_loss(super::check_loss_bf16);
    }

    /// Hidden states of a real encoder, within the floor of its case.
    #[test]
    fn hidden_states_of_a_real_encoder_are_those_of_transformers() {
        use super::{close_to_floor, real_encoder};
        let Some((json, expected, got)) = real_encoder::<half::bf16>(&super::gpu_device(2)) else { return };
        for (name, got) in got {
            let expected = expected.get(name).unwrap().to_f32().unwrap();
            close_to_floor(name, &got, &expected, &json[name]);
        }
    }
}

/// Sequence `index` of some batches, in a batch of its own.
fn alone(batches: &[Batch], index: usize) -> Option<Batch> {
    let all = batches
        .iter()
        .flat_map(|batch| batch.segments.iter().zip(batch.targets.labels()).map(move |s| (batch, s)));
    let (batch, (segment, target)) = all.into_iter().nth(index)?;
    let mut one = Batch::default();
    one.push_segment(&batch.input_ids[segment.rows()], None, 0);
    if !batch.token_type_ids.is_empty() {
        one.token_type_ids = batch.token_type_ids[segment.rows()].to_vec();
    }
    let rows = target.rows.start - segment.start..target.rows.end - segment.start;
    one.targets = Targets::Labels(vec![LabelTarget { rows, ..target.clone() }]);
    Some(one)
}

/// Names of the cases of the folder with this property.
fn cases(has: impl Fn(&Value) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: &Path| -> Option<Value> {
        serde_json::from_slice(&std::fs::read(path.join("case.json")).ok()?).ok()
    };
    let mut names: Vec<String> = entries
        .filter(|path| read(path).is_some_and(|json| has(&json)))
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// The trainings with labels.
fn trainings() -> Vec<String> {
    cases(|json| {
        json["steps"].is_array() && ["seq_cls", "regression"].iter().any(|task| json["task"] == *task)
    })
}

#[test]
fn trainings_with_labels_agree_with_peft() {
    let names = trainings();
    names.iter().for_each(|name| check_training(name));
    println!("{}: {names:?}", folder().display());
    if std::env::var_os("TANREN_GOLDEN").is_none() {
        assert_eq!(names, ["bert_regress", "modernbert_regress", "qwen3_seqcls", "xlmr_regress"]);
    }
}

#[test]
fn every_loss_is_that_of_pytorch() {
    every_loss(check_loss);
}

/// Runs a check for every loss of every case that has some.
fn every_loss(mut check: impl FnMut(&str, &Value)) {
    let names = cases(|json| json["losses"].is_array());
    for name in &names {
        let losses: Value =
            serde_json::from_slice(&std::fs::read(folder().join(name).join("case.json")).unwrap()).unwrap();
        losses["losses"].as_array().unwrap().iter().for_each(|one| check(name, one));
    }
    assert!(!names.is_empty() || std::env::var_os("TANREN_GOLDEN").is_some());
}

/// What one pass gives under a loss.
struct Lost {
    logits: Vec<f32>,
    /// The mean.
    loss: f64,
    grads: Vec<(String, AdapterTensor)>,
    norm: f64,
}

/// The case with as many outputs as the loss has, and a pass over its batch.
fn lost<T: Real<Stat = f32>>(name: &str, one: &Value, device: Device) -> (Case<T>, Lost) {
    let outputs = one["outputs"].as_u64().unwrap() as usize;
    let case = Case::<T>::open(name, device, |config| config.with_label_head(outputs));
    let adapters = [case.adapter::<T>(text(&one["adapter_dir"]))];
    let numbers = |value: &Value| -> Option<Vec<f32>> { serde_json::from_value(value.clone()).ok() };
    let loss = match text(&one["labels_kind"]) {
        "class" | "class_or_ignored" => Loss::CrossEntropy {
            class_weights: numbers(&one["class_weights"]),
            label_smoothing: one["label_smoothing"].as_f64().unwrap_or(0.0),
        },
        "multi_label" => Loss::Bce { pos_weight: numbers(&one["pos_weight"]) },
        _ => Loss::Mse,
    };
    let is_class = matches!(loss, Loss::CrossEntropy { .. });
    let label = |value: &Value| match value {
        Value::Array(_) => Label::Numbers(numbers(value).unwrap()),
        value if !is_class => Label::Numbers(vec![number(value) as f32]),
        value => value.as_u64().map_or(Label::None, |class| Label::Class(class as u32)),
    };
    let sequences = case.json["batch"].as_array().unwrap();
    let labels = one["labels"].as_array().unwrap().iter().map(label);
    let batch = case.batch(sequences.iter().zip(labels));
    let divisor: f64 = batch.targets.labels().iter().map(|target| loss.divisor(&target.label)).sum();
    let mut grads = [adapters[0].zeros_like(&case.device).unwrap()];
    let options = PassOptions { scale: 1.0 / divisor, dropout: None, policies: &[] };
    let scores: Vec<LabelScore> = case
        .model
        .score_labels_and_backward(&case.device, &batch, (&adapters, &mut grads), &loss, options)
        .unwrap();
    let logits = scores.iter().flat_map(|score| score.logits.clone()).collect();
    let loss = scores.iter().map(|score| score.loss).sum::<f64>() / divisor;
    let all = grads[0].to_peft(&case.device).unwrap();
    let squares = all.iter().flat_map(|(_, grad)| &grad.data).map(|&g| f64::from(g).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    let which = text(&one["name"]);
    let is_given = |name: &str| case.expected.get(&format!("{which}.grad.{name}")).is_some();
    let grads: Vec<_> = all.into_iter().filter(|(name, _)| is_given(name)).collect();
    assert!(!grads.is_empty());
    (case, Lost { logits, loss, grads, norm })
}

fn check_loss(name: &str, one: &Value) {
    let (case, got) = lost::<f32>(name, one, Device::cpu(2).unwrap());
    let which = text(&one["name"]);
    close(which, &got.logits, &case.tensor(&format!("logits_{}", one["outputs"])), 1e-5, 2e-5);
    assert!((got.loss / number(&one["loss"]) - 1.0).abs() < 1e-5, "{which}: {}", got.loss);
    assert!((got.norm / number(&one["grad_norm"]) - 1.0).abs() < 1e-4, "{which}: norm {}", got.norm);
    check_tensors(&got.grads, |name| case.tensor(&format!("{which}.grad.{name}")), None);
}

/// The weights of `minilm_hidden` are not in the repository: `fetch.sh` of the case gets them into a folder that
/// `TANREN_TEST_MINILM` names, which the checks of every change do.
#[test]
fn hidden_states_of_a_real_encoder_are_those_of_transformers() {
    let Some((_, expected, got)) = real_encoder::<f32>(&Device::cpu(2).unwrap()) else { return };
    for (name, got) in got {
        let rtol = if name == "hidden_norm" { 1e-5 } else { 0.0 };
        close(name, &got, &expected.get(name).unwrap().to_f32().unwrap(), rtol, 2e-5);
    }
}

/// What a device makes of the sentences, by name.
type States = [(&'static str, Vec<f32>); 3];

/// The floor of the case, what is expected, and what this device makes of it: all by name. None where the weights are not there.
fn real_encoder<T: Real>(device: &Device) -> Option<(Value, TensorFile, States)> {
    let Some(weights) = std::env::var_os("TANREN_TEST_MINILM").map(PathBuf::from) else {
        println!("not run: TANREN_TEST_MINILM names no folder");
        return None;
    };
    let dir = folder().join("minilm_hidden");
    let read =
        |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(dir.join(name)).ok()?).ok() };
    let json = read("case.json").unwrap();
    let expected = TensorFile::open(&dir.join("expected.safetensors")).unwrap();
    let model = ModelFolder::open(&weights).unwrap();
    let (path, config) = model.config_json();
    let config = ModelConfig::from_json(path, config).unwrap();
    let loaded = load::load::<T>(device, &config, &model, &|_, _| {}).unwrap();
    assert!(loaded.unused.is_empty(), "{:?}", loaded.unused);
    let encoder = Decoder { config, weights: loaded.weights };
    let mut batch = Batch::default();
    for sentence in json["sentences"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(sentence["input_ids"].clone()).unwrap();
        batch.push_segment(&ids, None, 0);
    }
    let rows: Vec<usize> = (0..batch.total_tokens()).collect();
    let hidden = encoder.hidden_states(device, &batch, &[], &rows).unwrap();
    let numbers: Vec<f32> = device.read(&hidden).unwrap().iter().map(|x| x.to_f64() as f32).collect();
    let of: Vec<&[f32]> = numbers.chunks(hidden.cols()).collect();
    let first = of.iter().flat_map(|row| row[..4].to_vec()).collect();
    let norms = of.iter().map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
    let mean = |rows: std::ops::Range<usize>| -> Vec<f32> {
        let len = rows.len() as f32;
        (0..hidden.cols()).map(|i| rows.clone().map(|row| of[row][i]).sum::<f32>() / len).collect()
    };
    let pooled = batch.segments.iter().flat_map(|segment| mean(segment.rows())).collect();
    let floor = read("bf16.json").unwrap_or_default();
    Some((floor, expected, [("hidden_first4", first), ("hidden_norm", norms), ("mean_pooled", pooled)]))
}

/// Within 1.5 times what PyTorch loses in bf16, and one unit in the last place of the largest number.
#[cfg(feature = "emulated")]
fn close_to_floor(name: &str, got: &[f32], expected: &[f32], floor: &Value) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let worst = got.iter().zip(expected).fold(0.0f64, |worst, (g, e)| worst.max(f64::from((g - e).abs())));
    let unit = number(&floor["largest"]) * f64::from(half::bf16::EPSILON);
    let limit = 1.5 * number(&floor["max"]) + unit;
    println!("{name}: {worst:.2e} of {limit:.2e}");
    assert!(worst <= limit, "{name}: {worst:e}, allowed {limit:e}");
}

/// Every loss through the kernels, within the floor of its case; where that has none, within the largest of this repository.
#[cfg(feature = "emulated")]
fn check_loss_bf16(name: &str, one: &Value) {
    let (case, got) = lost::<half::bf16>(name, one, gpu_device(1));
    let floors = |dir: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join("classify_extras/bf16.json")).unwrap()).unwrap()
    };
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let here: Option<Value> =
        std::fs::read(case.dir.join("bf16.json")).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    let (is_own, floor) = (here.is_some(), here.unwrap_or_else(|| floors(&own)));
    let (which, outputs) = (text(&one["name"]), format!("logits_{}", one["outputs"]));
    let most = |key: &str| -> f64 {
        let losses = floor["losses"].as_object().unwrap();
        let of = |(name, loss): (&String, &Value)| (!is_own || name == which).then(|| number(&loss[key]));
        losses.iter().filter_map(of).fold(0.0, f64::max)
    };
    let expected = case.tensor(&outputs);
    let logits = floor.as_object().unwrap().iter().filter(|(key, _)| key.starts_with("logits"));
    let largest = |key: &str| {
        let of = logits.clone().filter(|(name, _)| !is_own || **name == outputs);
        of.map(|(_, floor)| number(&floor[key])).fold(0.0, f64::max)
    };
    let floor = serde_json::json!({ "max": largest("max"), "largest": largest("largest") });
    close_to_floor(&format!("{which}: logits"), &got.logits, &expected, &floor);
    let grads = relative(
        got.grads.iter().map(|(name, t)| (&t.data[..], case.tensor(&format!("{which}.grad.{name}")))),
    );
    for (what, got, limit) in [
        ("loss", (got.loss / number(&one["loss"]) - 1.0).abs(), 1.5 * most("loss") + 5e-3),
        ("norm", (got.norm / number(&one["grad_norm"]) - 1.0).abs(), 3.0 * most("grad_norm") + 5e-3),
        ("gradients", grads, 3.0 * most("grad")),
    ] {
        println!("{which}: {what} {got:.2e} of {limit:.2e}");
        assert!(got <= limit, "{which}: {what} {got:e}, allowed {limit:e}");
    }
}
