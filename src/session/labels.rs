//! What the outputs of a head stand for, beside the adapter: `label_settings.json`, which says all that was trained, and
//! `config.json`, by which transformers and PEFT make a model with as many outputs.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Opened;
use crate::config::head::HeadSpec;
use crate::config::{Loss, ModelConfig, Task};
use crate::data::labels::{Known, LabelScheme};
use crate::error::{Error, Result};
use crate::formats::adapter::{Adapter as PeftAdapter, read_text};
use crate::formats::model_folder::ModelFolder;
use crate::ops::label_head;

/// The file that says what was trained.
pub const NAME: &str = "label_settings.json";

/// The file that says how to make the model.
pub const CONFIG_NAME: &str = "config.json";

/// Largest accepted file: names of very many labels.
const MAX_BYTES: u64 = 64 << 20;

/// Reads the file of the adapter folder `dir`; none if there is none, as in folders of other tools.
///
/// # Errors
/// An I/O error, or an input error for a file that is something else.
pub fn read(dir: &Path) -> Result<Option<LabelScheme>> {
    let Some(text) = read_text(dir, NAME, MAX_BYTES)? else { return Ok(None) };
    let wrong = |what: &str| -> Error {
        let error =
            Error::input("ADAPTER", "not the label settings of a training").path(dir.join(NAME)).got(what);
        error.fix("restore the file from the training").into()
    };
    let scheme: LabelScheme = serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
    let fits = |len: usize| len == 0 || len == scheme.num_labels;
    let good = |numbers: &[f64]| fits(numbers.len()) && numbers.iter().all(|number| number.is_finite());
    let names = scheme.labels.as_ref().is_none_or(|names| names.len() == scheme.num_labels);
    let has_task = scheme.task != Task::Causal && scheme.num_labels > 0;
    match names && has_task && good(&scheme.target_offset) && good(&scheme.target_scale) {
        true => Ok(Some(scheme)),
        false => Err(wrong("sizes that do not fit num_labels")),
    }
}

/// The bytes of the file.
pub fn to_json(scheme: &LabelScheme) -> Vec<u8> {
    let json = serde_json::to_string_pretty(scheme).unwrap_or_default();
    (json + "\n").into_bytes()
}

/// The `config.json` of the model with the labels of the scheme.
pub(crate) fn config_json(opened: &Opened, scheme: &LabelScheme) -> Vec<u8> {
    let model = &opened.model;
    let mut keys: Map<String, Value> = serde_json::from_str(model.folder.config_json().1).unwrap_or_default();
    let name = |id: usize| scheme.name(id).map_or_else(|| format!("LABEL_{id}"), str::to_owned);
    let ids = (0..scheme.num_labels).map(|id| (id.to_string(), json!(name(id))));
    let names = (0..scheme.num_labels).map(|id| (name(id), json!(id)));
    let problem = match (scheme.task, scheme.loss) {
        (Task::Classify, Loss::Bce) => "multi_label_classification",
        (Task::Classify, _) => "single_label_classification",
        _ => "regression",
    };
    keys.insert("architectures".to_owned(), json!([model.config.family.architecture(&model.config.head)]));
    keys.insert("id2label".to_owned(), Value::Object(ids.collect()));
    keys.insert("label2id".to_owned(), Value::Object(names.collect()));
    keys.insert("num_labels".to_owned(), json!(scheme.num_labels));
    keys.insert("problem_type".to_owned(), json!(problem));
    keys.insert("pad_token_id".to_owned(), json!(opened.pad_token_id()));
    let text = serde_json::to_string_pretty(&Value::Object(keys)).unwrap_or_default();
    (text + "\n").into_bytes()
}

/// What the folder of the model, and the adapter to start from, say about labels.
///
/// # Errors
/// As [`of_adapter`].
pub(crate) fn known(opened: &Opened, start: Option<&PeftAdapter>, dir: Option<&Path>) -> Result<Known> {
    let model = &opened.model;
    let of_model = own_labels(&model.config, &model.folder).map(|count| {
        let names = names_of(model.folder.config_json().1, count);
        (count, names)
    });
    let scheme = match (start, dir) {
        (Some(adapter), Some(dir)) => Some(of_adapter(adapter, dir, &model.config, None)?),
        _ => None,
    };
    Ok(Known { scheme, of_model })
}

/// Outputs of the head that the weights of a model folder have, if they have one.
fn own_labels(config: &ModelConfig, folder: &ModelFolder) -> Option<usize> {
    let HeadSpec::Labels(_) = &config.head else { return None };
    let [_, last] = config.family.modules().trained_layers;
    let view = folder.tensor(&format!("{last}.weight"))?;
    match *view.shape() {
        [outputs, inputs] if inputs == config.hidden_size && outputs > 0 => Some(outputs),
        _ => None,
    }
}

/// Names of so many labels in the text of a `config.json`; none if it has others, or only the usual ones.
fn names_of(config: &str, count: usize) -> Option<Vec<String>> {
    let keys: Map<String, Value> = serde_json::from_str(config).ok()?;
    let map = keys.get("id2label")?.as_object().filter(|map| map.len() == count)?;
    let name = |id: usize| map.get(&id.to_string())?.as_str().map(str::to_owned);
    let names: Vec<String> = (0..count).map(name).collect::<Option<_>>()?;
    let usual = names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"));
    (!usual).then_some(names)
}

/// What the outputs of an adapter stand for: what its training wrote, or what its sizes and its `config.json` tell.
///
/// # Errors
/// An input error if it has no head for labels, or a file is something else.
pub(crate) fn of_adapter(
    adapter: &PeftAdapter,
    dir: &Path,
    model: &ModelConfig,
    asked: Option<Task>,
) -> Result<LabelScheme> {
    let [_, last] = model.family.modules().trained_layers;
    let end = format!("{last}.weight");
    let head =
        adapter.tensors.iter().find(|(name, _)| name.strip_suffix(&end).is_some_and(|s| s.ends_with('.')));
    let Some((_, tensor)) = head else {
        return Error::input("ADAPTER", "the adapter has no head for labels")
            .path(dir)
            .field(&end)
            .fix("name an adapter that was trained to classify or regress, or use another task")
            .into();
    };
    let count = tensor.shape.first().copied().unwrap_or(0);
    let scheme = match read(dir)? {
        Some(scheme) => scheme,
        None => {
            let text = read_text(dir, CONFIG_NAME, MAX_BYTES)?.unwrap_or_default();
            said_by(&text, count, asked)
        }
    };
    if scheme.num_labels == count && count > 0 {
        return Ok(scheme);
    }
    Error::input("ADAPTER", "its settings and its head have different numbers of labels")
        .path(dir.join(NAME))
        .field("num_labels")
        .got(scheme.num_labels)
        .expected(count)
        .fix("restore the folder from the training")
        .into()
}

/// The outputs of the model itself, of which its folder has a head.
///
/// # Errors
/// An input error if there is none.
pub(crate) fn of_model(opened: &Opened, asked: Option<Task>) -> Result<LabelScheme> {
    let model = &opened.model;
    match own_labels(&model.config, &model.folder) {
        Some(count) => Ok(said_by(model.folder.config_json().1, count, asked)),
        None => Error::input("MODEL", "the model has no head for labels")
            .path(model.folder.dir())
            .expected("an adapter with one, or a model folder that was saved from a classifier")
            .fix("pass --adapter with the folder of a training")
            .into(),
    }
}

/// What a `config.json` of transformers says about so many outputs: without a problem type one output is a number, and several
/// are classes, unless the user says what they are.
fn said_by(config: &str, count: usize, asked: Option<Task>) -> LabelScheme {
    let keys: Map<String, Value> = serde_json::from_str(config).unwrap_or_default();
    let (task, loss) = match keys.get("problem_type").and_then(Value::as_str) {
        Some("regression") => (Task::Regress, Loss::Mse),
        Some("multi_label_classification") => (Task::Classify, Loss::Bce),
        Some("single_label_classification") => (Task::Classify, Loss::CrossEntropy),
        _ if asked.map_or(count == 1, |asked| asked == Task::Regress) => (Task::Regress, Loss::Mse),
        _ => (Task::Classify, Loss::CrossEntropy),
    };
    let labels = names_of(config, count).filter(|_| task == Task::Classify);
    LabelScheme { task, loss, num_labels: count, labels, target_offset: Vec::new(), target_scale: Vec::new() }
}

/// The loss of the op.
pub(crate) fn loss_of(
    scheme: &LabelScheme,
    class_weights: Option<Vec<f32>>,
    pos_weight: Option<Vec<f32>>,
    label_smoothing: f64,
) -> label_head::Loss {
    match scheme.loss {
        Loss::CrossEntropy => label_head::Loss::CrossEntropy { class_weights, label_smoothing },
        Loss::Bce => label_head::Loss::Bce { pos_weight },
        Loss::SigmoidMse => label_head::Loss::SigmoidMse,
        Loss::Mse => label_head::Loss::Mse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_config_says_about_outputs() {
        let of = |text: &str, count| {
            let scheme = said_by(text, count, None);
            (scheme.task, scheme.loss, scheme.labels)
        };
        assert_eq!(of("{}", 1), (Task::Regress, Loss::Mse, None));
        assert_eq!(of("", 3), (Task::Classify, Loss::CrossEntropy, None));
        let named = r#"{"id2label": {"0": "no", "1": "yes"}, "problem_type": "multi_label_classification"}"#;
        assert_eq!(of(named, 2), (Task::Classify, Loss::Bce, Some(vec!["no".into(), "yes".into()])));
        assert_eq!(said_by("", 3, Some(Task::Regress)).task, Task::Regress);
        assert_eq!(of(named, 3).2, None, "of another number of labels");
        assert_eq!(of(r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}"#, 2).2, None);
    }

    #[test]
    fn settings_that_contradict_themselves_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let good = LabelScheme {
            task: Task::Regress,
            loss: Loss::SigmoidMse,
            num_labels: 1,
            labels: None,
            target_offset: vec![-2.0],
            target_scale: Vec::new(),
        };
        std::fs::write(dir.path().join(NAME), to_json(&good)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(good.clone()));
        for bad in [
            LabelScheme { num_labels: 2, ..good.clone() },
            LabelScheme { task: Task::Causal, ..good.clone() },
            LabelScheme { labels: Some(Vec::new()), ..good.clone() },
        ] {
            std::fs::write(dir.path().join(NAME), to_json(&bad)).unwrap();
            assert_eq!(read(dir.path()).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        for text in ["{", "[]", "{\"task\": \"sing\"}"] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            assert_eq!(read(dir.path()).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
