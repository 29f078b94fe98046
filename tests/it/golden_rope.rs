//! Scaled rotary frequencies against transformers: logits of every type of scaling that is in the golden folder, for sequences
//! below and beyond the length that the model was made for, in all spellings of `config.json`.
//!
//! The case `rope_variants` was computed with transformers 4.57.6 in f32; README.md of the folder has the formulas.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "what was run, for --nocapture")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tanren::batch::{Batch, TokenTarget};
use tanren::config::ModelConfig;
use tanren::device::Device;
use tanren::formats::model_folder::ModelFolder;
use tanren::formats::safetensors::TensorFile;
use tanren::model::{Decoder, load};
use tanren::tensor::Real;

/// What is compared, by variant: everything in the order of the files.
struct Run {
    logprobs: Vec<f32>,
    logits_tail: Vec<f32>,
}

fn folder() -> PathBuf {
    crate::golden::folder().join("rope_variants")
}

fn read_config(path: &Path) -> ModelConfig {
    ModelConfig::from_json(path, &std::fs::read_to_string(path).unwrap()).unwrap()
}

/// All sequences in one batch, with a target for every token but the first of a sequence.
fn run<T: Real>(device: &Device, dir: &Path, config: &ModelConfig, sequences: &[Vec<u32>]) -> Run {
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    let made_for = config.max_position_embeddings;
    let config = ModelConfig { max_position_embeddings: made_for.max(longest), ..config.clone() };
    let model = ModelFolder::open(&dir.join("model")).unwrap();
    let weights = load::load::<T>(device, &config, &model, &|_, _| {}).unwrap().weights;
    let decoder = Decoder { config, weights };
    let (mut batch, mut tail) = (Batch::default(), Vec::new());
    for ids in sequences {
        let start = batch.total_tokens();
        batch.push_segment(ids, None, 0);
        let target = |t: usize| TokenTarget { row: start + t, token: ids[t + 1], weight: 1.0 };
        batch.targets.tokens_mut().unwrap().extend((0..ids.len() - 1).map(target));
        tail.extend(start + ids.len() - 4..start + ids.len());
    }
    let scores = decoder.score(device, &batch, &[]).unwrap();
    let logits = decoder.logits(device, &batch, &[], &tail).unwrap();
    Run {
        logprobs: scores.iter().map(|score| score.logprob as f32).collect(),
        logits_tail: device.read(&logits).unwrap().iter().map(|x| x.to_f64() as f32).collect(),
    }
}

/// Runs `check(name, variant, its folder, config, sequences)` for every variant of the case and every spelling beside it.
fn every_variant(mut check: impl FnMut(&str, &Path, &Path, &ModelConfig, &[Vec<u32>])) {
    let dir = folder();
    let Ok(text) = std::fs::read(dir.join("case.json")) else {
        assert!(std::env::var_os("TANREN_GOLDEN").is_some(), "no case rope_variants");
        return;
    };
    let case: Value = serde_json::from_slice(&text).unwrap();
    let variants = case["variants"].as_array().unwrap();
    assert!(!variants.is_empty());
    for variant in variants {
        let text = |key: &str| variant[key].as_str().unwrap();
        let (model, name) = (text("model"), text("variant"));
        let sequences: Vec<Vec<u32>> = serde_json::from_value(variant["input_ids"].clone()).unwrap();
        let configs = dir.join(text("config_dir"));
        for file in std::fs::read_dir(&configs).unwrap() {
            let path = file.unwrap().path();
            let config = read_config(&path);
            check(&format!("{model}.{name}"), &path, &dir.join(model), &config, &sequences);
        }
    }
    println!("{} variants of {}", variants.len(), dir.display());
}

fn expected(file: &TensorFile, name: &str) -> Vec<f32> {
    file.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
}

#[test]
fn every_type_of_scaling_gives_the_logits_of_transformers() {
    let device = Device::cpu(2).unwrap();
    let file = TensorFile::open(&folder().join("expected.safetensors"));
    every_variant(|name, path, dir, config, sequences| {
        let file = file.as_ref().unwrap();
        let got = run::<f32>(&device, dir, config, sequences);
        for (what, got) in [("label_logprobs", &got.logprobs), ("logits_tail", &got.logits_tail)] {
            let expected = expected(file, &format!("{name}.{what}"));
            assert_eq!(got.len(), expected.len(), "{name}");
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                assert!(
                    (g - e).abs() <= 1e-5 * e.abs() + 2e-5,
                    "{} {what}[{i}]: {g}, expected {e}",
                    path.display()
                );
            }
        }
        // The frequencies themselves, for sequences of every length.
        let attn = config.blocks[0].attn;
        let frequencies = expected(file, &format!("{name}.inv_freq"));
        let own = sequences.iter().flat_map(|ids| attn.rope.unwrap().frequencies(attn.head_dim, ids.len()));
        for (own, expected) in own.zip(&frequencies) {
            assert!((own / f64::from(*expected) - 1.0).abs() < 2e-6, "{name}: {own} {expected}");
        }
    });
}

#[cfg(feature = "emulated")]
#[test]
fn kernels_give_them_as_near_as_bf16_is() {
    let device = crate::golden::gpu_device(3);
    let file = TensorFile::open(&folder().join("expected.safetensors"));
    every_variant(|name, path, dir, config, sequences| {
        if path.file_name().unwrap() != "config.json" {
            return;
        }
        let got = run::<half::bf16>(&device, dir, config, sequences);
        for (what, got) in [("label_logprobs", &got.logprobs), ("logits_tail", &got.logits_tail)] {
            let expected = expected(file.as_ref().unwrap(), &format!("{name}.{what}"));
            let errors: Vec<f64> = got.iter().zip(&expected).map(|(g, e)| f64::from((g - e).abs())).collect();
            let mean = expected.iter().map(|&e| f64::from(e)).sum::<f64>() / expected.len() as f64;
            let spread = expected.iter().map(|&e| (f64::from(e) - mean).powi(2)).sum::<f64>();
            let spread = (spread / expected.len() as f64).sqrt();
            let (max, sum) = errors.iter().fold((0.0f64, 0.0), |(max, sum), e| (max.max(*e), sum + e));
            // The usual floor of bf16 (see `golden::Case::usual_floor`), times 1.5.
            assert!(max < 1.5 * 0.14 / 0.96 * spread + 0.02, "{name} {what}: max {max}, spread {spread}");
            let of_mean = 1.5 * 0.017 / 0.96 * spread + 0.002;
            assert!(
                sum / (errors.len() as f64) < of_mean,
                "{name} {what}: mean {}",
                sum / errors.len() as f64
            );
        }
    });
}
