//! Tests of the options of scoring.

use toml::Table;

use super::*;
use crate::config::keys::keys_of;

fn resolve(text: &str) -> Result<ScoreConfig> {
    let base = "model = \"m\"\ndata_file = \"d.jsonl\"\noutput = \"o.jsonl\"\n";
    let mut table: Table = base.parse().unwrap();
    table.extend(text.parse::<Table>().unwrap());
    ScoreConfig::resolve(Options::from_table(table), None)
}

#[test]
fn lists_may_be_texts_with_commas() {
    let config = resolve("choices = \"a, b,c\"\nby = [\"mode\", \"law\"]\nmode = \"choice\"").unwrap();
    assert_eq!(config.choices.unwrap(), ["a", "b", "c"]);
    assert_eq!(config.by, ["mode", "law"]);
    assert_eq!(resolve("").unwrap().choices, None);
}

#[test]
fn bad_options_are_refused_by_name() {
    for (text, part) in [
        ("choices = \"a\"", "2 to 26 answers"),
        ("choices = \"a,b,a\"", "given twice"),
        ("choices = \"a,,b\"", "empty"),
        ("limit = 0", "field \"limit\""),
        ("data_file = []", "--data-file"),
        ("output = \"\"", "--output"),
        ("batch_size = 1\ntokens_per_batch = 1", "exclude each other"),
        ("choises = \"a,b\"", "did you mean choices?"),
        ("mode = \"chioce\"", "did you mean \"choice\"?"),
    ] {
        let error = resolve(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn other_modes_are_known_but_not_supported_yet() {
    let error = resolve("mode = \"generate\"").unwrap().check_supported().unwrap_err().to_string();
    assert!(error.contains("expected auto or logprob or choice or classify or regress"), "{error}");
    assert!(resolve("tokens_per_batch = 64").unwrap().check_supported().is_ok());
}

#[test]
fn aliases_point_to_options() {
    let keys = keys_of::<ScoreConfig>();
    for (key, names) in ScoreConfig::ALIASES {
        assert!(keys.contains(key), "{key}");
        assert!(names.iter().all(|name| !keys.contains(&name.replace('-', "_").as_str())), "{key}");
    }
}
