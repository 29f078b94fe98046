//! `tanren inspect model`: shapes, parameters, layers, files; or all built-in variants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::cli::console::{Console, Progress};
use crate::cli::inspect::open_model;
use crate::cli::table;
use crate::cli::units::{bytes, count};
use crate::config::block::{BlockSpec, NormKind, RopeScaling};
use crate::config::head::{HeadSpec, Pool};
use crate::config::{ModelConfig, Sites, Variant, matching_variant, variants};
use crate::device::Device;
use crate::error::Result;
use crate::formats::hub;
use crate::formats::model_folder::{ModelFolder, tokenizer_files};
use crate::model::label_head::trained_layers;
use crate::model::open::OpenModel;
use crate::model::{Weights, load};

/// Lists the built-in variants.
pub(super) fn list(console: &Console) {
    let row = |v: &Variant| {
        let mut row = vec![v.name.to_owned(), v.model_type()];
        match v.model_config() {
            Ok(c) => row.extend([
                count(c.parameter_count()),
                c.num_hidden_layers().to_string(),
                c.hidden_size.to_string(),
                c.blocks.first().map_or_else(String::new, |BlockSpec { attn, .. }| {
                    format!("{}/{} x {}", attn.heads, attn.kv_heads, attn.head_dim)
                }),
                c.blocks.first().map_or_else(String::new, |block| block.mlp.size.to_string()),
                count(c.vocab_size as u64),
                count(c.max_position_embeddings as u64),
            ]),
            Err(_) => row.push("not in this build".to_owned()),
        }
        row
    };
    let rows: Vec<_> = variants().iter().map(row).collect();
    let heads = [
        "variant",
        "family",
        ">parameters",
        ">layers",
        ">hidden",
        ">heads q/kv",
        ">MLP",
        ">vocabulary",
        ">positions",
    ];
    console.lines(table::columns(&heads, &rows));
}

/// Shows the model `name`; hashes its files if `verify` says so.
///
/// # Errors
/// If it cannot be opened, or a file is damaged.
pub(super) fn show(name: &str, verify: bool, console: &Console) -> Result<()> {
    let OpenModel { folder, config } = open_model(name, console)?;
    if verify {
        check(&folder, console)?;
    }
    console.line(folder.dir().display());
    console.lines(table::pairs(&shape(&config)));
    console.heading("linear layers of every block (names for --target-modules)");
    console.lines(linear(&config));
    console.heading("files");
    console.lines(table::pairs(&files(&folder)?));
    let (missing, unused) = compare(&config, &folder)?;
    for (what, names) in [("MISSING tensors", missing), ("tensors that are not used", unused)] {
        if !names.is_empty() {
            console.line(format_args!("  {what}: {}", names.join(", ")));
        }
    }
    match matching_variant(&config) {
        None => console.heading("no built-in variant has this shape, so there is no preset"),
        Some(variant) => {
            console.heading(format_args!("shape of {}; its preset for a 10 GB card", variant.name));
            console.lines(variant.preset.trim().lines().map(|line| format!("  {line}")));
        }
    }
    Ok(())
}

/// Hashes the files of a model in the Hugging Face cache.
fn check(folder: &ModelFolder, console: &Console) -> Result<()> {
    let tell = |progress: hub::Progress<'_>| {
        if let hub::Progress::File { name, done, total } = progress {
            let [done, total] = [done, total].map(|bytes| bytes.div_ceil(1 << 20));
            console.progress(Progress { what: "hashing", done, total, detail: name });
        }
    };
    let checked = hub::verify(folder.dir(), &hub::Watch { tell: &tell, stop: &|| false });
    console.clear();
    match checked? {
        0 => console
            .note("note: nothing verified: only files of the Hugging Face cache are named by their hashes"),
        num_files => console.note(format_args!("note: {num_files} files match their hashes")),
    }
    Ok(())
}

fn shape(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut rows = vec![
        ("family", config.family.to_string()),
        ("parameters", count(config.parameter_count())),
        ("layers", config.num_hidden_layers().to_string()),
        ("hidden size", config.hidden_size.to_string()),
    ];
    if let Some(BlockSpec { norm, attn, mlp, .. }) = config.blocks.first() {
        rows.extend([
            ("MLP size", mlp.size.to_string()),
            (
                "attention",
                format!(
                    "{} heads, {} for keys and values, {} wide",
                    attn.heads, attn.kv_heads, attn.head_dim
                ),
            ),
            ("q, k, v bias", yes_no(attn.qkv_bias)),
            ("q, k norm", yes_no(attn.qk_norm)),
        ]);
        if let Some(rope) = &attn.rope {
            rows.push(("rope_theta", rope.theta.to_string()));
            if rope.scaling != RopeScaling::Default {
                rows.push(("rope scaling", format!("{:?}", rope.scaling)));
            }
        }
        let name = if norm.kind == NormKind::Rms { "rms_norm_eps" } else { "layer_norm_eps" };
        rows.push((name, format!("{:e}", norm.eps)));
    }
    rows.extend([
        ("vocabulary", count(config.vocab_size as u64)),
        head(config, yes_no),
        ("positions", count(config.max_sequence_length() as u64)),
    ]);
    rows
}

/// What the final states become.
fn head(config: &ModelConfig, yes_no: impl Fn(bool) -> String) -> (&'static str, String) {
    match config.head {
        HeadSpec::Tokens => ("tied head", yes_no(config.tie_word_embeddings)),
        HeadSpec::Labels(head) => {
            let pool = match head.pool {
                Pool::Last => "the last token",
                Pool::First => "the first token",
                Pool::Mean => "the mean of all tokens",
            };
            ("head", format!("{} labels from {pool}", head.num_labels))
        }
    }
}

fn linear(config: &ModelConfig) -> Vec<String> {
    let sites = Sites::of(config);
    let row = |number: usize| {
        let site = &sites[number];
        let [outputs, inputs] = site.shape;
        let parameters = count(inputs as u64 * outputs as u64);
        vec![site.name().to_owned(), inputs.to_string(), outputs.to_string(), parameters]
    };
    let rows: Vec<_> = sites.of_block(0).map(row).collect();
    table::columns(&["name", ">in", ">out", ">parameters"], &rows)
}

/// Weight files, types of numbers, tokenizer files.
fn files(folder: &ModelFolder) -> Result<Vec<(&'static str, String)>> {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    let mut types: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for view in folder.tensor_names().into_iter().filter_map(|name| folder.tensor(name)) {
        paths.insert(view.path().to_owned());
        let (tensors, size) = types.entry(view.dtype().to_string()).or_default();
        *tensors += 1;
        *size += view.num_bytes();
    }
    let mut rows = Vec::new();
    for path in &paths {
        let size = std::fs::metadata(path).map_or_else(|_| "?".to_owned(), |file| bytes(file.len()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        rows.push(("weights", format!("{name} ({size})")));
    }
    for (dtype, (tensors, size)) in types {
        rows.push(("tensors", format!("{} of {dtype} ({})", count(tensors), bytes(size))));
    }
    let texts = tokenizer_files(folder.dir())?;
    let named = [
        texts.tokenizer_json,
        texts.tokenizer_config_json,
        texts.special_tokens_map_json,
        texts.added_tokens_json,
        texts.chat_template_jinja,
        texts.chat_template_json,
    ];
    let named: Vec<String> = named
        .iter()
        .flatten()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    rows.push(("tokenizer", if named.is_empty() { "none".to_owned() } else { named.join(", ") }));
    Ok(rows)
}

/// Tensors that the model needs and the files lack, and the other way round. Reads no numbers.
fn compare(config: &ModelConfig, folder: &ModelFolder) -> Result<(Vec<String>, Vec<String>)> {
    let device = Device::dry();
    let (mut missing, mut used) = (Vec::new(), BTreeSet::new());
    Weights::<f32>::build(config, |name, [rows, cols], _| {
        match load::find(config, folder, name) {
            Some((found, _)) => drop(used.insert(found.to_owned())),
            None => missing.push(name.to_owned()),
        }
        device.empty(rows, cols)
    })?;
    for (path, _, _) in trained_layers(config) {
        used.extend([format!("{path}.weight"), format!("{path}.bias")]);
    }
    let there = folder.tensor_names().into_iter();
    let unused = there.filter(|name| !used.contains(*name) && !load::is_buffer(config, name));
    Ok((missing, unused.map(str::to_owned).collect()))
}
