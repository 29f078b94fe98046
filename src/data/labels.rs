//! Labels of whole sequences: what the outputs of a head stand for, and rows of token ids as examples with a label.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::audit::{Audit, RowNotes};
use super::encode::Example;
use super::record::{Body, Record, RowLabel};
use crate::batch::Label;
use crate::config::head::Pool;
use crate::config::{Loss, TargetShift, Task, Truncation};
use crate::error::{Error, InputError, Result};

/// What the outputs of a head stand for: decided by the rows of its training, and kept beside the adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelScheme {
    /// Classes, or numbers.
    pub task: Task,
    /// What was minimised, which says what an output is.
    pub loss: Loss,
    /// Outputs.
    pub num_labels: usize,
    /// Names of the outputs, if the rows or the model have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Numbers are trained as `(number - offset) / scale`, by output. The offset is 0 where none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_offset: Vec<f64>,
    /// See `target_offset`; 1 where none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_scale: Vec<f64>,
}

/// What is known of the outputs before the rows are.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Of the adapter that training starts from.
    pub scheme: Option<LabelScheme>,
    /// Outputs of the head that the model was saved with, and their names.
    pub of_model: Option<(usize, Option<Vec<String>>)>,
}

/// What the options say about labels.
#[derive(Debug, Clone, Copy)]
pub struct LabelOptions {
    /// Classes, or numbers.
    pub task: Task,
    /// What is minimised.
    pub loss: Loss,
    /// Outputs, if they are given.
    pub num_labels: Option<usize>,
    /// How numbers are moved.
    pub target_shift: TargetShift,
}

/// Limits for rows, and what the head reads of them.
#[derive(Debug, Clone, Copy)]
pub struct RowLimits {
    /// Most tokens of a row.
    pub max_seq_length: usize,
    /// Positions of the model.
    pub max_position_embeddings: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Whether rows without a label are left out instead of refused.
    pub skip_empty: bool,
    /// Whether every row needs a label.
    pub needs_labels: bool,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Token types of the model; none if it has none.
    pub token_types: Option<usize>,
    /// What the head reads.
    pub pool: Pool,
    /// The padding token. A head that reads the last token takes the last one that is none, as transformers does.
    pub pad_token_id: Option<u32>,
}

/// The label of a row, where it has one.
fn label_of(record: &Record) -> Option<&RowLabel> {
    match &record.body {
        Body::Labelled { label, .. } => label.as_ref(),
        _ => None,
    }
}

/// The number that a label is: also one that a table has as text.
fn number_of(label: &RowLabel) -> Option<f64> {
    match label {
        RowLabel::Number(number) => Some(*number),
        RowLabel::Name(text) => text.trim().parse().ok().filter(|number: &f64| (*number as f32).is_finite()),
        RowLabel::Numbers(_) => None,
    }
}

/// The class that a number is.
fn class_of(number: f64) -> Option<u32> {
    (number >= 0.0 && number.fract() == 0.0 && number < f64::from(u32::MAX)).then_some(number as u32)
}

/// Numbers of a label: one, or a list.
fn numbers_of(label: &RowLabel) -> Option<Vec<f64>> {
    match label {
        RowLabel::Numbers(numbers) => Some(numbers.clone()),
        other => number_of(other).map(|number| vec![number]),
    }
}

fn shown(label: &RowLabel) -> String {
    match label {
        RowLabel::Name(name) => format!("{name:?}"),
        RowLabel::Number(number) => number.to_string(),
        RowLabel::Numbers(numbers) => format!("{numbers:?}"),
    }
}

impl LabelScheme {
    /// The scheme for a training on `train`, which is evaluated on `eval`.
    ///
    /// # Errors
    /// An input error that names a row whose label is of another kind, or an option that the labels contradict.
    pub fn of(options: LabelOptions, known: &Known, train: &[Record], eval: &[Record]) -> Result<Self> {
        let mut scheme = match (&known.scheme, options.task, options.loss) {
            (Some(scheme), ..) => scheme.checked_against(options)?,
            (None, Task::Classify, Loss::CrossEntropy) => Self::of_classes(options, known, train, eval)?,
            (None, ..) => Self::of_numbers(options, known, train)?,
        };
        if scheme.task == Task::Classify && scheme.loss == Loss::CrossEntropy && scheme.num_labels < 2 {
            return Error::input("DATA", "the rows have one class, so there is nothing to learn")
                .got(scheme.num_labels)
                .expected("2 classes or more")
                .fix("add rows of other classes, give --num-labels, or use --task regress for numbers")
                .into();
        }
        if known.scheme.is_none() {
            scheme.shift(options.target_shift, train)?;
        }
        Ok(scheme)
    }

    fn new(options: LabelOptions, num_labels: usize, labels: Option<Vec<String>>) -> Self {
        let LabelOptions { task, loss, .. } = options;
        Self { task, loss, num_labels, labels, target_offset: Vec::new(), target_scale: Vec::new() }
    }

    /// The scheme of an adapter to start from, unless the options say something else.
    fn checked_against(&self, options: LabelOptions) -> Result<Self> {
        let differs = [
            ("task", self.task.to_string(), options.task.to_string()),
            ("loss", self.loss.to_string(), options.loss.to_string()),
            (
                "num_labels",
                self.num_labels.to_string(),
                options.num_labels.unwrap_or(self.num_labels).to_string(),
            ),
        ];
        match differs.into_iter().find(|(_, has, wanted)| has != wanted) {
            None => Ok(self.clone()),
            Some((field, has, wanted)) => {
                Error::input("CONFIG", "the adapter to start from was trained with another one")
                    .field(field)
                    .got(wanted)
                    .expected(has)
                    .fix("give the adapter's, or start without init_adapter")
                    .into()
            }
        }
    }

    fn of_classes(options: LabelOptions, known: &Known, train: &[Record], eval: &[Record]) -> Result<Self> {
        let labels = || train.iter().filter_map(|record| Some((record, label_of(record)?)));
        let is_name = |label: &RowLabel| matches!(label, RowLabel::Name(_)) && number_of(label).is_none();
        let are_numbers = !labels().any(|(_, label)| is_name(label));
        let mut names = BTreeSet::new();
        let mut largest = 0;
        for (record, label) in
            labels().chain(eval.iter().filter_map(|record| Some((record, label_of(record)?))))
        {
            match label {
                RowLabel::Name(name) if !are_numbers => drop(names.insert(name.as_str())),
                label => match number_of(label).and_then(class_of).filter(|_| are_numbers) {
                    Some(class) => largest = largest.max(class as usize + 1),
                    None => {
                        let error = label_error(record, "not the label of a class", label);
                        return match (label, are_numbers) {
                            (RowLabel::Numbers(_), _) => error
                                .expected("one class")
                                .fix("use --loss bce for several labels at once")
                                .into(),
                            (_, true) => error
                                .expected("a whole number from 0 on, as in the other rows")
                                .fix("number the classes from 0, or use --task regress")
                                .into(),
                            (_, false) => error
                                .expected("the name of a class, as in the other rows")
                                .fix("write all labels as names, or all as numbers from 0")
                                .into(),
                        };
                    }
                },
            }
        }
        if largest > MOST_CLASSES {
            return Error::input("DATA", "too many classes")
                .field("label")
                .got(largest)
                .expected(format!("at most {MOST_CLASSES}"))
                .fix("number the classes from 0 without gaps, or write their names")
                .into();
        }
        let mut list: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        if let Some((count, own)) = &known.of_model {
            let holds = |own: &Vec<String>| names.iter().all(|name| own.iter().any(|o| o == name));
            let wanted = options.num_labels.is_none_or(|wanted| wanted == *count);
            match own {
                Some(own) if wanted && !are_numbers && holds(own) => list.clone_from(own),
                own if wanted && are_numbers && largest <= *count => {
                    return Ok(Self::new(options, *count, own.clone()));
                }
                _ => {}
            }
        }
        let needed = if are_numbers { largest } else { list.len() };
        let count = options.num_labels.unwrap_or(needed);
        if count < needed {
            return Error::input("CONFIG", "the rows have more labels")
                .field("num_labels")
                .got(count)
                .expected(format!("at least {needed}"))
                .fix("leave num_labels out, or correct the rows")
                .into();
        }
        if are_numbers {
            return Ok(Self::new(options, count, None));
        }
        list.extend((list.len()..count).map(|class| format!("LABEL_{class}")));
        Ok(Self::new(options, count, Some(list)))
    }

    fn of_numbers(options: LabelOptions, known: &Known, train: &[Record]) -> Result<Self> {
        let first = train.iter().find_map(|record| numbers_of(label_of(record)?));
        let count = first.map_or(1, |numbers| numbers.len());
        if let Some(wanted) = options.num_labels.filter(|wanted| *wanted != count) {
            return Error::input("CONFIG", "the labels of the rows have another number of outputs")
                .field("num_labels")
                .got(wanted)
                .expected(count)
                .fix("leave num_labels out, or correct the rows")
                .into();
        }
        let own = known.of_model.as_ref().filter(|(own, _)| *own == count);
        let names = own.and_then(|(_, names)| names.clone()).filter(|_| options.task == Task::Classify);
        Ok(Self::new(options, count, names))
    }

    /// Takes offset and scale from the labels of `train`.
    fn shift(&mut self, shift: TargetShift, train: &[Record]) -> Result<()> {
        if shift == TargetShift::None {
            return Ok(());
        }
        let numbers: Vec<Vec<f64>> =
            train.iter().filter_map(|record| numbers_of(label_of(record)?)).collect();
        let of = |output: usize| numbers.iter().filter_map(move |numbers| numbers.get(output).copied());
        let outputs = 0..self.num_labels;
        let least: Vec<f64> = outputs.clone().map(|o| of(o).fold(f64::INFINITY, f64::min)).collect();
        let most: Vec<f64> = outputs.map(|o| of(o).fold(f64::NEG_INFINITY, f64::max)).collect();
        if shift == TargetShift::Minmax {
            let scale: Vec<f64> = most.iter().zip(&least).map(|(most, least)| most - least).collect();
            if scale.iter().any(|scale| !(*scale > 0.0 && scale.is_finite())) {
                return Error::input("DATA", "all labels are the same, so they have no range")
                    .field("target_shift")
                    .got(shift)
                    .fix("use --target-shift none, or check the labels")
                    .into();
            }
            self.target_scale = scale;
        }
        self.target_offset = least;
        Ok(())
    }

    /// Whether the head finds one of several classes.
    pub fn is_one_class(&self) -> bool {
        self.task == Task::Classify && self.loss == Loss::CrossEntropy
    }

    /// The name of a class: as the rows have it, or its number.
    pub fn name(&self, class: usize) -> Option<&str> {
        self.labels.as_ref()?.get(class).map(String::as_str)
    }

    /// What an output says in the units of the rows: of a number that the head gives, by the loss it was trained with.
    pub fn in_units(&self, output: usize, logit: f64) -> f64 {
        let value = match self.loss {
            Loss::SigmoidMse | Loss::Bce => 1.0 / (1.0 + (-logit).exp()),
            _ => logit,
        };
        self.untrained(output, value)
    }

    fn moved(&self, output: usize) -> (f64, f64) {
        let of = |list: &[f64], usual: f64| list.get(output).copied().unwrap_or(usual);
        (of(&self.target_offset, 0.0), of(&self.target_scale, 1.0))
    }

    /// The label of a row as the head is trained on it.
    fn read(&self, record: &Record, label: &RowLabel) -> Result<Label> {
        if self.is_one_class() {
            let class = match (label, &self.labels) {
                (RowLabel::Name(name), Some(names)) if names.contains(name) => {
                    names.iter().position(|known| known == name).map(|class| class as u32)
                }
                (label, _) => {
                    number_of(label).and_then(class_of).filter(|class| (*class as usize) < self.num_labels)
                }
            };
            return class.map(Label::Class).ok_or_else(|| {
                let expected = match &self.labels {
                    Some(names) => format!("one of {}", some_of(names)),
                    None => format!("0 to {}", self.num_labels.saturating_sub(1)),
                };
                label_error(record, "a label that is no class of this training", label)
                    .expected(expected)
                    .fix("correct the row, or train on rows of this class")
                    .into()
            });
        }
        let numbers = numbers_of(label).filter(|numbers| numbers.len() == self.num_labels);
        let Some(numbers) = numbers else {
            let expected = match self.num_labels {
                1 => "a number".to_owned(),
                n => format!("a list of {n} numbers"),
            };
            let error = label_error(record, "the label is of another kind", label).expected(expected);
            return error.fix("give every row a label of the same kind").into();
        };
        if self.loss == Loss::Bce {
            let moved = numbers.iter().enumerate().map(|(output, number)| self.trained(output, *number));
            if moved.clone().any(|number| !(0.0..=1.0).contains(&number)) {
                let error = label_error(record, "a label that is no probability", label).expected("0 to 1");
                return error
                    .fix("use --loss mse, or --target-shift minmax for numbers of another range")
                    .into();
            }
        }
        let numbers = numbers.iter().enumerate().map(|(output, number)| self.trained(output, *number) as f32);
        Ok(Label::Numbers(numbers.collect()))
    }

    /// A number of a row as it is trained on.
    fn trained(&self, output: usize, number: f64) -> f64 {
        let (offset, scale) = self.moved(output);
        (number - offset) / scale
    }

    /// The number of a row that is trained on as this one.
    pub fn untrained(&self, output: usize, trained: f64) -> f64 {
        let (offset, scale) = self.moved(output);
        trained * scale + offset
    }

    /// Turns rows into examples, in their order.
    ///
    /// # Errors
    /// An input error that names the first bad row, or up to five rows that are too long.
    pub fn encode(&self, records: &[Record], limits: &RowLimits) -> Result<(Vec<Example>, Audit)> {
        let (mut examples, mut audit, mut too_long) = (Vec::new(), Audit::default(), Vec::new());
        for (index, record) in records.iter().enumerate() {
            let Body::Labelled { input_ids, token_type_ids, label } = &record.body else {
                return record
                    .error("this task needs rows of token ids with a label")
                    .expected("{\"input_ids\": [...], \"label\": ...}")
                    .fix("tokenise the rows with the tokenizer of the model, or use --task causal")
                    .into();
            };
            let label = match label {
                Some(label) => self.read(record, label)?,
                None if !limits.needs_labels => Label::None,
                None if limits.skip_empty => {
                    audit.add_skipped_empty(record, RowNotes::default());
                    continue;
                }
                None => {
                    let error = record.error("the row has no label").field("label");
                    return error.fix("give it one, or pass --skip-empty").into();
                }
            };
            let mut len = input_ids.len();
            if limits.pool == Pool::Last {
                let is_pad = |id: &u32| Some(*id) == limits.pad_token_id;
                // A row of nothing but padding keeps its first token.
                len = input_ids.iter().rposition(|id| !is_pad(id)).map_or(len.min(1), |last| last + 1);
            }
            limits.check(record, input_ids, token_type_ids)?;
            let types =
                if token_type_ids.iter().all(|&kind| kind == 0) { &[] } else { &token_type_ids[..len] };
            if len > limits.max_seq_length {
                match limits.truncation {
                    Truncation::Skip => audit.add_skipped_long(record, RowNotes::default()),
                    _ => too_long.push((record, len)),
                }
                continue;
            }
            let example = Example {
                input_ids: input_ids[..len].to_vec(),
                token_type_ids: types.to_vec(),
                label,
                prompt_len: len,
                record: index,
                ..Example::default()
            };
            audit.add(record, &example, RowNotes::default());
            examples.push(example);
        }
        if !too_long.is_empty() {
            return Err(limits.too_long(&too_long));
        }
        if examples.is_empty() {
            return Error::input("DATA", "no row is left")
                .got(format!("{} rows skipped", records.len()))
                .fix("check that the rows have labels, and raise --max-seq-length")
                .into();
        }
        audit.labels = self.describe(&examples);
        audit.finish(examples.iter(), records);
        Ok((examples, audit))
    }

    /// What the labels of these rows are like.
    fn describe(&self, examples: &[Example]) -> Vec<String> {
        let with = examples.iter().filter(|example| example.label != Label::None).count();
        let mut lines = vec![format!("{with} with a label")];
        if self.is_one_class() {
            let counts = class_counts(&examples.iter().collect::<Vec<_>>(), self.num_labels);
            let mut by_count: Vec<(usize, usize)> =
                counts.into_iter().enumerate().filter(|(_, n)| *n > 0).collect();
            let found = by_count.len();
            by_count.sort_by_key(|&(class, count)| (std::cmp::Reverse(count), class));
            let name = |class: usize| self.name(class).map_or_else(|| class.to_string(), str::to_owned);
            let shown: Vec<String> = by_count
                .iter()
                .take(SHOWN)
                .map(|&(class, count)| format!("{} {count}", name(class)))
                .collect();
            let more = if found > SHOWN { ", ..." } else { "" };
            lines.push(format!("{found} of {} classes: {}{more}", self.num_labels, shown.join(", ")));
        } else {
            for output in 0..self.num_labels.min(SHOWN) {
                let numbers = examples.iter().filter_map(|example| match &example.label {
                    Label::Numbers(numbers) => numbers.get(output).map(|&number| f64::from(number)),
                    _ => None,
                });
                let (mut count, mut sum, mut least, mut most) = (0, 0.0, f64::INFINITY, f64::NEG_INFINITY);
                for number in numbers {
                    (count, sum) = (count + 1, sum + number);
                    (least, most) = (least.min(number), most.max(number));
                }
                if count > 0 {
                    let what = if self.num_labels == 1 {
                        "trained numbers".to_owned()
                    } else {
                        format!("output {output}")
                    };
                    lines.push(format!("{what} {least:.4} to {most:.4}, mean {:.4}", sum / f64::from(count)));
                }
            }
        }
        lines
    }
}

/// Rows by class.
pub fn class_counts(examples: &[&Example], num_labels: usize) -> Vec<usize> {
    let mut counts = vec![0; num_labels];
    for example in examples {
        if let Label::Class(class) = example.label {
            counts[class as usize] += 1;
        }
    }
    counts
}

impl RowLimits {
    /// Fails for tokens and types that the model has no row for.
    fn check(&self, record: &Record, input_ids: &[u32], token_type_ids: &[u32]) -> Result<()> {
        if input_ids.is_empty() {
            return record.error("the row has no token").field("input_ids").fix("remove the row").into();
        }
        if let Some((i, id)) = input_ids.iter().enumerate().find(|(_, id)| **id as usize >= self.vocab_size) {
            return record
                .error("the id is beyond the vocabulary")
                .field(format!("input_ids[{i}]"))
                .got(id)
                .expected(format!("below {}", self.vocab_size))
                .fix("tokenise the rows with the tokenizer of this model")
                .into();
        }
        let types = self.token_types.unwrap_or(1);
        if let Some((i, kind)) = token_type_ids.iter().enumerate().find(|(_, kind)| **kind as usize >= types)
        {
            return record
                .error("the model has no such token type")
                .field(format!("token_type_ids[{i}]"))
                .got(kind)
                .expected(format!("below {types}"))
                .fix("leave token_type_ids out, or check that the rows were made for this model")
                .into();
        }
        Ok(())
    }

    fn too_long(&self, rows: &[(&Record, usize)]) -> Error {
        let place = |(record, len): &(&Record, usize)| {
            format!("{}:{} has {len} tokens", record.file.display(), record.line)
        };
        let listed: Vec<String> = rows.iter().take(5).map(place).collect();
        let more = if rows.len() > 5 { format!(" and {} more", rows.len() - 5) } else { String::new() };
        let longest = rows.iter().map(|(_, len)| *len).max().unwrap_or(0);
        let raise = match longest > self.max_position_embeddings {
            true => format!("shorten them to the {} positions of the model", self.max_position_embeddings),
            false => format!("raise --max-seq-length to {longest}"),
        };
        let what = format!(
            "{} of the rows do not fit into {} tokens: {}{more}",
            rows.len(),
            self.max_seq_length,
            listed.join("; ")
        );
        Error::input("DATA", what).fix(format!("{raise}, or --truncation skip")).into()
    }
}

/// Labels that a message shows.
const SHOWN: usize = 8;

/// Most classes that numbers in rows may ask for.
const MOST_CLASSES: usize = 1 << 17;

fn some_of(names: &[String]) -> String {
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ") + &more
}

fn label_error(record: &Record, what: &str, label: &RowLabel) -> InputError {
    record.error(what).field("label").got(shown(label))
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
