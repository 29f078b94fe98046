//! Dropout of the frozen model against transformers + PEFT with the same masks (`tests/golden/base_dropout/generate.py`): losses and
//! gradients in f32 on the CPU, and gradients in bf16 through the kernels.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg_attr(feature = "emulated", allow(clippy::print_stdout, reason = "what was run, for --nocapture"))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tanren::batch::{Batch, Label, LabelTarget, Targets, TokenTarget};
use tanren::config::head::HeadSpec;
use tanren::config::{BaseDropoutMode, ModelConfig};
use tanren::device::Device;
use tanren::formats::adapter::{AdapterTensor, read_adapter};
use tanren::formats::model_folder::ModelFolder;
use tanren::formats::safetensors::TensorFile;
use tanren::model::head::Found;
use tanren::model::{Adapter, Decoder, DropoutStep, PassOptions, Policy, load};
use tanren::ops::label_head::Loss;
use tanren::tensor::Real;

use crate::golden::close;

const CASES: [&str; 4] = ["bert_regress", "gpt2_lora", "modernbert_regress", "xlmr_regress"];

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The sequences of a step as one batch.
fn batch(config: &ModelConfig, step: &Value) -> Batch {
    let (mut batch, mut labels) = (Batch::default(), Vec::new());
    let sequences = step["micro_batches"].as_array().unwrap().iter().flat_map(|one| one.as_array().unwrap());
    for sequence in sequences {
        let (start, input_ids) = (batch.total_tokens(), list::<u32>(&sequence["input_ids"]));
        batch.push_segment(&input_ids, None, 0);
        if sequence["token_type_ids"].is_array() {
            batch.token_type_ids.extend(list::<u32>(&sequence["token_type_ids"]));
        }
        match &config.head {
            HeadSpec::Labels(head) => {
                let label = Label::Numbers(vec![sequence["label"].as_f64().unwrap() as f32]);
                let rows = head.pool.rows(start..start + input_ids.len());
                labels.push(LabelTarget { rows, label, weight: 1.0 });
            }
            HeadSpec::Tokens => {
                for (t, &label) in list::<i64>(&sequence["labels"]).iter().enumerate().skip(1) {
                    let target = TokenTarget { row: start + t - 1, token: label as u32, weight: 1.0 };
                    batch.targets.tokens_mut().unwrap().extend((label >= 0).then_some(target));
                }
            }
        }
    }
    if matches!(config.head, HeadSpec::Labels(_)) {
        batch.targets = Targets::Labels(labels);
    }
    batch
}

/// The loss of all sequences, and the gradients by name.
fn run<T: Real<Stat = f32>>(
    name: &str,
    device: &Device,
    policy: Policy,
) -> (f64, Vec<(String, AdapterTensor)>) {
    let (case, own) = (goldens().join(name), json(goldens().join(format!("base_dropout/{name}.json"))));
    let folder = ModelFolder::open(&case.join("model")).unwrap();
    let (path, text) = folder.config_json();
    let mut keys: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    keys.extend(own["config"].as_object().unwrap().clone());
    let config = ModelConfig::from_json(path, &serde_json::to_string(&keys).unwrap()).unwrap();
    let config = config.with_base_dropout(BaseDropoutMode::Config).unwrap();
    let loaded = load::load(device, &config, &folder, &|_, _| {}).unwrap();
    let model = Decoder::<T> { config, weights: loaded.weights };
    let peft = read_adapter(&case.join("adapter_init")).unwrap();
    let expected = expected(name);
    let moved: BTreeMap<String, AdapterTensor> = peft
        .tensors
        .iter()
        .map(|(tensor, of)| {
            let data = expected.get(&format!("adapter.{tensor}")).unwrap().to_f32().unwrap();
            (tensor.clone(), AdapterTensor { data, shape: of.shape.clone() })
        })
        .collect();
    let adapter = Adapter::<T>::from_peft(device, &model.config, &peft.config, &moved, &case).unwrap();
    let (mut grads, adapters) = ([adapter.zeros_like(device).unwrap()], [adapter]);
    let step = &json(case.join("case.json"))["steps"][own["data_of_step"].as_u64().unwrap() as usize];
    let batch = batch(&model.config, step);
    let dropout = DropoutStep { seed: own["seed"].as_u64().unwrap(), step: own["step"].as_u64().unwrap() };
    let scale = 1.0 / step["num_items"].as_f64().unwrap();
    let options = PassOptions { scale, dropout: Some(dropout), policies: &[policy; 8] };
    let loss = matches!(batch.targets, Targets::Labels(_)).then_some(Loss::SigmoidMse);
    let to = (&adapters[..], &mut grads[..]);
    let found = model.find_and_backward(device, &batch, to, loss.as_ref(), options).unwrap();
    let total = match found {
        Found::Labels(scores) => scores.iter().map(|score| score.loss).sum(),
        Found::Tokens(scores) => -scores.iter().map(|score| score.logprob).sum::<f64>(),
    };
    (total, grads[0].to_peft(device).unwrap())
}

fn expected(name: &str) -> TensorFile {
    TensorFile::open(&goldens().join(format!("base_dropout/{name}.safetensors"))).unwrap()
}

#[test]
fn every_case_is_listed() {
    let folder = std::fs::read_dir(goldens().join("base_dropout")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> =
        names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
    cases.sort();
    assert_eq!(cases, CASES);
}

#[test]
fn losses_and_gradients_are_those_of_transformers_under_the_same_masks() {
    let device = Device::cpu(2).unwrap();
    for name in CASES {
        let expected = expected(name);
        let losses: f64 =
            expected.get("losses").unwrap().to_f32().unwrap().iter().map(|&x| f64::from(x)).sum();
        for policy in [Policy::KeepAll, Policy::Checkpoint] {
            let (loss, grads) = run::<f32>(name, &device, policy);
            assert!((loss / losses - 1.0).abs() < 1e-4, "{name}: {loss} {losses}");
            assert_eq!(grads.len(), expected.names().filter(|name| name.starts_with("grad.")).count());
            for (tensor, grad) in grads {
                let expected = expected.get(&format!("grad.{tensor}")).unwrap().to_f32().unwrap();
                let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                close(&format!("{name}: {tensor}"), &grad.data, &expected, 1e-4, 1e-5 * largest);
            }
        }
    }
}

#[cfg(feature = "emulated")]
#[test]
fn kernels_apply_the_same_masks() {
    for name in CASES {
        let expected = expected(name);
        let (_, grads) = run::<half::bf16>(name, &crate::golden::gpu_device(3), Policy::KeepAll);
        let of = |tensor: &str| expected.get(&format!("grad.{tensor}")).unwrap().to_f32().unwrap();
        let error = crate::golden::relative(grads.iter().map(|(tensor, grad)| (&grad.data[..], of(tensor))));
        let limit = 3.0 * json(goldens().join(name).join("bf16.json"))["grad"].as_f64().unwrap();
        println!("{name}: gradients {error:.2e} of {limit:.2e}");
        assert!(error <= limit, "{name}: {error:e}, allowed {limit:e}");
    }
}
