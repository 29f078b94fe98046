//! Tests of adapters: against files that PEFT wrote, one test per refusal, and crashes while writing.

use std::path::PathBuf;

use proptest::prelude::*;

use super::super::storage::failing::{FailingDisk, Failure};
use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(name)
}

fn parse(text: &str) -> Result<AdapterConfig> {
    AdapterConfig::from_json(Path::new("adapter_config.json"), text)
}

/// A config with `key` set to `value`.
fn parse_with(key: &str, value: serde_json::Value) -> Result<AdapterConfig> {
    let mut object = serde_json::json!({"peft_type": "LORA"});
    object[key] = value;
    parse(&object.to_string())
}

fn tensor<'a>(name: &str, shape: [usize; 2], data: &'a [f32]) -> NamedTensor<'a> {
    NamedTensor { name: name.to_owned(), shape: shape.to_vec(), data: TensorData::F32(data) }
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

fn config(r: usize) -> AdapterConfig {
    AdapterConfig {
        r,
        target_modules: TargetModules::List(vec!["q_proj".into()]),
        ..AdapterConfig::default()
    }
}

/// A folder with an adapter of rank 1 whose numbers are `value`.
fn folder(config: &AdapterConfig, value: f32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = [value; 2];
    write_adapter(dir.path(), config, &[tensor(A, [1, 2], &data), tensor(B, [2, 1], &data)]).unwrap();
    dir
}

fn refusal(dir: &Path) -> String {
    let error = read_adapter(dir).unwrap_err().to_string();
    assert!(error.contains("fix:"), "{error}");
    error
}

#[test]
fn files_of_peft_are_read_and_written_again_alike() {
    for (name, r, dora, modules) in [("lora", 4, false, 7), ("dora", 4, true, 2), ("seqcls", 4, false, 4)] {
        let dir = golden(name);
        let adapter = read_adapter(&dir).unwrap();
        assert_eq!((adapter.config.r, adapter.config.use_dora), (r, dora), "{name}");
        assert!(
            adapter.config.unknown_keys == ["alora_invocation_tokens"; 0],
            "{:?}",
            adapter.config.unknown_keys
        );
        assert!(
            matches!(&adapter.config.target_modules, TargetModules::List(names) if names.len() == modules)
        );
        let tensors: Vec<NamedTensor<'_>> = adapter
            .tensors
            .iter()
            .map(|(name, t)| NamedTensor {
                name: name.clone(),
                shape: t.shape.clone(),
                data: TensorData::F32(&t.data),
            })
            .collect();
        let files = adapter_files(&adapter.config, &tensors).unwrap();
        let weights = std::fs::read(dir.join(WEIGHTS_NAME)).unwrap();
        assert!(files[1].1 == weights, "{name}: the tensors differ from PEFT's bytes");
        // PEFT 0.18 wrote four keys that 0.17 does not know, and which we leave out.
        let object =
            |bytes: &[u8]| serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(bytes).unwrap();
        let mut theirs = object(&std::fs::read(dir.join(CONFIG_NAME)).unwrap());
        for key in ["peft_version", "alora_invocation_tokens", "arrow_config", "ensure_weight_tying"] {
            assert!(theirs.remove(key).is_some(), "{key}");
        }
        assert_eq!(object(&files[0].1), theirs, "{name}");
        assert_eq!(parse(std::str::from_utf8(&files[0].1).unwrap()).unwrap(), adapter.config);
    }
}

#[test]
fn the_config_looks_as_python_writes_it() {
    let config = AdapterConfig {
        r: 16,
        lora_alpha: 16.0,
        lora_dropout: 0.05,
        alpha_pattern: vec![("v_proj".into(), 2.5)],
        target_modules: TargetModules::List(vec!["v_proj".into(), "q_proj".into()]),
        base_model_name_or_path: Some("モデル".into()),
        task_type: Some("CAUSAL_LM".into()),
        ..AdapterConfig::default()
    };
    let expected = r#"{
  "alpha_pattern": {
    "v_proj": 2.5
  },
  "auto_mapping": null,
  "base_model_name_or_path": "\u30e2\u30c7\u30eb",
  "bias": "none",
  "corda_config": null,
  "eva_config": null,
  "exclude_modules": null,
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "layer_replication": null,
  "layers_pattern": null,
  "layers_to_transform": null,
  "loftq_config": {},
  "lora_alpha": 16,
  "lora_bias": false,
  "lora_dropout": 0.05,
  "megatron_config": null,
  "megatron_core": "megatron.core",
  "modules_to_save": null,
  "peft_type": "LORA",
  "qalora_group_size": 16,
  "r": 16,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "q_proj",
    "v_proj"
  ],
  "target_parameters": null,
  "task_type": "CAUSAL_LM",
  "trainable_token_indices": null,
  "use_dora": false,
  "use_qalora": false,
  "use_rslora": false
}"#;
    assert_eq!(config.to_json(), expected);
}

#[test]
fn numbers_come_back_to_the_last_bit() {
    // Without the feature `float_roundtrip`, serde_json reads the first as ...928.
    for lora_alpha in [233_548.647_627_979_26, 1e-5, 1e16, 0.1 + 0.2] {
        let config = AdapterConfig { lora_alpha, ..AdapterConfig::default() };
        assert_eq!(parse(&config.to_json()).unwrap().lora_alpha, lora_alpha);
    }
}

#[test]
fn missing_keys_take_the_defaults_of_peft() {
    let config = parse(r#"{"peft_type":"LORA"}"#).unwrap();
    assert_eq!(config, AdapterConfig::default());
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (8, 8.0, 0.0));
}

#[test]
fn unknown_keys_are_reported() {
    let text = r#"{"peft_type":"LORA","zeta":1,"peft_version":"0.20.1","lora_ga_config":null,"use_bdlora":false,"eta":{}}"#;
    assert_eq!(parse(text).unwrap().unknown_keys, ["eta", "zeta"]);
}

#[test]
fn values_of_the_wrong_type_name_their_key() {
    for (key, value) in [
        ("r", serde_json::json!(0)),
        ("r", serde_json::json!(-1)),
        ("r", serde_json::json!(8.0)),
        ("r", serde_json::json!(1u64 << 40)),
        ("r", serde_json::json!(null)),
        ("lora_alpha", serde_json::json!("16")),
        ("lora_alpha", serde_json::json!(0)),
        ("lora_dropout", serde_json::json!(1.0)),
        ("lora_dropout", serde_json::json!(-0.1)),
        ("target_modules", serde_json::json!([1])),
        ("target_modules", serde_json::json!({})),
        ("bias", serde_json::json!("some")),
        ("use_dora", serde_json::json!(1)),
        ("rank_pattern", serde_json::json!({"q": 0})),
        ("alpha_pattern", serde_json::json!([])),
        ("modules_to_save", serde_json::json!("score")),
        ("layers_to_transform", serde_json::json!([-1])),
        ("peft_type", serde_json::json!("LOHA")),
    ] {
        let error = parse_with(key, value.clone()).expect_err(&value.to_string()).to_string();
        assert!(error.contains(&format!("field \"{key}\"")) && error.contains("fix:"), "{error}");
    }
    for text in ["", "[]", "{}", "{\"peft_type\":\"LORA\"", r#"{"peft_type":"LORA","r":1,"r":2}"#] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn what_would_be_computed_differently_is_refused() {
    for key in ["lora_bias", "use_qalora", "use_bdlora"] {
        assert!(parse_with(key, true.into()).is_err(), "{key}");
        assert!(parse_with(key, false.into()).is_ok(), "{key}");
    }
    for (key, value) in [
        ("layer_replication", serde_json::json!([[0, 2]])),
        ("trainable_token_indices", serde_json::json!([1])),
        ("target_parameters", serde_json::json!(["a"])),
        ("alora_invocation_tokens", serde_json::json!([1])),
        ("init_lora_weights", serde_json::json!("pissa_niter_4")),
        ("init_lora_weights", serde_json::json!("loftq")),
    ] {
        assert!(parse_with(key, value).is_err(), "{key}");
    }
    assert!(parse_with("init_lora_weights", "gaussian".into()).is_ok());
}

#[test]
fn targets_may_be_a_list_a_name_or_null() {
    let targets = |value| parse_with("target_modules", value).unwrap().target_modules;
    assert_eq!(targets("all-linear".into()), TargetModules::Name("all-linear".into()));
    assert_eq!(targets(serde_json::Value::Null), TargetModules::ModelDefault);
    assert_eq!(targets(serde_json::json!(["a"])), TargetModules::List(vec!["a".into()]));
    assert_eq!(parse_with("layers_to_transform", 3.into()).unwrap().layers_to_transform, Some(vec![3]));
}

#[test]
fn half_precision_is_widened() {
    let dir = folder(&config(1), 1.5);
    let header = format!(
        r#"{{"{A}":{{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}},"{B}":{{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend([half::bf16::from_f32(-2.5).to_le_bytes(); 2].concat());
    bytes.extend([half::f16::from_f32(0.5).to_le_bytes(); 2].concat());
    std::fs::write(dir.path().join(WEIGHTS_NAME), bytes).unwrap();
    let adapter = read_adapter(dir.path()).unwrap();
    assert_eq!(adapter.tensors[A], AdapterTensor { shape: vec![1, 2], data: vec![-2.5; 2] });
    assert_eq!(adapter.tensors[B].data, [0.5; 2]);
}

#[test]
fn numbers_that_are_not_finite_are_neither_written_nor_read() {
    let dir = folder(&config(1), 1.0);
    for value in [f32::NAN, f32::INFINITY] {
        let data = [1.0, value];
        let tensors = [tensor(A, [1, 2], &data), tensor(B, [2, 1], &data)];
        let error = write_adapter(dir.path(), &config(1), &tensors).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(read_adapter(dir.path()).is_ok(), "the old one is still there");
        let bytes = serialize(&tensors, &[]).unwrap();
        let other = folder(&config(1), 1.0);
        std::fs::write(other.path().join(WEIGHTS_NAME), bytes).unwrap();
        assert!(refusal(other.path()).contains("at element 1 of"));
    }
}

#[test]
fn what_stands_beside_the_weights_is_not_looked_at() {
    let dir = folder(&config(1), 1.0);
    std::os::unix::fs::symlink("/nowhere", dir.path().join("adapter_model.bin")).unwrap();
    assert!(read_adapter(dir.path()).is_ok());
    std::fs::remove_file(dir.path().join(WEIGHTS_NAME)).unwrap();
    assert!(refusal(dir.path()).contains("adapter_model.bin"));
}

#[test]
fn an_adapter_without_its_weights_says_what_to_do() {
    let dir = folder(&config(1), 1.0);
    std::fs::rename(dir.path().join(WEIGHTS_NAME), dir.path().join("adapter_model.bin")).unwrap();
    assert!(refusal(dir.path()).contains("error[PICKLE]"));
    std::fs::rename(dir.path().join("adapter_model.bin"), dir.path().join("adapter.pt")).unwrap();
    assert!(refusal(dir.path()).contains("adapter.pt is a pickle"));
    std::fs::rename(dir.path().join("adapter.pt"), dir.path().join("adapter_model.bin")).unwrap();
    std::fs::remove_file(dir.path().join("adapter_model.bin")).unwrap();
    assert!(refusal(dir.path()).contains("no adapter_model.safetensors"));
    std::fs::remove_file(dir.path().join(CONFIG_NAME)).unwrap();
    assert!(refusal(dir.path()).contains("no adapter_config.json"));
}

#[test]
fn ranks_must_fit() {
    let refused = |config: &AdapterConfig, tensors: &[NamedTensor<'_>]| {
        let dir = tempfile::tempdir().unwrap();
        write_adapter(dir.path(), config, tensors).unwrap();
        refusal(dir.path())
    };
    let data = [0.0f32; 4];
    assert!(
        refused(&config(2), &[tensor(A, [1, 2], &data[..2]), tensor(B, [2, 1], &data[..2])])
            .contains("config's")
    );
    assert!(refused(&config(1), &[tensor(A, [1, 2], &data[..2])]).contains("is missing"));
    assert!(
        refused(&config(2), &[tensor(A, [2, 2], &data), tensor(B, [4, 1], &data)])
            .contains("different ranks")
    );
    assert!(refused(&config(1), &[tensor("score.weight", [1, 2], &data[..2])]).contains("no LoRA"));
    let flat = NamedTensor { name: A.into(), shape: vec![4], data: TensorData::F32(&data) };
    assert!(refused(&config(1), &[flat]).contains("not a matrix"));
}

#[test]
fn every_failure_leaves_the_old_adapter_the_new_one_or_none() {
    let (old, new) = (config(1), AdapterConfig { lora_alpha: 99.0, ..config(1) });
    let data = [2.0f32; 2];
    let tensors = [tensor(A, [1, 2], &data), tensor(B, [2, 1], &data)];
    for failure in [Failure::Error, Failure::CrashBefore, Failure::CrashTorn] {
        for at in 0.. {
            let dir = folder(&old, 1.0);
            let disk = FailingDisk::new(at, failure);
            let result = publish(&disk, dir.path(), &adapter_files(&new, &tensors).unwrap());
            if let Ok(adapter) = read_adapter(dir.path()) {
                let found = (adapter.config.lora_alpha, adapter.tensors[A].data[0]);
                assert!(found == (8.0, 1.0) || found == (99.0, 2.0), "{failure:?} at {at}: {found:?}");
            } else {
                assert!(
                    !dir.path().join(CONFIG_NAME).exists(),
                    "{failure:?} at {at}: a broken adapter is visible"
                );
            }
            if !disk.failed() {
                assert!(result.is_ok());
                break;
            }
        }
    }
}

proptest! {
    #[test]
    fn any_config_survives_a_round_trip(
        r in 1usize..300,
        lora_alpha in prop_oneof![(1u32..1000).prop_map(f64::from), 1e-6f64..1e6],
        lora_dropout in 0.0f64..0.99,
        names in proptest::collection::btree_set(".{0,8}", 0..4),
        flags in any::<[bool; 4]>(),
        base in proptest::option::of(".*"),
    ) {
        let config = AdapterConfig {
            r,
            lora_alpha,
            lora_dropout,
            target_modules: TargetModules::List(names.iter().cloned().collect()),
            rank_pattern: names.iter().map(|name| (name.clone(), r)).collect(),
            alpha_pattern: names.iter().map(|name| (name.clone(), lora_alpha)).collect(),
            use_rslora: flags[0],
            use_dora: flags[1],
            fan_in_fan_out: flags[2],
            inference_mode: flags[3],
            base_model_name_or_path: base,
            ..AdapterConfig::default()
        };
        let json = config.to_json();
        prop_assert!(json.is_ascii());
        prop_assert_eq!(parse(&json).unwrap(), config);
    }
}
