//! Tests of the built-in variants against their source files and against the known keys of the families.

use serde_json::Map;

use super::*;
use crate::config::variant::parse;

/// Keys that the configuration classes of families without ops have, as transformers 4.57 writes them.
const NOT_BUILT: [(&str, &[&str]); 3] = [
    (
        "gpt2",
        &[
            "activation_function",
            "attn_pdrop",
            "bos_token_id",
            "embd_pdrop",
            "eos_token_id",
            "initializer_range",
            "layer_norm_epsilon",
            "model_type",
            "n_embd",
            "n_head",
            "n_inner",
            "n_layer",
            "n_positions",
            "reorder_and_upcast_attn",
            "resid_pdrop",
            "scale_attn_by_inverse_layer_idx",
            "scale_attn_weights",
            "vocab_size",
        ],
    ),
    ("bert", ENCODER),
    ("xlm-roberta", ENCODER),
];

const ENCODER: &[&str] = &[
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "eos_token_id",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "position_embedding_type",
    "type_vocab_size",
    "vocab_size",
];

fn keys(variant: &Variant) -> Map<String, Value> {
    serde_json::from_str(variant.config_json).unwrap()
}

#[test]
fn every_file_is_in_the_registry_as_written() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/variants");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = parse(&std::fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        let built = variant(&file.name).unwrap();
        assert_eq!(built.hf_ids, file.hf_ids);
        assert_eq!(serde_json::to_value(&file.config).unwrap(), Value::Object(keys(built)));
        assert_eq!(built.preset().unwrap(), file.preset);
        count += 1;
    }
    assert_eq!(count, variants().len());
    assert_eq!(QWEN3_TINY.name, "qwen3-tiny");
}

#[test]
fn every_key_is_one_of_its_family() {
    let strangers = |variant: &Variant| -> Vec<String> {
        let (model_type, keys) = (variant.model_type(), keys(variant));
        let known = NOT_BUILT.iter().find(|(name, _)| *name == model_type);
        let is_known = |key: &str| match (Family::from_model_type(&model_type), known) {
            (Some(family), None) => family.knows(key),
            (None, Some((_, known))) => known.contains(&key),
            (built, _) => {
                panic!("{model_type} is built ({built:?}) and in the list of what is not, or in neither")
            }
        };
        keys.keys().filter(|key| !is_known(key)).cloned().collect()
    };
    for variant in variants() {
        assert!(strangers(variant).is_empty(), "{}: {:?}", variant.name, strangers(variant));
    }
    for (name, foreign) in [("gpt2", "hidden_size"), ("bert-base", "head_dim"), ("qwen3-tiny", "n_embd")] {
        let text = variant(name).unwrap().config_json.replacen('{', &format!("{{\"{foreign}\": 8,"), 1);
        let changed = Variant { config_json: text.leak(), ..*variant(name).unwrap() };
        assert_eq!(strangers(&changed), [foreign]);
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // Billions, from the model cards and the shape tables of torchtune.
    for (name, billions) in [
        ("Qwen3-0.6B", 0.596),
        ("Qwen3-1.7B", 1.720),
        ("Qwen3-4B", 4.022),
        ("Qwen3-8B", 8.190),
        ("Qwen2.5-0.5B", 0.494),
        ("Qwen2.5-1.5B", 1.543),
        ("Qwen2.5-3B", 3.086),
        ("Qwen2.5-7B", 7.615),
        ("Qwen1.5-7B-Chat", 7.721),
    ] {
        let config = variant(name).unwrap().model_config().unwrap();
        let count = config.parameter_count() as f64 / 1e9;
        assert!((count - billions).abs() < 0.0011, "{name}: {count}");
    }
}

#[test]
fn models_find_their_variant_and_families_without_ops_have_no_model() {
    for known in variants() {
        match known.model_config() {
            Ok(mut config) => {
                config.max_position_embeddings = 77;
                config.rope_theta = 5e6;
                assert_eq!(matching_variant(&config), Some(known));
                config.intermediate_size += 8;
                assert_eq!(matching_variant(&config), None);
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("field \"variant\"") && said.contains("qwen2, qwen3, llama"), "{said}");
                assert!(NOT_BUILT.iter().any(|(name, _)| *name == known.model_type()), "{said}");
            }
        }
    }
    assert_eq!(variant("qwen/qwen2.5-7b-instruct").map(|v| v.name), Some("Qwen2.5-7B"));
    assert_eq!(variant("MICROSOFT/DialoGPT-medium").map(|v| &keys(v)["n_embd"] == 1024), Some(true));
    assert!(variant("Qwen/Qwen9").is_none());
}
