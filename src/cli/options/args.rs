//! The words of a command line before clap sees them: one spelling, and the flags of other tools.

use std::ffi::OsString;
use std::iter::Peekable;

use crate::config::aliases::{SWITCHES, meaning, truth};
use crate::config::is_foreign;

/// The hidden flag that carries an option of another tool, `name=value`, to the configuration, which knows what to say.
const OTHER: &str = "option-of-another-tool";

/// Spells flags the way clap knows them: `--lora_r` becomes `--lora-r`, a switch such as `--fp32` the value that it stands for,
/// and so does a word of another tool, such as `--max_steps -1`. Options that only other tools have go to the configuration
/// under one hidden flag, for the commands that have one. Everything after a bare `--` stays as it is.
pub fn normalise_args(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter().peekable();
    let mut result: Vec<OsString> = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--" {
            result.push(arg);
            result.extend(args);
            break;
        }
        let Some(flag) = arg.to_str().and_then(|text| text.strip_prefix("--")) else {
            result.push(arg);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.replace('_', "-"), Some(value.to_owned())),
            None => (flag.replace('_', "-"), None),
        };
        let takes_others =
            result.iter().any(|word| ["train", "score", "plan"].iter().any(|name| word == *name));
        let next = value.clone().or_else(|| args.peek().and_then(|next| next.to_str()).map(str::to_owned));
        // The folder of an adapter in scoring.
        let is_folder = name == "adapter" && result.iter().any(|word| word == "score");
        let says = next.and_then(|word| meaning(&name, &word)).filter(|_| takes_others && !is_folder);
        if let Some(says) = says {
            if value.is_none() {
                args.next();
            }
            result.extend(says.map(|(option, word)| flag_of(option, word)));
        } else if let Some(switch) = SWITCHES.iter().find(|switch| switch.name.replace('_', "-") == name) {
            let is_truth = |next: &OsString| next.to_str().is_some_and(|word| truth(word).is_some());
            let value = value.or_else(|| args.next_if(is_truth).and_then(|next| next.into_string().ok()));
            let on = value.is_none_or(|value| truth(&value) != Some(false));
            match switch.value(on) {
                Some(word) => result.push(flag_of(switch.option, word)),
                None if takes_others => result.push(format!("--{OTHER}={name}=false").into()),
                None => {}
            }
        } else if takes_others && is_foreign(&name) {
            let value = value.unwrap_or_else(|| values(&mut args));
            result.push(format!("--{OTHER}={name}={value}").into());
        } else if let Some(value) = value {
            result.push(format!("--{name}={value}").into());
        } else {
            result.push(format!("--{name}").into());
        }
    }
    result
}

fn flag_of(option: &str, word: &str) -> OsString {
    format!("--{}={word}", option.replace('_', "-")).into()
}

/// The words that belong to a flag of another tool, which may be several; `true` if there are none.
fn values(args: &mut Peekable<impl Iterator<Item = OsString>>) -> String {
    let mut words = Vec::new();
    while let Some(word) = args.next_if(|next| next.to_str().is_some_and(|word| !word.starts_with("--"))) {
        words.extend(word.into_string());
    }
    if words.is_empty() { "true".to_owned() } else { words.join(",") }
}
