//! Tests of the built-in variants against their source files and against the known keys of the families.

use serde_json::Map;

use super::*;
use crate::config::block::RopeSpec;
use crate::config::variant::parse;

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
        let family = Family::from_model_type(&variant.model_type()).unwrap();
        keys(variant).keys().filter(|key| !family.knows(key)).cloned().collect()
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
        ("GPT-2", 0.124),
        ("DialoGPT-medium", 0.355),
        ("BERT-base", 0.109),
        // Without the pooler of the language model, which the head for labels does not have.
        ("XLM-R-base", 0.277),
    ] {
        let config = variant(name).unwrap().model_config().unwrap();
        let count = config.parameter_count() as f64 / 1e9;
        assert!((count - billions).abs() < 0.0011, "{name}: {count}");
    }
}

#[test]
fn models_find_their_variant() {
    for known in variants() {
        let mut config = known.model_config().unwrap();
        config.max_position_embeddings -= 1;
        let config = config.with_blocks(|block| {
            block.attn.rope = block.attn.rope.map(|_| RopeSpec::unscaled(5e6));
        });
        assert_eq!(matching_variant(&config), Some(known));
        let config = config.with_blocks(|block| block.mlp.size += 8);
        assert_eq!(matching_variant(&config), None);
    }
    assert_eq!(variant("qwen/qwen2.5-7b-instruct").map(|v| v.name), Some("Qwen2.5-7B"));
    assert_eq!(variant("MICROSOFT/DialoGPT-medium").map(|v| &keys(v)["n_embd"] == 1024), Some(true));
    assert!(variant("Qwen/Qwen9").is_none());
}
