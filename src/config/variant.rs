//! The parser of the variant files in `variants/`: a `config.json` as TOML, and a preset for a 10 GB card.
//!
//! The build script includes this file by path and turns every variant into a constant, so it imports nothing of the crate
//! and reports errors as plain text. The keys of `config.json` are those of the family; the parser of model folders reads them.

use serde::Deserialize;

/// One variant file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantFile {
    /// The common name (`Qwen3-0.6B`).
    pub name: String,
    /// Ids on the Hugging Face hub with this shape.
    pub hf_ids: Vec<String>,
    /// Keys and values of its `config.json`.
    pub config: toml::Table,
    /// Training options for a 10 GB card: keys of [`PRESET_KEYS`].
    pub preset: toml::Table,
}

/// Options a preset may set. Each either has a default or excludes a sibling, so that the resolved configuration, written
/// out and read again, hides the preset completely.
pub const PRESET_KEYS: [&str; 10] = [
    "batch_size",
    "tokens_per_batch",
    "gradient_accumulation_steps",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "target_modules",
    "learning_rate",
    "quant",
    "double_quant",
];

/// Reads and checks one variant file.
///
/// # Errors
/// A text that names the key and the broken rule.
pub fn parse(text: &str) -> Result<VariantFile, String> {
    let file: VariantFile = toml::from_str(text).map_err(|error| error.to_string())?;
    check(&file)?;
    Ok(file)
}

/// The name of the constant of a variant: `Qwen3-0.6B` becomes `QWEN3_0_6B`.
pub fn const_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The rules that a type cannot express.
fn check(file: &VariantFile) -> Result<(), String> {
    if !file.name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!("name \"{}\" must start with a letter", file.name));
    }
    if !file.config.get("model_type").is_some_and(toml::Value::is_str) {
        return Err("config.model_type must name the family".to_owned());
    }
    for key in file.preset.keys() {
        if !PRESET_KEYS.contains(&key.as_str()) {
            return Err(format!("preset.{key} is none of {}", PRESET_KEYS.join(", ")));
        }
    }
    if file.preset.contains_key("batch_size") == file.preset.contains_key("tokens_per_batch") {
        return Err("preset needs exactly one of batch_size and tokens_per_batch".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("variants/qwen3-tiny.toml");

    #[test]
    fn a_good_file_passes() {
        let file = parse(GOOD).unwrap();
        assert_eq!(file.config["hidden_size"].as_integer(), Some(256));
        assert_eq!(const_name("Qwen3-0.6B"), "QWEN3_0_6B");
    }

    #[test]
    fn every_broken_rule_is_named() {
        for (from, to, message) in [
            ("hf_ids", "hf_idds", "hf_idds"),
            ("[config]", "[konfig]", "konfig"),
            ("model_type = \"qwen3\"\n", "", "config.model_type must name the family"),
            ("lora_r = 8", "lora_rr = 8", "preset.lora_rr"),
            ("batch_size = 8", "batch_size = 8\ntokens_per_batch = 8", "exactly one"),
            ("name = \"qwen3-tiny\"", "name = \"3-tiny\"", "must start with a letter"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} is in the file");
            let error = parse(&text).unwrap_err();
            assert!(error.contains(message), "{message}: {error}");
        }
    }
}
