//! What the `adapter_config.json` of PEFT means for a model here, and what of it is refused.
//!
//! PEFT names layers by the end of their full name, so `q_proj`, `self_attn.q_proj` and a list of all
//! `model.layers.N.self_attn.q_proj` are the same adapter. Whatever would be computed in another way is refused under its own key.

use std::path::Path;

use super::weights::Module;
use crate::config::{LoraConfig, ModelConfig, TargetModules};
use crate::error::{Error, Result};
use crate::formats::adapter::{AdapterConfig, CONFIG_NAME, TargetModules as PeftModules};

/// The adapter that `config` asks for; `path` is its folder.
///
/// # Errors
/// [`Error::Input`] that names the key.
pub(super) fn lora_config(config: &AdapterConfig, model: &ModelConfig, path: &Path) -> Result<LoraConfig> {
    let refuse = |field: &str, got: String, expected: &str| -> Result<LoraConfig> {
        Error::input("ADAPTER", "not supported")
            .path(path.join(CONFIG_NAME))
            .field(field)
            .got(got)
            .expected(expected)
            .fix("use an adapter without it")
            .into()
    };
    if !config.rank_pattern.is_empty() {
        return refuse("rank_pattern", keys(config.rank_pattern.keys()), "one rank for all layers");
    }
    if !config.alpha_pattern.is_empty() {
        return refuse("alpha_pattern", keys(config.alpha_pattern.keys()), "one alpha for all layers");
    }
    if config.bias != "none" {
        return refuse("bias", config.bias.clone(), "none");
    }
    if let Some(layers) = &config.layers_to_transform {
        return refuse("layers_to_transform", format!("{layers:?}"), "null: every block");
    }
    match &config.exclude_modules {
        None => {}
        Some(PeftModules::List(names)) if names.is_empty() => {}
        Some(excluded) => {
            return refuse("exclude_modules", format!("{excluded:?}"), "null: every target module");
        }
    }
    if config.fan_in_fan_out {
        return refuse("fan_in_fan_out", "true".into(), "false for this model");
    }
    if let Some(saved) = config.modules_to_save.as_ref().filter(|m| !m.is_empty()) {
        return refuse("modules_to_save", saved.join(", "), "null for a language model");
    }
    let all = crate::config::LINEAR_MODULES;
    let target_modules = match &config.target_modules {
        PeftModules::List(names) => TargetModules::List(modules(names, model, path)?),
        PeftModules::Name(name) if name == "all-linear" => TargetModules::AllLinear,
        // A string is a regular expression for PEFT; plain names are all we take.
        PeftModules::Name(name) if all.contains(&name.as_str()) => TargetModules::List(vec![name.clone()]),
        // PEFT's default for Qwen and Llama.
        PeftModules::ModelDefault => TargetModules::List(vec!["q_proj".into(), "v_proj".into()]),
        PeftModules::Name(name) => {
            return refuse("target_modules", name.clone(), "a list of layer names or all-linear");
        }
    };
    let lora = LoraConfig {
        r: config.r,
        alpha: config.lora_alpha,
        dropout: config.lora_dropout,
        target_modules,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
    };
    lora.validate()?;
    lora.modules_of(model)?;
    Ok(lora)
}

/// The layers of a block that `names` mean. A name that means none is given back, for the usual message about unknown layers.
fn modules(names: &[String], model: &ModelConfig, path: &Path) -> Result<Vec<String>> {
    let num_layers = model.num_hidden_layers;
    let mut covered = Module::ALL.map(|_| vec![false; num_layers]);
    let mut unknown = Vec::new();
    for name in names {
        let mut matches = false;
        for (layer, module) in (0..num_layers).flat_map(|layer| Module::ALL.map(|module| (layer, module))) {
            // Most names are the last part alone.
            let is_match = name == module.name() || {
                let full = format!("model.layers.{layer}.{}", module.path());
                full.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            if is_match {
                covered[module as usize][layer] = true;
                matches = true;
            }
        }
        if !matches {
            unknown.push(name.clone());
        }
    }
    let mut found = Vec::new();
    for module in Module::ALL {
        match covered[module as usize].iter().filter(|covered| **covered).count() {
            0 => {}
            count if count == num_layers => found.push(module.name().to_owned()),
            count => {
                return Error::input("ADAPTER", "adapters on some blocks only are not supported")
                    .path(path.join(CONFIG_NAME))
                    .field("target_modules")
                    .got(format!("{} in {count} of {num_layers} blocks", module.name()))
                    .expected("each layer in every block or in none")
                    .fix("use an adapter for the layers of all blocks")
                    .into();
            }
        }
    }
    found.extend(unknown);
    Ok(found)
}

fn keys<'k>(keys: impl Iterator<Item = &'k String>) -> String {
    keys.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
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
        variant("qwen3-tiny").unwrap().model_config().unwrap().num_hidden_layers
    }

    #[test]
    fn names_are_taken_by_their_ends() {
        let modules = |names: serde_json::Value| match read("target_modules", names).unwrap().target_modules {
            TargetModules::List(names) => names.join(","),
            TargetModules::AllLinear => "all-linear".to_owned(),
        };
        assert_eq!(modules(serde_json::json!(["mlp.down_proj", "self_attn.q_proj"])), "q_proj,down_proj");
        let both = [full(0..num_layers(), "self_attn.q_proj"), full(0..num_layers(), "mlp.up_proj")].concat();
        assert_eq!(modules(serde_json::json!(both)), "q_proj,up_proj");
        assert_eq!(modules(serde_json::json!(["v_proj", "self_attn.v_proj"])), "v_proj");
        assert_eq!(modules(serde_json::json!("all-linear")), "all-linear");
    }

    #[test]
    fn some_blocks_only_is_the_reason_given() {
        let error = read("target_modules", serde_json::json!(full(0..1, "self_attn.q_proj"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("some blocks only") && text.contains("q_proj in 1 of"), "{text}");
        assert!(text.contains("field \"target_modules\""), "{text}");
    }

    #[test]
    fn whatever_changes_the_result_is_refused_under_its_key() {
        let layers = num_layers();
        for (key, value) in [
            ("alpha_pattern", serde_json::json!({"v_proj": 64})),
            ("alpha_pattern", serde_json::json!({"^v_proj": 64})),
            ("rank_pattern", serde_json::json!({"v_proj": 2})),
            ("exclude_modules", serde_json::json!(["layers.0.self_attn.v_proj"])),
            ("exclude_modules", serde_json::json!(".*v_proj")),
            ("layers_to_transform", serde_json::json!([1])),
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
            ("target_modules", serde_json::json!(".*\\.(q_proj|v_proj)")),
            ("target_modules", serde_json::json!(full(layers..layers + 1, "mlp.up_proj"))),
            ("target_modules", serde_json::json!(["xproj"])),
        ] {
            let error = read(key, value.clone()).expect_err(&format!("{key}: {value}")).to_string();
            assert!(
                error.contains(&format!("field \"{key}\"")) && error.contains("fix:"),
                "{value}: {error}"
            );
        }
        assert!(read("exclude_modules", serde_json::json!([])).is_ok());
        assert!(read("alpha_pattern", serde_json::json!({})).is_ok());
    }
}
