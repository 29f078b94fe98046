//! Configurations of models and adapters, and the state of a training: what is accepted is written and read again.

use tanren::config::{LoraConfig, ModelConfig, Sites, TargetModules as Modules, variant};
use tanren::formats::adapter::{AdapterConfig, TargetModules};
use tanren::train::TrainerState;

use super::name;

/// No product of sizes overflows, and what is written reads back.
pub(super) fn model_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(config) = ModelConfig::from_json(name(), text) else { return };
    let mut of_blocks = 0_u128;
    for site in Sites::of(&config).iter() {
        let [outputs, inputs] = site.shape;
        assert!(inputs > 0 && outputs > 0, "{}", site.path);
        of_blocks += inputs as u128 * outputs as u128;
    }
    assert_eq!(u128::from(config.linear_weights()), of_blocks);
    assert!(u128::from(config.parameter_count()) >= of_blocks);
    assert!(config.blocks.iter().all(|block| block.attn.q_size() % block.attn.kv_size() == 0));
    let again = ModelConfig::from_json(name(), &config.to_json());
    assert_eq!(again.unwrap(), config, "{}", config.to_json());
}

/// What is written reads back, but for the order of lists that have none and the keys that are not known.
pub(super) fn adapter_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(mut config) = AdapterConfig::from_json(name(), text) else { return };
    let again = AdapterConfig::from_json(name(), &config.to_json()).unwrap();
    assert_eq!(again.to_json(), config.to_json());
    let sorted = |names: &mut Vec<String>| {
        names.sort();
        names.dedup();
    };
    for targets in [Some(&mut config.target_modules), config.exclude_modules.as_mut()].into_iter().flatten() {
        if let TargetModules::List(names) = targets {
            sorted(names);
        }
    }
    config.modules_to_save.iter_mut().for_each(sorted);
    config.unknown_keys.clear();
    assert_eq!(again, config);

    // Which layers of a small model it names, or why none.
    let modules = |modules: &TargetModules| match modules {
        TargetModules::List(names) => Modules::List(names.clone()),
        TargetModules::Name(text) => Modules::Pattern(text.clone()),
        TargetModules::ModelDefault => Modules::AllLinear,
    };
    let lora = LoraConfig {
        target_modules: modules(&config.target_modules),
        exclude_modules: config.exclude_modules.as_ref().map(modules),
        layers_to_transform: config.layers_to_transform.clone(),
        layers_pattern: config.layers_pattern.clone().unwrap_or_default(),
        rank_pattern: config.rank_pattern.clone(),
        alpha_pattern: config.alpha_pattern.clone(),
        ..LoraConfig::default()
    };
    let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
    if let Ok(found) = lora.at_sites(&model) {
        assert!(found.iter().flatten().count() > 0);
        assert!(found.iter().flatten().all(|lora| lora.r > 0 && lora.scaling.is_finite()));
    }
}

/// What is written reads back.
pub(super) fn trainer_state(input: &[u8]) {
    let Ok(state) = TrainerState::from_json(name(), input) else { return };
    let text = serde_json::to_vec(&state).unwrap();
    assert_eq!(TrainerState::from_json(name(), &text).unwrap(), state);
}
