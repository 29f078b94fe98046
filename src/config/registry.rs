//! The built-in model variants: shapes and presets, generated from `variants/*.toml` by the build script.

use std::path::Path;

use serde_json::Value;

use super::families::Family;
use super::model::ModelConfig;
use crate::error::{Error, Result};

/// A known model shape and its preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// The common name (`Qwen3-0.6B`).
    pub name: &'static str,
    /// Ids on the Hugging Face hub with this shape.
    pub hf_ids: &'static [&'static str],
    /// The text of its `config.json`: the keys that define the model.
    pub config_json: &'static str,
    /// Training options for a 10 GB card, as TOML text.
    pub preset: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/variants.rs"));

/// All known variants.
pub fn variants() -> &'static [Variant] {
    VARIANTS
}

/// The variant with this name or Hugging Face id; case does not matter.
pub fn variant(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| {
        variant.name.eq_ignore_ascii_case(name)
            || variant.hf_ids.iter().any(|id| id.eq_ignore_ascii_case(name))
    })
}

/// The variant whose weights have the shapes of `config`; constants may differ
/// ([`ModelConfig::has_shape_of`]).
pub fn matching_variant(config: &ModelConfig) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.model_config().is_ok_and(|known| known.has_shape_of(config)))
}

impl Variant {
    /// `model_type` of its `config.json`.
    pub fn model_type(&self) -> String {
        let keys: Value = serde_json::from_str(self.config_json).unwrap_or_default();
        keys["model_type"].as_str().unwrap_or_default().to_owned()
    }

    /// The model of this variant.
    ///
    /// # Errors
    /// An input error of class `CONFIG` if this build has no ops for its family.
    pub fn model_config(&self) -> Result<ModelConfig> {
        match Family::from_model_type(&self.model_type()) {
            Some(_) => ModelConfig::from_json(Path::new(self.name), self.config_json),
            None => Error::input("CONFIG", "models of this family are not in this build")
                .field("variant")
                .got(self.name)
                .expected(format!("a variant of one of the families {}", Family::names()))
                .fix("choose another variant; tanren inspect model lists them")
                .into(),
        }
    }

    /// The preset as options.
    ///
    /// # Errors
    /// None for the built-in variants, whose files the build script parses.
    pub fn preset(&self) -> Result<toml::Table> {
        self.preset.parse().map_err(|error: toml::de::Error| {
            Error::input("CONFIG", format!("broken preset: {}", error.message())).field(self.name).into()
        })
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
