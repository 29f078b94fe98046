//! Turns `src/config/variants/*.toml` into constants and a registry, `$OUT_DIR/variants.rs`.
//!
//! The library uses the same parser, so a variant that builds also loads.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;

// The shared file is public where the library includes it.
#[allow(unreachable_pub)]
#[path = "../src/config/variant.rs"]
mod variant;

/// Writes `variants.rs`.
pub(crate) fn generate(out: &Path) -> Result<(), Failure> {
    let folder = Path::new("src/config/variants");
    println!("cargo::rerun-if-changed=src/config/variant.rs");
    println!("cargo::rerun-if-changed={}", folder.display());
    fs::write(out.join("variants.rs"), text(folder)?)?;
    Ok(())
}

/// The text of `variants.rs`, variants in the order of their file names.
fn text(folder: &Path) -> Result<String, Failure> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut text = String::from("// Written by build.rs from src/config/variants/*.toml.\n");
    let mut names: Vec<String> = Vec::new();
    for path in &paths {
        let place = |what: String| format!("{}: {what}", path.display());
        let source = fs::read_to_string(path).map_err(|error| place(error.to_string()))?;
        let file = variant::parse(&source).map_err(place)?;
        let name = variant::const_name(&file.name);
        if names.contains(&name) {
            return Err(place(format!("a variant named {} exists already", file.name)).into());
        }
        constant(&mut text, &name, &file)?;
        names.push(name);
    }
    let list = names.join(", ");
    writeln!(text, "\n/// All variants, in the order of their file names.")?;
    writeln!(text, "pub(super) static VARIANTS: &[Variant] = &[{list}];")?;
    Ok(text)
}

/// Appends the constant of one variant.
fn constant(text: &mut String, name: &str, file: &variant::VariantFile) -> Result<(), Failure> {
    let config_json = serde_json::to_string_pretty(&file.config)?;
    let preset = toml::to_string(&file.preset)?;
    writeln!(text, "\n/// {} and its preset.", file.name)?;
    writeln!(text, "pub const {name}: Variant = Variant {{")?;
    writeln!(text, "    name: {:?},\n    hf_ids: &{:?},", file.name, file.hf_ids)?;
    writeln!(text, "    config_json: {config_json:?},\n    preset: {preset:?},\n}};")?;
    Ok(())
}
