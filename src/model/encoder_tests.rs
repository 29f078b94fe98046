//! Encoders with heads for labels in f64: gradients against central differences, policies, and batches cut otherwise.

use super::adapter::Adapter;
use super::decoder::{Decoder, DropoutStep, PassOptions};
use super::init;
use super::policy::Policy;
use crate::batch::{Batch, Label, LabelTarget, Targets};
use crate::config::head::HeadSpec;
use crate::config::{BaseDropoutMode, LoraConfig, ModelConfig};
use crate::device::{Device, Tensor};
use crate::ops::label_head::Loss;
use crate::ops::testing::{check_gradient, cpu, random};

const BERT: &str = r#"{"model_type": "bert", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 37, "max_position_embeddings": 16, "type_vocab_size": 2, "initializer_range": 0.4,
    "id2label": {"0": "a", "1": "b", "2": "c"}}"#;

const ROBERTA: &str = r#"{"model_type": "xlm-roberta", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1,
    "num_attention_heads": 3, "vocab_size": 37, "max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1,
    "initializer_range": 0.4, "id2label": {"0": "a", "1": "b", "2": "c"}}"#;

const MODERNBERT: &str = r#"{"model_type": "modernbert", "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 3,
    "num_attention_heads": 2, "vocab_size": 37, "max_position_embeddings": 16, "local_attention": 6,
    "global_attn_every_n_layers": 2, "classifier_pooling": "mean", "initializer_range": 0.4,
    "id2label": {"0": "a", "1": "b", "2": "c"}}"#;

const QWEN3: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"], "hidden_size": 12,
    "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
    "vocab_size": 37, "max_position_embeddings": 16, "initializer_range": 0.4, "tie_word_embeddings": true,
    "id2label": {"0": "a", "1": "b", "2": "c"}}"#;

const GPT2: &str = r#"{"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "n_embd": 12, "n_layer": 2,
    "n_head": 2, "vocab_size": 37, "n_positions": 16, "initializer_range": 0.4, "id2label": {"0": "a", "1": "b", "2": "c"}}"#;

/// A configuration whose model has dropout everywhere but in its attention weights.
fn with_dropout(text: &str) -> String {
    let mut keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
    for (key, p) in [
        ("hidden_dropout_prob", 0.2),
        ("attention_probs_dropout_prob", 0.0),
        ("classifier_dropout", 0.3),
        ("embedding_dropout", 0.25),
        ("embd_pdrop", 0.15),
        ("resid_pdrop", 0.2),
        ("attn_pdrop", 0.0),
    ] {
        keys.insert(key.to_owned(), p.into());
    }
    serde_json::to_string(&keys).unwrap()
}

fn model(text: &str) -> Decoder<f64> {
    let config = ModelConfig::from_json(std::path::Path::new("config.json"), text).unwrap();
    let mode = if text.contains("embd_pdrop") { BaseDropoutMode::Config } else { BaseDropoutMode::Off };
    let config = config.with_base_dropout(mode).unwrap();
    let mut weights = init::random(&cpu(), &config, 3).unwrap();
    // Norms that are not 1 and 0, so that none can be left out.
    for (i, norm) in weights.norms.iter_mut().enumerate() {
        for (part, tensor) in [Some(&mut norm.weight), norm.bias.as_mut()].into_iter().flatten().enumerate() {
            let noise = random::<f64>(&cpu(), 1, tensor.cols(), (50 + 2 * i + part) as u32);
            tensor.data_mut().iter_mut().zip(noise.data()).for_each(|(x, n)| *x += 0.3 * n);
        }
    }
    Decoder { config, weights }
}

/// An adapter on all linear layers whose B is not zero, with a head.
fn adapter(device: &Device, model: &Decoder<f64>, dropout: f64) -> Adapter<f64> {
    let lora = LoraConfig { r: 3, alpha: 6.0, dropout, ..LoraConfig::default() };
    let mut adapter = Adapter::new(device, &lora, &model.config, &model.weights, 1).unwrap();
    for (i, tensor) in adapter.tensors_mut().into_iter().enumerate() {
        let noise = random::<f64>(device, tensor.rows(), tensor.cols(), 1000 + i as u32);
        tensor.data_mut().iter_mut().zip(noise.data()).for_each(|(x, n)| *x += 0.1 * n);
    }
    adapter
}

/// Sequences of these lengths, each with a class.
fn batch(model: &Decoder<f64>, lengths: &[usize]) -> Batch {
    let HeadSpec::Labels(head) = model.config.head else { panic!("no head for labels") };
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    for (i, &len) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..len).map(|t| ((i * 11 + t * 7) % 37) as u32).collect();
        let start = batch.total_tokens();
        batch.push_segment(&ids, None, 0);
        if model.config.embed.token_types == Some(2) {
            batch.token_type_ids.extend((0..len).map(|t| u32::from(t > len / 2)));
        }
        let rows = head.pool.rows(start..start + len);
        targets.push(LabelTarget { rows, label: Label::Class(i as u32 % 3), weight: 1.0 });
    }
    batch.targets = Targets::Labels(targets);
    batch
}

fn gradient(
    model: &Decoder<f64>,
    batch: &Batch,
    adapter: &[Adapter<f64>],
    (dropout, policies): (Option<DropoutStep>, &[Policy]),
) -> (f64, Adapter<f64>) {
    let device = cpu();
    let mut grads = [adapter[0].zeros_like(&device).unwrap()];
    let options = PassOptions { scale: 0.25, dropout, policies };
    let (loss, to) = (Loss::cross_entropy(), (adapter, &mut grads[..]));
    let scores = model.score_labels_and_backward(&device, batch, to, &loss, options).unwrap();
    let [grads] = grads;
    (0.25 * scores.iter().map(|score| score.loss).sum::<f64>(), grads)
}

#[test]
fn gradients_agree_with_central_differences() {
    let device = cpu();
    let with_dropout = [BERT, ROBERTA, MODERNBERT, GPT2].map(with_dropout);
    let plain = [(BERT, 0.0), (BERT, 0.3), (ROBERTA, 0.0), (MODERNBERT, 0.3), (QWEN3, 0.3)];
    let with_dropout = with_dropout.iter().map(|text| (text.as_str(), 0.1));
    for (text, dropout) in plain.into_iter().chain(with_dropout) {
        let model = model(text);
        let step = Some(DropoutStep { seed: 1, step: 2 });
        let batch = batch(&model, &[9, 1, 5]);
        let mut adapters = vec![adapter(&device, &model, dropout)];
        let (_, grads) = gradient(&model, &batch, &adapters, (step, &[]));
        let names: Vec<String> = adapters[0].named_tensors().into_iter().map(|(name, _)| name).collect();
        assert!(names.last().unwrap().starts_with("base_model.model."), "{names:?}");
        for (i, (name, grad)) in names.iter().zip(grads.tensors()).enumerate() {
            let at = device.tensor(grad.rows(), grad.cols(), adapters[0].tensors()[i].data()).unwrap();
            let cell = std::cell::RefCell::new(&mut adapters);
            check_gradient(&device, name, &at, grad.data(), |moved: &Tensor<f64>| {
                let mut adapters = cell.borrow_mut();
                adapters[0].tensors_mut()[i].data_mut().copy_from_slice(moved.data());
                gradient(&model, &batch, &adapters, (step, &[])).0
            });
            adapters[0].tensors_mut()[i].data_mut().copy_from_slice(at.data());
        }
    }
}

#[test]
fn policies_change_no_bit_and_batches_only_rounding() {
    let device = cpu();
    let with_dropout = [BERT, ROBERTA, MODERNBERT, GPT2].map(with_dropout);
    for text in [BERT, ROBERTA, MODERNBERT, QWEN3].into_iter().chain(with_dropout.iter().map(String::as_str))
    {
        let model = model(text);
        let adapters = [adapter(&device, &model, 0.3)];
        let step = Some(DropoutStep { seed: 1, step: 2 });
        let whole = batch(&model, &[9, 1, 5]);
        let (loss, expected) = gradient(&model, &whole, &adapters, (step, &[]));
        for policy in [Policy::DropGateUp, Policy::Checkpoint] {
            let (again, grads) = gradient(&model, &whole, &adapters, (step, &[policy; 3]));
            assert_eq!(loss, again);
            for (a, b) in expected.tensors().into_iter().zip(grads.tensors()) {
                assert_eq!(a.data(), b.data(), "{policy:?}");
            }
        }
        // Without dropout a sequence is what it is in any company.
        let together = model.score_labels(&device, &whole, &adapters, &Loss::cross_entropy()).unwrap();
        let alone = batch(&model, &[9]);
        let alone = model.score_labels(&device, &alone, &adapters, &Loss::cross_entropy()).unwrap();
        for (a, b) in together[0].logits.iter().zip(&alone[0].logits) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}

#[test]
fn dropout_of_the_model_belongs_to_the_step_and_to_the_sequence() {
    let device = cpu();
    for text in [BERT, ROBERTA, MODERNBERT, GPT2] {
        let (plain, dropped) = (model(text), model(&with_dropout(text)));
        let adapters = [adapter(&device, &plain, 0.0)];
        let loss = Loss::cross_entropy();
        let whole = batch(&plain, &[9, 3, 5]);
        let step = |step| Some(DropoutStep { seed: 1, step });
        // Scoring has none.
        let scores = |model: &Decoder<f64>| model.score_labels(&device, &whole, &adapters, &loss).unwrap();
        assert_eq!(scores(&plain), scores(&dropped));
        let at = |step| gradient(&dropped, &whole, &adapters, (step, &[])).0;
        assert_ne!(at(step(1)), at(None), "{text}");
        assert!(at(step(1)) != at(step(2)) && at(step(1)) == at(step(1)), "{text}");
        // A sequence has its masks in any company.
        let mut alone = 0.0;
        for sample in 0..3 {
            let mut one = batch(&plain, &[9, 3, 5]);
            let Targets::Labels(targets) = &mut one.targets else { panic!("labels") };
            *targets = vec![targets.swap_remove(sample)];
            alone += gradient(&dropped, &one, &adapters, (step(1), &[])).0;
        }
        assert!((alone - at(step(1))).abs() < 1e-12, "{alone} {}", at(step(1)));
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let device = cpu();
    let bert = model(BERT);
    let adapters = [adapter(&device, &bert, 0.0)];
    let loss = Loss::cross_entropy();
    let mut types = batch(&bert, &[4]);
    types.token_type_ids[2] = 2;
    let mut short = batch(&bert, &[4]);
    short.token_type_ids.pop();
    let mut class = batch(&bert, &[4]);
    class.targets = Targets::Labels(vec![LabelTarget { rows: 0..1, label: Label::Class(3), weight: 1.0 }]);
    let mut rows = batch(&bert, &[4, 3]);
    rows.targets = Targets::Labels(vec![LabelTarget { rows: 3..5, label: Label::None, weight: 1.0 }]);
    for bad in [types, short, class, rows, batch(&bert, &[17])] {
        assert!(bert.score_labels(&device, &bad, &adapters, &loss).is_err(), "{bad:?}");
    }
    // Tokens are asked of a head for labels, and the other way round.
    let tokens = Batch { targets: Targets::default(), ..batch(&bert, &[4]) };
    assert!(bert.logits(&device, &tokens, &adapters, &[0]).is_err());
    // Without an adapter the model has no head: its folder had none.
    let error = bert.score_labels(&device, &batch(&bert, &[4]), &[], &loss).unwrap_err().to_string();
    assert!(error.contains("no head for these labels"), "{error}");
    assert_eq!(bert.hidden_states(&device, &tokens, &[], &[0, 3]).unwrap().shape(), [2, 12]);
}
