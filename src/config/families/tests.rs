//! Tests of reading and writing `config.json`.

use serde_json::json;

use super::*;
use crate::config::block::{
    Activation, AttnMask, AttnSpec, BlockSpec, Gate, LearnedPositions, NormKind, RopeScaling, RopeSpec,
    Wiring,
};
use crate::config::head::{HeadSpec, Pool};
use crate::config::{BaseDropoutMode, Sites, variant};

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

/// Attention of the first block.
fn attn(config: &ModelConfig) -> &AttnSpec {
    &config.blocks[0].attn
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
    assert_eq!((attn(&config).q_size(), attn(&config).kv_size(), attn(&config).head_dim), (128, 64, 32));
    assert!(attn(&config).qk_norm && !attn(&config).qkv_bias && config.tie_word_embeddings);
    assert_eq!((config.bos_token_id, config.eos_token_ids.len(), config.pad_token_id), (None, 0, None));
    // By hand: 3 blocks of q 8192, k and v 4096, o 8192, three of 10240, norms 2*64 + 2*32; final norm 64; table 311*64.
    assert_eq!(config.parameter_count(), 3 * (24_576 + 30_720 + 192) + 64 + 19_904);
}

#[test]
fn families_differ_in_bias_norm_and_defaults() {
    let qwen2 = read(&with(json!({"model_type": "qwen2", "head_dim": null}))).unwrap();
    assert!(attn(&qwen2).qkv_bias && !attn(&qwen2).qk_norm);
    assert_eq!(attn(&qwen2).head_dim, 16);
    let llama = read(&with(json!({"model_type": "llama", "num_key_value_heads": null}))).unwrap();
    assert!(!attn(&llama).qkv_bias && !attn(&llama).qk_norm);
    assert_eq!(attn(&llama).kv_heads, 4);
    assert_eq!(attn(&read(&without("head_dim")).unwrap()).head_dim, 128, "the default of Qwen3Config");
    assert_eq!(attn(&read(&without("rope_theta")).unwrap()).rope, Some(RopeSpec::unscaled(10_000.0)));
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
    assert_eq!(attn(&read(&text).unwrap()).rope, Some(RopeSpec::unscaled(5_000_000.0)));
}

#[test]
fn other_maths_is_refused_by_name() {
    for (key, value) in [
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "default", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.5})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": "4"})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0, "truncate": 1})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0})),
        ("rope_scaling", json!({"rope_type": "mrope", "mrope_section": [16, 24, 24]})),
        ("rope_scaling", json!("linear")),
        ("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "llama3"})),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 32}),
        ),
        ("rope_parameters", json!({"rope_theta": 1e6, "partial_rotary_factor": 0.5})),
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
fn scaled_rotation_is_read_in_every_spelling_and_written_back() {
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let yarn = json!({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false});
    for (kind, keys) in [
        ("linear", json!({"factor": 4.0})),
        ("dynamic", json!({"factor": 2.0})),
        ("llama3", llama3),
        ("yarn", yarn),
    ] {
        let with_keys = |more: Value| {
            let mut all = keys.as_object().unwrap().clone();
            all.extend(more.as_object().unwrap().clone());
            Value::Object(all)
        };
        let spellings = [
            json!({"rope_theta": 5e5, "rope_scaling": with_keys(json!({"rope_type": kind}))}),
            json!({"rope_theta": 5e5, "rope_scaling": with_keys(json!({"type": kind}))}),
            json!({"rope_theta": null, "rope_parameters": with_keys(json!({"rope_type": kind, "rope_theta": 5e5}))}),
        ];
        let read = spellings.map(|spelling| read(&with(spelling)).unwrap());
        assert_eq!((&read[0], &read[0]), (&read[1], &read[2]));
        let rope = attn(&read[0]).rope.unwrap();
        assert!(rope.theta == 5e5 && rope.scaling != RopeScaling::Default);
        assert_eq!(super::tests::read(&read[0].to_json()).unwrap(), read[0], "{kind}");
        let longest = read[0].max_sequence_length();
        assert_eq!(
            longest,
            match kind {
                "linear" | "yarn" => 512,
                "dynamic" => 256,
                _ => 128,
            },
            "{kind}"
        );
    }
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
        if !["qwen2", "qwen3", "llama"].contains(&family.model_type()) {
            continue;
        }
        config.family = family;
        config = config.with_blocks(|block| {
            (block.attn.qkv_bias, block.attn.qk_norm) = (family == Family::Qwen2, family == Family::Qwen3);
        });
        assert_eq!(read(&config.to_json()).unwrap(), config);
    }
    let text = config.to_json_as(Dtype::Bf16);
    assert!(text.contains("\"dtype\": \"bfloat16\"") && text.contains("\"LlamaForCausalLM\""), "{text}");
}

const GPT2: &str = r#"{
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
  "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
  "n_ctx": 1024, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64, "resid_pdrop": 0.1, "vocab_size": 97
}"#;

const BERT: &str = r#"{
  "architectures": ["BertForMaskedLM"], "hidden_act": "gelu", "hidden_size": 48, "intermediate_size": 96, "layer_norm_eps": 1e-12,
  "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 0,
  "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 97
}"#;

const MODERNBERT: &str = r#"{
  "classifier_pooling": "mean", "global_attn_every_n_layers": 3, "hidden_activation": "gelu", "hidden_size": 48,
  "intermediate_size": 64, "local_attention": 16, "max_position_embeddings": 64, "model_type": "modernbert", "norm_eps": 1e-05,
  "num_attention_heads": 4, "num_hidden_layers": 5, "vocab_size": 97,
  "id2label": {"0": "a", "1": "b", "2": "c"}
}"#;

/// A file with changed keys; null removes one.
fn changed(text: &str, changes: Value) -> String {
    let mut keys: Map<String, Value> = serde_json::from_str(text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(keys.remove(key)),
            value => drop(keys.insert(key.clone(), value.clone())),
        }
    }
    serde_json::to_string_pretty(&keys).unwrap()
}

#[test]
fn gpt2_is_read_as_its_own_keys_say() {
    let config = read(GPT2).unwrap();
    let BlockSpec { wiring, norm, attn, mlp } = config.blocks[0];
    assert_eq!((wiring, norm.kind, norm.bias, norm.eps), (Wiring::PreNorm, NormKind::Layer, true, 1e-5));
    assert_eq!((attn.heads, attn.kv_heads, attn.head_dim, attn.rope), (4, 4, 12, None));
    assert!(attn.fused_qkv && attn.qkv_bias && attn.o_bias && mlp.bias && config.tie_word_embeddings);
    assert_eq!((mlp.size, mlp.act, mlp.gate), (192, Activation::GeluTanh, Gate::None));
    assert_eq!(config.embed.positions, Some(LearnedPositions { rows: 64, offset: 0 }));
    assert_eq!((config.max_sequence_length(), config.head), (64, HeadSpec::Tokens));
    assert_eq!(read(&config.to_json()).unwrap(), config);
    let sites = Sites::of(&config);
    let paths: Vec<_> = sites.of_block(2).map(|number| sites[number].path.as_str()).collect();
    let part = |name: &str| format!("transformer.h.2.{name}");
    assert_eq!(paths, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map(part));
    for (key, value) in [
        ("activation_function", json!("relu")),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("add_cross_attention", json!(true)),
        ("n_head", json!(5)),
        ("n_layer", json!(0)),
        ("n_layer", json!(1_000_000_000)),
        ("layer_norm_epsilon", json!(0.0)),
    ] {
        let error = read(&changed(GPT2, json!({ key: value }))).unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{key}\"")), "{error}");
    }
    assert!(ModelConfig::unused(GPT2).is_empty());
}

/// What is applied at embeddings, hidden states and head, and what is said to be left out.
#[test]
fn dropout_of_the_model_is_applied_as_far_as_it_is_asked_for() {
    let at = |text: &str, mode: &str| {
        let mode = BaseDropoutMode::try_from(mode.to_owned()).unwrap();
        let dropout = read(text)?.with_base_dropout(mode)?.base_dropout;
        let places = [DropoutPlace::Embeddings, DropoutPlace::Hidden, DropoutPlace::Head];
        let said = dropout.left_out().map(|said| said.split_once("): ").unwrap().1.to_owned());
        Ok::<_, Error>((places.map(|place| dropout.p(place)), said.unwrap_or_default()))
    };
    let none = [0.0; 3];
    let all = "embd_pdrop 0.1, resid_pdrop 0.1, attn_pdrop 0.1";
    assert_eq!(at(GPT2, "off").unwrap(), (none, all.to_owned()));
    let hidden = ([0.1, 0.1, 0.0], "attn_pdrop 0.1".to_owned());
    assert_eq!(at(GPT2, "hidden").unwrap(), hidden);
    // What transformers takes where there is no key.
    let absent = changed(GPT2, json!({"embd_pdrop": null, "resid_pdrop": null, "attn_pdrop": null}));
    assert_eq!(at(&absent, "hidden").unwrap(), hidden);
    let error = at(GPT2, "config").unwrap_err().to_string();
    assert!(error.contains("attn_pdrop 0.1") && error.contains("--base-dropout hidden"), "{error}");
    let without = changed(GPT2, json!({"attn_pdrop": 0.0, "embd_pdrop": 0.25}));
    assert_eq!(at(&without, "config").unwrap(), ([0.25, 0.1, 0.0], String::new()));
    // The head has its own, or that of the hidden states.
    let bert = changed(BERT, json!({"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0}));
    assert_eq!(at(&bert, "config").unwrap().0, [0.2; 3]);
    let own = changed(&bert, json!({"classifier_dropout": 0.0}));
    assert_eq!(at(&own, "config").unwrap().0, [0.2, 0.2, 0.0]);
    for text in [&bert, &own] {
        assert_eq!(read(&read(text).unwrap().to_json()).unwrap(), read(text).unwrap());
    }
    for (text, key) in [
        (changed(BERT, json!({"hidden_dropout_prob": 1.5})), "hidden_dropout_prob"),
        (changed(BERT, json!({"hidden_dropout_prob": "x"})), "hidden_dropout_prob"),
        (changed(BERT, json!({"hidden_dropout_prob": -0.1})), "hidden_dropout_prob"),
    ] {
        assert!(at(&text, "off").unwrap_err().to_string().contains(key));
    }
    let nothing = changed(&bert, json!({"hidden_dropout_prob": 1}));
    assert!(at(&nothing, "off").is_ok() && at(&nothing, "config").is_err());
    for key in ["mlp_dropout", "attention_dropout"] {
        let text = changed(MODERNBERT, json!({ key: 0.1 }));
        let error = at(&text, "hidden").unwrap_err().to_string();
        assert!(error.contains(&format!("{key} 0.1")) && error.contains("--base-dropout off"), "{error}");
        assert_eq!(at(&text, "off").unwrap(), (none, format!("{key} 0.1")));
    }
    let qwen = with(json!({"model_type": "qwen3", "attention_dropout": 0.1}));
    assert!(
        at(&qwen, "config").is_err()
            && at(&qwen, "hidden").unwrap() == (none, "attention_dropout 0.1".into())
    );
}

#[test]
fn encoders_are_read_with_the_heads_of_their_families() {
    let bert = read(BERT).unwrap();
    assert_eq!((bert.blocks[1].wiring, bert.blocks[1].attn.mask), (Wiring::PostNorm, AttnMask::Full));
    assert_eq!((bert.embed.token_types, bert.embed.norm.map(|norm| norm.eps)), (Some(2), Some(1e-12)));
    let HeadSpec::Labels(head) = bert.head else { panic!("{:?}", bert.head) };
    assert_eq!((head.num_labels, head.pool, head.dense), (2, Pool::First, false));
    assert_eq!(head.pooler.unwrap().act, Activation::Tanh);
    assert_eq!(read(&bert.to_json()).unwrap(), bert);
    assert!(bert.clone().with_token_head().is_err());
    assert_eq!(Sites::of(&bert).iter().last().unwrap().path, "bert.pooler.dense");

    let roberta =
        changed(BERT, json!({"model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1}));
    let roberta = read(&roberta).unwrap();
    // Rows 0 and 1 of the table are those of the padding token and of nothing.
    assert_eq!(roberta.embed.positions, Some(LearnedPositions { rows: 64, offset: 2 }));
    assert_eq!(roberta.max_sequence_length(), 62);
    let HeadSpec::Labels(head) = roberta.head else { panic!("{:?}", roberta.head) };
    assert!(head.dense && head.pooler.is_none() && head.bias);
    assert_eq!(read(&roberta.to_json()).unwrap(), roberta);

    let modern = read(MODERNBERT).unwrap();
    let masks = modern.blocks.iter().map(|block| block.attn.mask);
    let (full, window) = (AttnMask::Full, AttnMask::Window(8));
    assert_eq!(masks.collect::<Vec<_>>(), [full, window, window, full, window]);
    let thetas = modern.blocks.iter().map(|block| block.attn.rope.unwrap().theta);
    assert_eq!(thetas.collect::<Vec<_>>(), [160_000.0, 1e4, 1e4, 160_000.0, 1e4]);
    assert_eq!((modern.blocks[0].mlp.gate, modern.label_head.pool), (Gate::Fused, Pool::Mean));
    assert_eq!(modern.label_head.num_labels, 3);
    assert_eq!((modern.eos_token_ids.as_slice(), modern.pad_token_id), (&[50_282][..], Some(50_283)));
    assert_eq!(read(&modern.to_json()).unwrap(), modern);

    for (text, key, value) in [
        (BERT, "position_embedding_type", json!("relative_key")),
        (BERT, "is_decoder", json!(true)),
        (BERT, "hidden_act", json!("relu")),
        (BERT, "type_vocab_size", json!(0)),
        (BERT, "id2label", json!({})),
        (BERT, "id2label", json!(3)),
        (MODERNBERT, "classifier_pooling", json!("max")),
        (MODERNBERT, "global_rope_theta", json!(-1.0)),
    ] {
        let error = read(&changed(text, json!({ key: value }))).unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{key}\"")), "{error}");
    }
    let short =
        changed(BERT, json!({"model_type": "roberta", "max_position_embeddings": 2, "pad_token_id": 1}));
    assert!(read(&short).unwrap_err().to_string().contains("max_position_embeddings"));
}

#[test]
fn a_classifier_of_a_language_model_has_its_head() {
    let names = json!({"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "x", "1": "y", "2": "z"}});
    let config = read(&with(names)).unwrap();
    let HeadSpec::Labels(head) = config.head else { panic!("{:?}", config.head) };
    assert_eq!((head.num_labels, head.pool, head.bias), (3, Pool::Last, false));
    assert!(config.to_json().contains("Qwen3ForSequenceClassification"));
    assert_eq!(config.with_token_head().unwrap().head, HeadSpec::Tokens);
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
    assert_eq!(
        [Family::Qwen2, Family::Qwen3, Family::Llama].map(|family| window(family.model_type())),
        [0, 0, 1]
    );
}

#[test]
fn modernbert_is_the_same_in_the_spelling_of_transformers_5() {
    let old = json!({ "global_rope_theta": 90000.0, "local_rope_theta": 700.0, "architectures": null });
    let old = read(&changed(MODERNBERT, old)).unwrap();
    let kinds = ["full", "sliding", "sliding", "full", "sliding"].map(|kind| format!("{kind}_attention"));
    let bases = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 90000.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 700.0 },
    });
    let own = json!({ "global_attn_every_n_layers": null, "layer_types": kinds, "rope_parameters": bases });
    let new = changed(MODERNBERT, own);
    assert_eq!(read(&new).unwrap(), old);
    // Kinds in no regular order are kept when they are written.
    let order = ["sliding", "full", "sliding", "full", "full"].map(|kind| format!("{kind}_attention"));
    let irregular = read(&changed(&new, json!({ "layer_types": order }))).unwrap();
    let windows: Vec<bool> = irregular.blocks.iter().map(|b| b.attn.mask == AttnMask::Window(8)).collect();
    assert_eq!(windows, [true, false, true, false, false]);
    assert_eq!(irregular.blocks[1].attn.rope, old.blocks[0].attn.rope);
    let none =
        json!({ "rope_parameters": { "sliding_attention": { "rope_theta": 700.0, "rope_type": "yarn" } } });
    for (key, edit) in [
        ("layer_types", json!({ "layer_types": ["full_attention"] })),
        ("layer_types", json!({ "layer_types": [1, 2, 3, 4, 5] })),
        ("layer_types", json!({ "layer_types": ["full_attention", "a", "a", "a", "a"] })),
        ("rope_parameters", none),
        ("rope_parameters", json!({ "rope_parameters": { "rope_theta": 700.0 } })),
        ("rope_parameters", json!({ "rope_parameters": { "full_attention": { "rope_theta": -1 } } })),
        ("rope_scaling", json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } })),
        ("global_attn_every_n_layers", json!({ "global_attn_every_n_layers": 0, "layer_types": null })),
    ] {
        let error = read(&changed(&new, edit)).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("fix: "), "{key}: {error}");
    }
}
