//! Tests of reading and writing `config.json`.

use serde_json::json;

use super::*;
use crate::config::{Sites, variant};

const QWEN3: &str = r#"{
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "dtype": "float32",
  "head_dim": 32,
  "hidden_act": "silu",
  "hidden_size": 64,
  "initializer_range": 0.02,
  "intermediate_size": 160,
  "layer_types": ["full_attention", "full_attention", "full_attention"],
  "max_position_embeddings": 128,
  "max_window_layers": 28,
  "model_type": "qwen3",
  "num_attention_heads": 4,
  "num_hidden_layers": 3,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 1000000.0,
  "sliding_window": null,
  "tie_word_embeddings": true,
  "use_sliding_window": false,
  "vocab_size": 311
}"#;

fn read(text: &str) -> Result<ModelConfig> {
    ModelConfig::from_json(Path::new("m/config.json"), text)
}

/// `QWEN3` with `changes` laid over it; `null` values of the list stay as nulls.
fn with(changes: Value) -> String {
    let mut keys: Map<String, Value> = serde_json::from_str(QWEN3).unwrap();
    keys.extend(changes.as_object().unwrap().clone());
    serde_json::to_string_pretty(&keys).unwrap()
}

fn without(key: &str) -> String {
    let mut keys: Map<String, Value> = serde_json::from_str(QWEN3).unwrap();
    keys.remove(key);
    serde_json::to_string_pretty(&keys).unwrap()
}

#[test]
fn qwen3_is_read_as_written() {
    let config = read(QWEN3).unwrap();
    assert_eq!(config.family, Family::Qwen3);
    assert_eq!((config.q_size(), config.kv_size(), config.head_dim), (128, 64, 32));
    assert!(config.qk_norm && !config.attention_bias && config.tie_word_embeddings);
    assert_eq!((config.bos_token_id, config.eos_token_ids.len(), config.pad_token_id), (None, 0, None));
    // By hand: 3 blocks of q 8192, k and v 4096, o 8192, three of 10240, norms 2*64 + 2*32; final norm 64; table 311*64.
    assert_eq!(config.parameter_count(), 3 * (24_576 + 30_720 + 192) + 64 + 19_904);
}

#[test]
fn families_differ_in_bias_norm_and_defaults() {
    let qwen2 = read(&with(json!({"model_type": "qwen2", "head_dim": null}))).unwrap();
    assert!(qwen2.attention_bias && !qwen2.qk_norm);
    assert_eq!(qwen2.head_dim, 16);
    let llama = read(&with(json!({"model_type": "llama", "num_key_value_heads": null}))).unwrap();
    assert!(!llama.attention_bias && !llama.qk_norm);
    assert_eq!(llama.num_key_value_heads, 4);
    assert_eq!(read(&without("head_dim")).unwrap().head_dim, 128, "the default of Qwen3Config");
    assert_eq!(read(&without("rope_theta")).unwrap().rope_theta, 10_000.0);
    assert!(!read(&without("tie_word_embeddings")).unwrap().tie_word_embeddings);
}

#[test]
fn token_ids_may_be_one_or_many() {
    let config = read(&with(json!({"eos_token_id": [5, 6], "bos_token_id": 4, "pad_token_id": -1}))).unwrap();
    assert_eq!(config.eos_token_ids, [5, 6]);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(4), None));
    assert!(read(&with(json!({"eos_token_id": "</s>"}))).is_err());
}

#[test]
fn the_spelling_of_transformers_5_is_understood() {
    let text = with(
        json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5_000_000.0, "rope_type": "default"}}),
    );
    assert_eq!(read(&text).unwrap().rope_theta, 5_000_000.0);
}

#[test]
fn other_maths_is_refused_by_name() {
    for (key, value) in [
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "default", "factor": 4.0})),
        ("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "llama3"})),
        ("use_sliding_window", json!(true)),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("quantization_config", json!({"quant_method": "bitsandbytes"})),
        ("model_type", json!("qwen3_moe")),
        ("model_type", json!(null)),
    ] {
        let error = read(&with(json!({ key: value }))).unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{key}\"")) && error.contains("m/config.json:"), "{error}");
    }
    let harmless =
        json!({"rope_scaling": {"type": "default"}, "attention_dropout": 0.1, "sliding_window": 4096});
    assert!(read(&with(harmless)).is_ok());
}

#[test]
fn insane_sizes_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(u64::MAX)),
        ("num_hidden_layers", json!(1025)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(33)),
        ("vocab_size", json!(4_000_001)),
        ("rms_norm_eps", json!(0.0)),
        ("rope_theta", json!(-1.0)),
        ("initializer_range", json!(-0.1)),
    ] {
        let error = read(&with(json!({ key: value.clone() }))).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(key), "{key} {value}: {error}");
    }
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"]
    {
        let error = read(&without(key)).unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains(key), "{error}");
    }
    for text in ["", "[1]", "{\"a\": 1,}", "nul"] {
        assert!(read(text).unwrap_err().to_string().contains("m/config.json:1"), "{text}");
    }
}

#[test]
fn what_is_written_reads_back_unchanged() {
    let mut config = read(QWEN3).unwrap();
    config.eos_token_ids = vec![2, 7];
    config.pad_token_id = Some(0);
    for family in Family::ALL {
        config.family = family;
        config.attention_bias = family == Family::Qwen2;
        config.qk_norm = family == Family::Qwen3;
        assert_eq!(read(&config.to_json()).unwrap(), config);
    }
    let text = config.to_json_as(Dtype::Bf16);
    assert!(text.contains("\"dtype\": \"bfloat16\"") && text.contains("\"LlamaForCausalLM\""), "{text}");
}

#[test]
fn linear_shapes_cover_every_module() {
    let config = variant("Qwen3-0.6B").unwrap().model_config().unwrap();
    let sites = Sites::of(&config);
    let shapes: Vec<_> =
        sites.of_block(27).map(|number| (sites[number].name(), sites[number].shape)).collect();
    let expected = [
        ("q_proj", [2048, 1024]),
        ("k_proj", [1024, 1024]),
        ("v_proj", [1024, 1024]),
        ("o_proj", [1024, 2048]),
        ("gate_proj", [3072, 1024]),
        ("up_proj", [3072, 1024]),
        ("down_proj", [1024, 3072]),
    ];
    assert_eq!(shapes, expected);
}

#[test]
fn folders_written_by_transformers_are_read_or_refused_by_family() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let golden = std::env::var("TANREN_GOLDEN").unwrap_or(default.into());
    let mut read = 0;
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path().join("model/config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        match ModelConfig::from_json(&path, &text) {
            Ok(config) => {
                assert!(text.contains(&format!("\"model_type\": \"{}\"", config.family)));
                read += 1;
            }
            Err(error) => assert!(error.to_string().contains("field \"model_type\""), "{error}"),
        }
    }
    assert!(read > 0);
}

#[test]
fn what_is_not_used_is_said() {
    let own = variant("Qwen3-0.6B").unwrap().model_config().unwrap().to_json();
    assert!(ModelConfig::unused(&own).is_empty());
    let said = ModelConfig::unused(
        r#"{"model_type": "llama", "logits_scaling": 2.0, "vocab_size": 9, "use_x": false, "rope_theta": 5, "rope_parameters": {"rope_theta": 7}}"#,
    );
    let [keys, theta] = said.try_into().unwrap();
    assert!(keys.ends_with("ignored: logits_scaling") && theta.starts_with("rope_theta"), "{keys} {theta}");
    assert!(ModelConfig::unused("{").is_empty());
    let window = |family: &str| {
        ModelConfig::unused(&with(json!({"model_type": family, "sliding_window": 4096}))).len()
    };
    assert_eq!(Family::ALL.map(|family| window(family.model_type())), [0, 0, 1]);
}
