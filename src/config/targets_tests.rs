//! The layers selected by options, and refused options. Agreement with PEFT is tested where its files are
//! read.

use super::*;
use crate::config::{TrainConfig, variant};

fn model() -> ModelConfig {
    variant("qwen3-tiny").unwrap().model_config().unwrap()
}

/// The paths that the options of a command line name.
fn paths(options: &[(&str, &str)]) -> Result<Vec<String>> {
    let given = [("model", "qwen3-tiny"), ("train_file", "a.jsonl"), ("output_dir", "o")];
    let config = TrainConfig::from_pairs(given.iter().chain(options).copied())?;
    let found = config.lora().at_sites(&model())?;
    let sites = Sites::of(&model());
    Ok(sites.iter().zip(found.iter()).filter(|(_, l)| l.is_some()).map(|(s, _)| s.path.clone()).collect())
}

#[test]
fn options_name_layers_as_peft_does() {
    let of = |blocks: &[usize], ends: &[&str]| -> Vec<String> {
        blocks.iter().flat_map(|b| ends.iter().map(move |end| format!("model.layers.{b}.{end}"))).collect()
    };
    let (all, q, up) = (&[0, 1, 2, 3][..], "self_attn.q_proj", "mlp.up_proj");
    for (options, expected) in [
        (&[("target_modules", "up_proj,self_attn.q_proj")][..], of(all, &[q, up])),
        (&[("target_modules", r".*layers\.[13]\..*q_proj")], of(&[1, 3], &[q])),
        (&[("lora_target", "q_proj"), ("layers_to_transform", "0,3")], of(&[0, 3], &[q])),
        (
            &[("target_modules", "all-linear"), ("exclude_modules", ".*(self_attn|gate|down).*")],
            of(all, &[up]),
        ),
        (&[("exclude_modules", "k_proj v_proj o_proj mlp.gate_proj up_proj down_proj")], of(all, &[q])),
        (&[("layers_to_transform", "2"), ("target_modules", "up_proj")], of(&[2], &[up])),
    ] {
        assert_eq!(paths(options).unwrap(), expected, "{options:?}");
    }
}

#[test]
fn ranks_and_alphas_of_single_layers() {
    let given = [
        ("model", "qwen3-tiny"),
        ("train_file", "a.jsonl"),
        ("output_dir", "o"),
        ("target_modules", "q_proj,up_proj"),
        ("lora_r", "8"),
        ("lora_alpha", "16"),
        ("rank_pattern", "layers.0.self_attn.q_proj=2,q_proj=4"),
        ("alpha_pattern", "up_proj=4"),
    ];
    let config = TrainConfig::from_pairs(given).unwrap();
    let found = config.lora().at_sites(&model()).unwrap();
    let numbers: Vec<_> = found.iter().flatten().take(4).map(|lora| (lora.r, lora.scaling)).collect();
    assert_eq!(numbers, [(2, 8.0), (8, 0.5), (4, 4.0), (8, 0.5)]);
    let text = config.lora().describe_layers();
    assert_eq!(text, "q_proj,up_proj, r layers.0.self_attn.q_proj=2,q_proj=4, alpha up_proj=4");
    // The settings of a run are written and read again.
    assert!(config.to_toml().contains("rank_pattern = [\"layers.0.self_attn.q_proj=2\", \"q_proj=4\"]"));
}

#[test]
fn what_names_nothing_or_too_much_is_refused_by_its_option() {
    for (options, field, words) in [
        (&[("target_modules", "c_attn")][..], "target_modules", "qwen3 models have no such layer"),
        (&[("target_modules", "layers.9.mlp.up_proj")], "target_modules", "no such layer"),
        (&[("target_modules", "q_proj,lm_head")], "target_modules", "not supported"),
        (&[("target_modules", ".*embed_tokens|.*q_proj")], "target_modules", "model.embed_tokens"),
        (&[("target_modules", ".*nothing")], "target_modules", "no layer is left"),
        (&[("target_modules", ".*(q_proj")], "target_modules", "invalid expression"),
        (&[("exclude_modules", ".*")], "exclude_modules", "no layer is left"),
        (&[("exclude_modules", "all-linear")], "exclude_modules", "excludes every layer"),
        (&[("exclude_modules", "layers.7.mlp.up_proj")], "exclude_modules", "no such layer"),
        (&[("layers_to_transform", "4")], "layers_to_transform", "expected 0 to 3"),
        (&[("layers_to_transform", "x")], "layers_to_transform", "not a block number"),
        (
            &[("layers_to_transform", "1"), ("target_modules", ".*q_proj")],
            "layers_to_transform",
            "whole paths",
        ),
        (&[("layers_to_transform", "1"), ("layers_pattern", "(layers)")], "layers_pattern", "no groups"),
        (&[("layers_to_transform", "1"), ("layers_pattern", "h")], "layers_to_transform", "no layer is left"),
        (&[("layers_pattern", "layers")], "layers_pattern", "layers_to_transform"),
        (&[("rank_pattern", "c_attn=3")], "rank_pattern", "no layer of the adapter"),
        (&[("rank_pattern", "q_proj=4097")], "rank_pattern", "1 to 4096"),
        (&[("alpha_pattern", "q_proj=0")], "alpha_pattern", "above 0"),
        (&[("rank_pattern", "q_proj=4,layers.0.self_attn.q_proj=3")], "rank_pattern", "layers.0.self_attn"),
    ] {
        let error = paths(options).unwrap_err().to_string();
        assert!(
            error.contains(&format!("field \"{field}\"")) && error.contains(words),
            "{options:?}: {error}"
        );
    }
}

#[test]
fn expressions_that_never_end_are_given_up() {
    let lora = |text: &str| LoraConfig {
        target_modules: TargetModules::Pattern(text.to_owned()),
        ..LoraConfig::default()
    };
    let many = "(".repeat(5000) + &")".repeat(5000);
    for text in [r"(?=(.*.*)*\z)(.*.*.*.*.*.*)*x".to_owned(), many, ".".repeat(20_000)] {
        let start = std::time::Instant::now();
        assert!(lora(&text).at_sites(&model()).is_err());
        assert!(start.elapsed().as_secs() < 20, "{} took {:?}", &text[..20], start.elapsed());
    }
    let patterns = (0..20_000).map(|i| (format!("x{i}"), 3)).collect();
    let error =
        LoraConfig { rank_pattern: patterns, ..LoraConfig::default() }.at_sites(&model()).unwrap_err();
    assert!(error.to_string().contains("too many patterns"), "{error}");
    // As many steps as are allowed, for every path of the largest model.
    let large = model().with_num_hidden_layers(1024);
    let start = std::time::Instant::now();
    let _ = lora(r"(?=.*.*.*zz|)(?:.*_proj)").at_sites(&large);
    assert!(start.elapsed().as_secs() < 60, "took {:?}", start.elapsed());
}
