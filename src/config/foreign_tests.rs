//! The table of options of other tools: each has one meaning, an answer, and advice where it is refused.

use super::*;
use crate::config::aliases::{SWITCHES, TRAIN, canonical};
use crate::config::keys::keys_of;
use crate::config::{ScoreConfig, TrainConfig};

fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|entry| entry.names.iter().copied())
}

#[test]
fn no_name_has_two_meanings() {
    let mut seen = std::collections::BTreeSet::new();
    for name in names() {
        assert!(seen.insert(name), "{name} stands twice");
        for keys in [keys_of::<TrainConfig>(), keys_of::<ScoreConfig>()] {
            assert_eq!(canonical(name, keys, TRAIN), None, "{name} is an option");
        }
        assert!(SWITCHES.iter().all(|switch| switch.name != name), "{name} is a switch");
    }
}

#[test]
fn what_may_be_refused_says_what_to_write() {
    for entry in TABLE {
        assert!(!entry.why.is_empty() && entry.instead.is_empty() == matches!(entry.fine, Fine::Any));
        // A note that begins with the value, and not with advice to change it.
        let is_else = matches!(entry.fine, Fine::Else(_));
        assert!(!is_else || entry.instead.starts_with(entry.why), "{:?}", entry.names);
    }
}

#[test]
fn values_are_words() {
    for (value, fine) in
        [("none", true), ("None", true), ("[]", true), ("wandb", false), ("[\"wandb\"]", false)]
    {
        assert_eq!(answer("report-to", &value.into()).unwrap().is_ok(), fine, "{value}");
    }
    assert!(answer("report_to", &Value::Array(vec!["none".into()])).unwrap().is_ok());
    assert!(answer("lora_r", &8.into()).is_none());
}
#[test]
fn a_template_of_another_name_is_not_said_to_change_nothing() {
    let note = |value: &str| answer("chat_template", &value.into()).unwrap().unwrap();
    assert!(note("tokenizer_default").starts_with("chat_template changes nothing: "), "{}", note(""));
    for name in ["llama3", "chatml"] {
        let note = note(name);
        let parts =
            [name, "is not taken", "of the model folder", "may be another one", "chat_template.jinja"];
        assert!(parts.iter().all(|part| note.contains(part)) && !note.contains("changes nothing"), "{note}");
    }
}

#[test]
fn what_would_train_something_else_is_refused() {
    for name in ["use_peft", "use-peft"] {
        assert!(answer(name, &true.into()).unwrap().is_ok());
        assert!(answer(name, &false.into()).unwrap().is_err());
    }
    assert!(answer("inference_mode", &true.into()).unwrap().is_err());
}
