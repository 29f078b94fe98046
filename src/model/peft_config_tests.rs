//! PEFT's configuration files: what they mean, what is refused.

use super::*;
use crate::config::variant;

fn read(key: &str, value: serde_json::Value) -> Result<LoraConfig> {
    let mut object = serde_json::json!({"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"]});
    object[key] = value;
    let config = AdapterConfig::from_json(Path::new(CONFIG_NAME), &object.to_string())?;
    let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
    lora_config(&config, &model, Path::new("adapter"))
}

fn full(layers: std::ops::Range<usize>, path: &str) -> Vec<String> {
    layers.map(|layer| format!("model.layers.{layer}.{path}")).collect()
}

fn num_layers() -> usize {
    variant("qwen3-tiny").unwrap().model_config().unwrap().num_hidden_layers()
}

/// The paths with an adapter.
fn paths(key: &str, value: serde_json::Value) -> Vec<String> {
    let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
    let lora = read(key, value).unwrap();
    let sites = Sites::of(&model);
    let found = lora.at_sites(&model).unwrap();
    sites.iter().zip(found.iter()).filter(|(_, l)| l.is_some()).map(|(s, _)| s.path.clone()).collect()
}

#[test]
fn peft_s_own_forms_are_read_and_written_as_they_were() {
    let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
    for (key, value) in [
        ("target_modules", serde_json::json!(["mlp.down_proj", "self_attn.q_proj"])),
        ("target_modules", serde_json::json!(full(0..1, "self_attn.q_proj"))),
        ("target_modules", serde_json::json!(".*\\.(q_proj|v_proj)")),
        ("exclude_modules", serde_json::json!(["layers.0.self_attn.v_proj"])),
        ("exclude_modules", serde_json::json!(".*v_proj")),
        ("layers_to_transform", serde_json::json!([1])),
        ("rank_pattern", serde_json::json!({"layers.1.self_attn.v_proj": 2, "v_proj": 3})),
        ("alpha_pattern", serde_json::json!({"^.*v_proj": 64})),
    ] {
        let lora = read(key, value.clone()).unwrap();
        let text = to_peft_config(&lora, &Sites::of(&model), ("base", false)).to_json();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written[key], value, "{key}");
    }
    assert_eq!(read("exclude_modules", serde_json::json!(["visual"])).unwrap().exclude_modules, None);
    assert_eq!(
        paths("exclude_modules", serde_json::json!(".*v_proj")),
        full(0..num_layers(), "self_attn.q_proj")
    );
}

#[test]
fn whatever_changes_the_result_is_refused_under_its_key() {
    let layers = num_layers();
    for (key, value) in [
        ("layer_replication", serde_json::json!([[0, 2], [1, 2]])),
        ("bias", serde_json::json!("all")),
        ("bias", serde_json::json!("lora_only")),
        ("lora_bias", serde_json::json!(true)),
        ("init_lora_weights", serde_json::json!("pissa")),
        ("init_lora_weights", serde_json::json!("olora")),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("trainable_token_indices", serde_json::json!([5, 6])),
        ("fan_in_fan_out", serde_json::json!(true)),
        ("use_something_new", serde_json::json!(true)),
        ("target_modules", serde_json::json!(["lm_head", "q_proj"])),
        ("target_modules", serde_json::json!(["embed_tokens", "q_proj"])),
        ("target_modules", serde_json::json!(".*(embed_tokens|q_proj)")),
        ("target_modules", serde_json::json!(".*self_attn.*")),
        ("target_modules", serde_json::json!("(q_proj")),
        ("target_modules", serde_json::json!(".*nothing.*")),
        ("exclude_modules", serde_json::json!(".*")),
        ("exclude_modules", serde_json::json!("[")),
        ("layers_to_transform", serde_json::json!([99])),
        ("layers_pattern", serde_json::json!(["layers"])),
        ("rank_pattern", serde_json::json!({"(": 3})),
        ("target_modules", serde_json::json!(full(layers..layers + 1, "mlp.up_proj"))),
        ("target_modules", serde_json::json!(["xproj"])),
    ] {
        let error = read(key, value.clone()).expect_err(&format!("{key}: {value}")).to_string();
        assert!(error.contains(&format!("field \"{key}\"")) && error.contains("fix:"), "{value}: {error}");
    }
    assert!(read("exclude_modules", serde_json::json!([])).is_ok());
    assert!(read("alpha_pattern", serde_json::json!({})).is_ok());
}

/// Configurations, and what the rules of PEFT 0.18.1 (`check_target_module_exists` and `get_pattern_key`, run in Python) give for
/// four blocks with r 16 and alpha 32: block and first letter of the layer, then rank and scale where they are not those of r.
const RULES: &[(&str, &str)] = &[
    (r##"{"target_modules": ["q_proj", "v_proj"]}"##, "0q 0v 1q 1v 2q 2v 3q 3v"),
    (r##"{"target_modules": ["self_attn.q_proj", "mlp.down_proj"]}"##, "0q 0d 1q 1d 2q 2d 3q 3d"),
    (r##"{"target_modules": ["layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"]}"##, "0k 1u"),
    (r##"{"target_modules": ".*\\.(q|v)_proj"}"##, "0q 0v 1q 1v 2q 2v 3q 3v"),
    (
        r##"{"target_modules": "model\\.layers\\.[12]\\..*proj"}"##,
        "1q 1k 1v 1o 1g 1u 1d 2q 2k 2v 2o 2g 2u 2d",
    ),
    (r##"{"target_modules": "(?!.*\\.0\\.).*mlp\\..*_proj"}"##, "1g 1u 1d 2g 2u 2d 3g 3u 3d"),
    (r##"{"target_modules": ".*(?<=attn\\.)o_proj|.*gate_proj"}"##, "0o 0g 1o 1g 2o 2g 3o 3g"),
    (
        r##"{"target_modules": ".*_proj", "exclude_modules": ["mlp.up_proj", "layers.1.self_attn.q_proj"]}"##,
        "0q 0k 0v 0o 0g 0d 1k 1v 1o 1g 1d 2q 2k 2v 2o 2g 2d 3q 3k 3v 3o 3g 3d",
    ),
    (
        r##"{"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ".*\\.[02]\\..*"}"##,
        "1q 1k 1v 3q 3k 3v",
    ),
    (r##"{"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}"##, "1q 1d"),
    (
        r##"{"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1, "layers_pattern": ["layers"]}"##,
        "1q 1d",
    ),
    (
        r##"{"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["h", "layers"]}"##,
        "0q 0d 1q 1d",
    ),
    (
        r##"{"target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"], "layers_to_transform": [1]}"##,
        "0q 1d",
    ),
    (
        r##"{"target_modules": ["q_proj", "o_proj", "up_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 3, "q_proj": 5, "self_attn.o_proj": 7}, "alpha_pattern": {"up_proj": 4}}"##,
        "0q:5:6.4 0o:7:4.571 0u:16:0.25 1q:3:10.67 1o:7:4.571 1u:16:0.25 2q:5:6.4 2o:7:4.571 2u:16:0.25 3q:5:6.4 3o:7:4.571 3u:16:0.25",
    ),
    (
        r##"{"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 5, "layers.1.self_attn.q_proj": 3}}"##,
        "0q:5:6.4 0o 1q:5:6.4 1o 2q:5:6.4 2o 3q:5:6.4 3o",
    ),
    (
        r##"{"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"layers\\.[01]\\..*": 6, "^model.layers.2.*": 2}}"##,
        "0q:6:5.333 0o:6:5.333 1q:6:5.333 1o:6:5.333 2q:2:16 2o:2:16 3q 3o",
    ),
    (
        r##"{"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {".*\\.1\\..*_proj": 2.5}, "use_rslora": true}"##,
        "0q 0u 1q:16:0.625 1u:16:0.625 2q 2u 3q 3u",
    ),
];

#[test]
fn layers_ranks_and_scales_are_those_of_peft() {
    let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
    let sites = Sites::of(&model);
    for (text, expected) in RULES {
        let mut object: serde_json::Value = serde_json::from_str(text).unwrap();
        object["peft_type"] = "LORA".into();
        object["r"] = 16.into();
        object["lora_alpha"] = 32.into();
        let config = AdapterConfig::from_json(Path::new(CONFIG_NAME), &object.to_string()).unwrap();
        let lora = lora_config(&config, &model, Path::new("adapter")).unwrap();
        let found = lora.at_sites(&model).unwrap();
        let mut got = Vec::new();
        for (site, lora) in sites.iter().zip(found.iter()) {
            let Some(lora) = lora else { continue };
            let mut text = format!("{}{}", site.block, &site.name()[..1]);
            let usual = if object["use_rslora"] == true { 8.0 } else { 2.0 };
            if lora.r != 16 || lora.scaling != usual {
                let scaling = (lora.scaling * 1e4).round() / 1e4;
                text += &format!(":{}:{scaling}", lora.r);
            }
            got.push(text);
        }
        let rounded = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let same = rounded(expected).iter().zip(&got).all(|(expected, got)| {
            let number = |text: &str| text.rsplit(':').next().and_then(|n| n.parse::<f64>().ok());
            expected == got
                || expected.rsplit_once(':').map(|(start, _)| start)
                    == got.rsplit_once(':').map(|(start, _)| start)
                    && number(expected).zip(number(got)).is_some_and(|(a, b)| (a / b - 1.0).abs() < 1e-3)
        });
        assert!(same && rounded(expected).len() == got.len(), "{text}: {got:?}, expected {expected}");
    }
}
