//! What the `adapter_config.json` of PEFT means here and the other way round, and what of it is refused.
//!
//! Which layers it names is decided by PEFT's own rules ([`LoraConfig::at_sites`]). Whatever would be computed in another way is
//! refused under its own key.

use std::path::Path;

use crate::config::head::HeadSpec;
use crate::config::{LoraConfig, ModelConfig, Sites, TargetModules};
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
    if config.bias != "none" {
        return refuse("bias", config.bias.clone(), "none");
    }
    // Of models with Conv1D layers either value is the same adapter: it says how the weight is stored.
    if config.fan_in_fan_out && !model.family.modules().is_conv1d {
        return refuse("fan_in_fan_out", "true".into(), "false for this model");
    }
    // PEFT itself adds these two to every adapter of a classifier; they are trained in full.
    let is_head = |name: &String| matches!(model.head, HeadSpec::Labels(_)) && HEADS.contains(&name.as_str());
    if let Some(saved) = config.modules_to_save.as_ref().filter(|names| !names.iter().all(is_head)) {
        return match model.head {
            HeadSpec::Tokens => refuse("modules_to_save", saved.join(", "), "null for a language model"),
            HeadSpec::Labels(_) => refuse("modules_to_save", saved.join(", "), "classifier, score"),
        };
    }
    let lora = LoraConfig {
        r: config.r,
        alpha: config.lora_alpha,
        dropout: config.lora_dropout,
        target_modules: modules(&config.target_modules, model),
        // No module is called so.
        exclude_modules: config
            .exclude_modules
            .as_ref()
            .map(|excluded| modules(excluded, model))
            .filter(|m| *m != TargetModules::AllLinear),
        layers_to_transform: config.layers_to_transform.clone(),
        layers_pattern: config.layers_pattern.clone().unwrap_or_default(),
        rank_pattern: config.rank_pattern.clone(),
        alpha_pattern: config.alpha_pattern.clone(),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
    };
    let placed = |error: crate::error::InputError| Error::from(error.path(path.join(CONFIG_NAME)));
    let lora = lora.without_unused(model).map_err(placed)?;
    lora.validate()?;
    Ok(lora)
}

/// The modules that PEFT's option says.
fn modules(modules: &PeftModules, model: &ModelConfig) -> TargetModules {
    match modules {
        PeftModules::List(names) => TargetModules::List(names.clone()),
        PeftModules::Name(name) if name == "all-linear" => TargetModules::AllLinear,
        PeftModules::Name(text) if TargetModules::is_expression(text) => TargetModules::Pattern(text.clone()),
        // A text is an expression for PEFT, and one without special characters is a path. The end of one, which PEFT does not
        // find, means what it means in a list.
        PeftModules::Name(path) => TargetModules::List(vec![path.clone()]),
        PeftModules::ModelDefault => {
            let names = model.family.modules().default_targets.iter();
            TargetModules::List(names.map(|&name| name.to_owned()).collect())
        }
    }
}

/// Names that PEFT saves in full for every classifier, whether they exist or not.
const HEADS: [&str; 2] = ["classifier", "score"];

/// The configuration file of an adapter, which may have a head for labels.
pub(super) fn to_peft_config(
    lora: &LoraConfig,
    sites: &Sites,
    (base_model, has_head): (&str, bool),
) -> AdapterConfig {
    let modules = |modules: &TargetModules| match modules {
        TargetModules::AllLinear => PeftModules::List(sites.names().into_iter().map(str::to_owned).collect()),
        TargetModules::List(names) => PeftModules::List(names.clone()),
        TargetModules::Pattern(text) => PeftModules::Name(text.clone()),
    };
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    AdapterConfig {
        r: lora.r,
        lora_alpha: lora.alpha,
        lora_dropout: lora.dropout,
        target_modules: modules(&lora.target_modules),
        exclude_modules: lora.exclude_modules.as_ref().map(modules),
        layers_to_transform: lora.layers_to_transform.clone().filter(|layers| !layers.is_empty()),
        layers_pattern: some(&lora.layers_pattern),
        rank_pattern: lora.rank_pattern.clone(),
        alpha_pattern: lora.alpha_pattern.clone(),
        use_rslora: lora.use_rslora,
        use_dora: lora.use_dora,
        base_model_name_or_path: Some(base_model.to_owned()),
        task_type: Some(if has_head { "SEQ_CLS" } else { "CAUSAL_LM" }.to_owned()),
        modules_to_save: has_head.then(|| HEADS.map(str::to_owned).into()),
        fan_in_fan_out: sites.iter().any(|site| site.is_conv1d),
        ..AdapterConfig::default()
    }
}

#[cfg(test)]
#[path = "peft_config_tests.rs"]
mod tests;
