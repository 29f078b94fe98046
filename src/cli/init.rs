//! `tanren init`: a model folder with random weights.

use std::path::Path;

use super::console::Console;
use super::options::InitArgs;
use super::table;
use super::units::{bytes, count, shell_word};
use crate::config::{variant, variants};
use crate::error::{Error, Result};
use crate::model::open::write_random;

/// Writes the folder and lists its content.
///
/// # Errors
/// An input error for an unknown variant or a folder that holds a model, or an I/O error.
pub(super) fn run(args: &InitArgs, console: &Console) -> Result<()> {
    let Some(variant) = variant(&args.variant) else { return unknown(&args.variant) };
    refuse_model(&args.output_dir)?;
    let config = write_random(variant, &args.output_dir, args.seed, args.dtype)?;
    let dir = args.output_dir.display();
    console.line(format_args!("wrote {} with random weights to {dir}", variant.name));
    let size = |name: &str| std::fs::metadata(args.output_dir.join(name)).map(|file| file.len()).ok();
    let mut rows = vec![
        ("parameters", count(config.parameter_count())),
        ("dtype", args.dtype.to_string()),
        ("seed", args.seed.to_string()),
    ];
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        if let Some(size) = size(name) {
            rows.push((name, format!("{} ({} bytes)", bytes(size), count(size))));
        }
    }
    console.lines(table::pairs(&rows));
    if size("tokenizer.json").is_none() {
        console.note("note: no tokenizer was written, because its vocabulary is not built in; copy the one of the model");
    }
    let model = shell_word(&dir.to_string());
    console.line(format_args!("look at it: tanren inspect model {model}"));
    Ok(())
}

fn unknown<T>(name: &str) -> Result<T> {
    let near = variants()
        .iter()
        .map(|known| (strsim::jaro_winkler(&known.name.to_lowercase(), &name.to_lowercase()), known.name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let error = Error::input("CONFIG", "unknown variant").field("variant").got(name);
    match near {
        Some((_, near)) => error.fix(format!("did you mean {near}? tanren inspect model lists all")).into(),
        None => error.fix("choose one that tanren inspect model lists").into(),
    }
}

/// Refuses a folder with a model in it: existing weights are never replaced by random ones.
fn refuse_model(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    let of_a_model = |name: &&String| {
        ["config.json", "tokenizer.json"].contains(&name.as_str()) || name.ends_with(".safetensors")
    };
    match names.iter().find(of_a_model) {
        None => Ok(()),
        Some(name) => Error::input("CONFIG", "the folder holds a model")
            .path(dir)
            .field("output_dir")
            .got(name)
            .expected("a new or empty folder")
            .fix("name another folder, or remove this one first")
            .into(),
    }
}
