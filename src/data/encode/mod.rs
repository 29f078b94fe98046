//! Rows become token ids with labels: which tokens the model is trained on is decided here.
//!
//! Every row is one text that is encoded once, as a whole; the tokens that overlap an answer are learned.
//!
//! - plain: input, line end, output (for `prompt`/`completion` nothing between), after the BOS token where the tokenizer puts one by
//!   itself, and then the EOS token;
//! - chat: what the template renders of the whole conversation, with an answer from the end of the prompt that asks for it to the
//!   end of the token that the template writes behind it;
//! - text: all of it, and then the EOS token.
//!
//! Labels of everything else are -100, and tokens behind the last label are left out: nothing is learned from them.

mod chat;
mod choices;
mod cut;
mod fit;
mod spans;
mod style;

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::audit::{Audit, RowNotes};
use super::record::{Body, Conversation, Record};
use super::template::Renderer;
use super::tokenizer::Tokenizer;
use crate::batch::{IGNORE_INDEX, Label};
pub use crate::config::{Format, Truncation};
use crate::error::{Error, Result};
pub use choices::{Asked, Continuation};
pub(super) use cut::Cut;
use spans::{Answer, Labelled, Marked};
use style::{End, Style};

pub(super) const USER: &str = "user";
pub(super) const ASSISTANT: &str = "assistant";

/// The choices of an [`Encoder`].
#[derive(Debug, Clone)]
pub struct EncodeOptions {
    /// How input and output become one text: [`Format::Chat`], which conversations need, or as [`Format::Plain`] does. What
    /// [`Format::Auto`] means depends on all rows and on the model, so it is decided before.
    pub format: Format,
    /// Most tokens of an example.
    pub max_seq_length: usize,
    /// Positions of the model, which no option raises, if known.
    pub max_position_embeddings: Option<usize>,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Encode special tokens written in the data as ordinary text.
    pub escape_special: bool,
    /// Leave out rows with nothing to learn, and rows whose answer is empty, instead of failing.
    pub skip_empty: bool,
    /// Learn the last answer of a conversation only.
    pub mask_history: bool,
    /// Rows of the model's embedding, the limit for ids; the tokenizer's size if none.
    pub vocab_size: Option<usize>,
    /// Further variables of the chat template, such as `enable_thinking`.
    pub template_variables: Map<String, Value>,
}

impl EncodeOptions {
    /// Strict options: nothing is cut, nothing is skipped.
    pub fn new(format: Format, max_seq_length: usize) -> Self {
        Self {
            format,
            max_seq_length,
            max_position_embeddings: None,
            truncation: Truncation::Error,
            escape_special: false,
            skip_empty: false,
            mask_history: false,
            vocab_size: None,
            template_variables: Map::new(),
        }
    }
}

/// One row, ready to be packed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// One label per token, -100 where not supervised, not shifted; empty where sequences are labelled.
    pub labels: Vec<i64>,
    /// The type of every token; all 0 if it is empty.
    pub token_type_ids: Vec<u32>,
    /// What the whole sequence is labelled with; nothing where tokens are.
    pub label: Label,
    /// Tokens before the first supervised one.
    pub prompt_len: usize,
    /// Index of its row among the records.
    pub record: usize,
    /// Whether its beginning was cut.
    pub truncated: bool,
}

impl Example {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// What makes two rows the same: tokens, their labels and types, and the bits of the label.
    pub fn identity(&self) -> (&[u32], &[i64], &[u32], Vec<u32>) {
        let label = match &self.label {
            Label::None => Vec::new(),
            Label::Class(class) => vec![*class],
            Label::Numbers(numbers) => numbers.iter().map(|number| number.to_bits()).collect(),
        };
        (&self.input_ids, &self.labels, &self.token_type_ids, label)
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// What carries loss: a sequence with a label, or tokens. The first token never does: nothing comes before it that could
    /// predict it.
    pub fn supervised(&self) -> usize {
        let of_sequence = usize::from(self.label != Label::None);
        of_sequence + self.labels.iter().skip(1).filter(|&&label| label != IGNORE_INDEX).count()
    }
}

/// Turns rows into examples. Made once per run, used from many threads.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// None where every row has to be tokenised already.
    tokenizer: Option<&'a Tokenizer>,
    /// None without a template.
    template: Option<Template<'a>>,
    /// That of conversations with tools, if they have one of their own.
    tool_template: Option<Template<'a>>,
    options: EncodeOptions,
    /// What the template sees besides the conversation.
    variables: Map<String, Value>,
    /// The token that ends a text in the plain format, or an answer of the template; none if there is none.
    end: Option<(String, u32)>,
}

/// A chat template and how it frames answers.
#[derive(Debug)]
struct Template<'a> {
    renderer: &'a Renderer,
    style: Style,
}

/// What became of one row, with what the caller wants of it.
enum Outcome<T> {
    Row(Example, T, RowNotes),
    Empty(RowNotes),
    TooLong { len: usize, answer_len: usize, notes: RowNotes },
}

impl<'a> Encoder<'a> {
    /// An encoder; with a renderer it asks the template how it frames an answer.
    ///
    /// # Errors
    /// [`Error::Input`] if [`Format::Chat`] has no template, the template does not render a simple conversation, or texts have
    /// no token that ends them.
    pub fn new(
        tokenizer: &'a Tokenizer,
        renderer: Option<&'a Renderer>,
        options: EncodeOptions,
    ) -> Result<Self> {
        let mut variables = tokenizer.special_token_map().clone();
        variables.extend(options.template_variables.clone());
        let renderer = renderer.filter(|_| options.format == Format::Chat);
        if options.format == Format::Chat && renderer.is_none() {
            return Error::input("CONFIG", "the model has no chat template")
                .field("format")
                .got("chat")
                .fix("use --format plain, or put a chat_template.jinja into the model folder")
                .into();
        }
        let probe = |renderer| {
            let style = Style::probe(renderer, &variables, tokenizer)?;
            Ok::<_, Error>(Template { renderer, style })
        };
        let template = renderer.map(probe).transpose()?;
        let style = template.as_ref().map(|template| &template.style);
        let end = match style {
            None => tokenizer.eos_token(),
            Some(Style { last: End::Tokens(tokens), .. }) => {
                tokenizer.last_added_in(tokens).map(|(range, id)| (tokens[range].to_owned(), id))
            }
            Some(_) => None,
        };
        if end.is_none() && style.is_none() {
            return Error::input("TOKENIZER", "no token ends an answer")
                .field("eos_token")
                .expected("a token of the vocabulary")
                .fix("set \"eos_token\" in tokenizer_config.json")
                .into();
        };
        Ok(Self { tokenizer: Some(tokenizer), template, tool_template: None, options, variables, end })
    }

    /// Renders conversations with tools with a template of their own (`tool_use`, as `transformers` chooses it). `tools` are
    /// those of some row, in the form that its template wants.
    ///
    /// # Errors
    /// As [`Encoder::new`], for this template.
    pub fn with_tool_template(mut self, renderer: &'a Renderer, tools: &Value) -> Result<Self> {
        let tokenizer = self.tokenizer()?;
        let mut variables = self.variables.clone();
        variables.insert("tools".into(), tools.clone());
        let style = Style::probe(renderer, &variables, tokenizer)?;
        self.tool_template = Some(Template { renderer, style });
        Ok(self)
    }

    /// An encoder for rows that are tokenised already; any other row is an error. `options.vocab_size` limits the ids.
    pub fn tokenised_only(options: EncodeOptions) -> Self {
        let (template, tool_template, variables, end) = (None, None, Map::new(), None);
        Self { tokenizer: None, template, tool_template, options, variables, end }
    }

    /// The token that ends an answer, in training and as the stop of generation, and its id; none without a tokenizer, and where
    /// a template ends answers with text.
    pub fn end_token(&self) -> Option<(&str, u32)> {
        self.end.as_ref().map(|(token, id)| (token.as_str(), *id))
    }

    fn tokenizer(&self) -> Result<&'a Tokenizer> {
        match self.tokenizer {
            Some(tokenizer) => Ok(tokenizer),
            None => Error::input("DATA", "the model folder has no tokenizer")
                .expected("rows with \"input_ids\" and \"labels\", or a tokenizer.json")
                .fix("put the model's tokenizer.json into its folder")
                .into(),
        }
    }

    /// Encodes all rows on all cores; order is kept. `progress` is called with the number of rows finished since its last call,
    /// from any thread; an error of it ends the work.
    ///
    /// # Errors
    /// The error of the first bad row in row order; one [`Error::Input`] that lists up to five rows that are
    /// too long; or that of
    /// `progress`.
    pub fn encode_all(
        &self,
        records: &[Record],
        progress: &(dyn Fn(usize) -> Result<()> + Sync),
    ) -> Result<(Vec<Example>, Audit)> {
        let (rows, audit) = self.collect(records, progress, |i, record| self.encode_row(i, record))?;
        Ok((rows.into_iter().map(|(example, ())| example).collect(), audit))
    }

    /// Runs `encode` for all rows, and applies the rules about rows that are empty or too long.
    fn collect<T: Send>(
        &self,
        records: &[Record],
        progress: &(dyn Fn(usize) -> Result<()> + Sync),
        encode: impl Fn(usize, &Record) -> Result<Outcome<T>> + Sync,
    ) -> Result<(Vec<(Example, T)>, Audit)> {
        let outcomes: Vec<Result<Outcome<T>>> = records
            .par_iter()
            .enumerate()
            .map(|(i, record)| {
                let outcome = encode(i, record);
                progress(1).map(|()| outcome)
            })
            .collect::<Result<_>>()?;
        let mut rows = Vec::with_capacity(records.len());
        let mut audit = Audit::default();
        let mut too_long = Vec::new();
        for (record, outcome) in records.iter().zip(outcomes) {
            match outcome? {
                Outcome::Row(_, _, notes) if self.options.skip_empty && notes.says_nothing() => {
                    audit.add_skipped_empty(record, notes);
                }
                Outcome::Row(example, more, notes) => {
                    audit.add(record, &example, notes);
                    rows.push((example, more));
                }
                Outcome::Empty(_) if !self.options.skip_empty => return Err(nothing_to_learn(record)),
                Outcome::Empty(notes) => audit.add_skipped_empty(record, notes),
                Outcome::TooLong { notes, .. } if self.options.truncation == Truncation::Skip => {
                    audit.add_skipped_long(record, notes);
                }
                Outcome::TooLong { len, answer_len, .. } => too_long.push((record, len, answer_len)),
            }
        }
        if !too_long.is_empty() {
            return Err(self.rows_too_long(&too_long));
        }
        if rows.is_empty() {
            let full = self.options.max_position_embeddings == Some(self.options.max_seq_length);
            let raise = if full { "shorten the rows" } else { "raise --max-seq-length" };
            return Error::input("DATA", "no row is left")
                .got(format!("{} rows skipped", records.len()))
                .fix(format!("{raise}, or check that the rows have answers"))
                .into();
        }
        audit.finish(rows.iter().map(|(example, _)| example), records);
        Ok((rows, audit))
    }

    /// The ids that ask for the answer of `record`: its input, its conversation without a last assistant turn, or its
    /// tokens before the first supervised one. Of any length.
    ///
    /// # Errors
    /// [`Error::Input`] that names the row.
    pub fn encode_prompt(&self, record: &Record) -> Result<Vec<u32>> {
        let marked = match &record.body {
            Body::InputOutput { input, form, .. } if self.options.format == Format::Chat => {
                let mut asked = chat::pair(*form, input, "");
                asked.turns.pop();
                self.conversation_prompt(&asked)
            }
            Body::InputOutput { input, form, .. } => self.plain(&[input, form.separator()], ""),
            Body::Messages(conversation) => {
                let mut asked = conversation.clone();
                asked.turns.pop_if(|last| last.role == ASSISTANT);
                self.conversation_prompt(&asked)
            }
            Body::Text(text) => self.plain(&[text], ""),
            Body::Tokenised { input_ids, labels } => {
                let prompt = labels.iter().position(|&label| label != IGNORE_INDEX);
                return Ok(input_ids[..prompt.unwrap_or(input_ids.len())].to_vec());
            }
            Body::Labelled { .. } => return Err(no_labels(record)),
        };
        let mut labelled = Labelled::default();
        if self.options.format != Format::Chat {
            labelled.prompt(self.bos().map_err(|e| at_row(record, e))?);
        }
        let extended = marked.and_then(|marked| labelled.extend(self, &marked));
        extended.map(|()| labelled.input_ids).map_err(|e| at_row(record, e))
    }

    fn encode_row(&self, index: usize, record: &Record) -> Result<Outcome<()>> {
        let mut notes = self.notes(record);
        let labelled = match &record.body {
            Body::InputOutput { input, output, form } => match self.options.format {
                Format::Chat => self.fit_conversation(&chat::pair(*form, input, output), &mut notes),
                _ => self.fit_plain(&[input, form.separator()], &[output], &mut notes),
            },
            Body::Messages(conversation) => self.fit_conversation(conversation, &mut notes),
            Body::Text(text) => self.fit_plain(&[], &[text], &mut notes),
            Body::Tokenised { input_ids, labels } => {
                notes.other_label = first_other_label(input_ids, labels);
                Ok(self.fit_tokenised(input_ids, labels, &mut notes))
            }
            Body::Labelled { .. } => return Err(no_labels(record)),
        }
        .map_err(|e| at_row(record, e))?;
        self.check_ids(record, &labelled)?;
        Ok(self.outcome(index, labelled, notes, ()))
    }

    /// What becomes of a row with these tokens.
    fn outcome<T>(&self, record: usize, labelled: Labelled, notes: RowNotes, more: T) -> Outcome<T> {
        let Labelled { input_ids, labels, .. } = labelled;
        let prompt_len = labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(labels.len());
        let truncated = notes.cut.is_any();
        let example = Example { input_ids, labels, prompt_len, record, truncated, ..Example::default() };
        if example.supervised() == 0 {
            Outcome::Empty(notes)
        } else if example.len() > self.options.max_seq_length {
            let answer_len = example.len() - example.prompt_len;
            Outcome::TooLong { len: example.len(), answer_len, notes }
        } else {
            Outcome::Row(example, more, notes)
        }
    }

    /// What the texts of a row say before they are encoded.
    fn notes(&self, record: &Record) -> RowNotes {
        RowNotes {
            special: self.special_in(record).filter(|_| !self.options.escape_special),
            ..RowNotes::default()
        }
    }

    /// The first special token written in the texts of a row.
    fn special_in(&self, record: &Record) -> Option<String> {
        let tokenizer = self.tokenizer?;
        let find = |text: &str| tokenizer.first_special_in(text).map(|range| text[range].to_owned());
        match &record.body {
            Body::InputOutput { input, output, .. } => find(input).or_else(|| find(output)),
            Body::Messages(Conversation { turns, .. }) => turns.iter().find_map(|turn| find(&turn.content)),
            Body::Text(text) => find(text),
            Body::Tokenised { .. } | Body::Labelled { .. } => None,
        }
    }

    /// Fails for an id that the model has no row for, which would end a run in its middle.
    fn check_ids(&self, record: &Record, labelled: &Labelled) -> Result<()> {
        let of_tokenizer = || self.tokenizer.map_or(usize::MAX, Tokenizer::vocab_size);
        let vocab_size = self.options.vocab_size.unwrap_or_else(of_tokenizer);
        let beyond = |id: i64| id != IGNORE_INDEX && usize::try_from(id).is_ok_and(|id| id >= vocab_size);
        let place = |ids: &mut dyn Iterator<Item = i64>| ids.enumerate().find(|&(_, id)| beyond(id));
        let in_ids = place(&mut labelled.input_ids.iter().map(|&id| i64::from(id)));
        let found = in_ids.map(|found| ("input_ids", found));
        let found =
            found.or_else(|| place(&mut labelled.labels.iter().copied()).map(|found| ("labels", found)));
        let Some((field, (i, id))) = found else { return Ok(()) };
        let error = record.error("the id is beyond the vocabulary").expected(format!("below {vocab_size}"));
        if matches!(record.body, Body::Tokenised { .. }) {
            return error
                .field(format!("{field}[{i}]"))
                .got(id)
                .fix("tokenise the rows with the tokenizer of this model")
                .into();
        }
        let id = u32::try_from(id).unwrap_or(u32::MAX);
        let token = self.tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id)).unwrap_or_default();
        error
            .got(format!("token {token:?} with id {id}"))
            .fix("remove the token from the row, or from the tokenizer's files: the model has no embedding for it")
            .into()
    }

    /// The id of the BOS token, where the tokenizer puts one before a text.
    fn bos(&self) -> Result<Option<u32>> {
        let tokenizer = self.tokenizer()?;
        Ok(tokenizer.bos_token().filter(|_| tokenizer.adds_bos()).map(|(_, id)| id))
    }

    /// A prompt and an answer as one text.
    fn plain(&self, prompt: &[&str], answer: &str) -> Result<Marked> {
        let tokenizer = self.tokenizer()?;
        let (mut prompt, mut answer) = (prompt.concat(), answer.to_owned());
        let special = |text: &str| tokenizer.first_special_in(text).is_some();
        let mut mark = None;
        if self.options.escape_special && (special(&prompt) || special(&answer)) {
            let free = self.free_mark(&|mark| prompt.contains(mark) || answer.contains(mark))?;
            prompt = tokenizer.mark_special(&prompt, free);
            answer = tokenizer.mark_special(&answer, free);
            mark = Some(free);
        }
        let start = prompt.len();
        let said = start..start + answer.trim_end().len();
        let answers = vec![Answer { learned: start..start + answer.len(), said }];
        Ok(Marked { text: prompt + &answer, answers, mark })
    }
}

/// The first label that is not the token at its place, and whether it is the token after it.
fn first_other_label(input_ids: &[u32], labels: &[i64]) -> Option<(usize, bool)> {
    let learned = |i: &usize| labels[*i] != IGNORE_INDEX;
    let other = (0..labels.len()).filter(learned).find(|&i| labels[i] != i64::from(input_ids[i]))?;
    let next = |i: usize| input_ids.get(i + 1).is_some_and(|&id| labels[i] == i64::from(id));
    let mut all = (0..labels.len()).filter(learned).filter(|&i| i + 1 < input_ids.len());
    Some((other, next(other) && all.all(next)))
}

/// The error of a row of token ids that says nothing about its tokens.
fn no_labels(record: &Record) -> Error {
    match &record.body {
        Body::Labelled { label: Some(_), .. } => record
            .error("the row has a label as a whole, and this task is about tokens")
            .field("label")
            .fix("use --task classify or --task regress (score: --mode), or write one label per token as \"labels\""),
        _ => record
            .error("the field is missing")
            .field("labels")
            .fix("write one label per token, -100 where not supervised and not shifted"),
    }
    .into()
}

fn nothing_to_learn(record: &Record) -> Error {
    record
        .error("the row has nothing to learn: no supervised token")
        .fix("give it an answer (an output, an assistant turn, a label that is not -100), or pass --skip-empty")
        .into()
}

/// Adds the row to an error of the tokenizer or the template.
fn at_row(record: &Record, error: Error) -> Error {
    match error {
        Error::Input(inner) => {
            let text = inner.to_string();
            // "error[CODE] place: what": the place of the row comes first, the rest stays as it is.
            let text = text.split_once("] ").map_or(text.as_str(), |(_, rest)| rest).to_owned();
            record.error(text).into()
        }
        other => other,
    }
}

/// Rows that are equal to an earlier one: how many, and the first of them.
pub(super) fn repeated<'e>(examples: impl Iterator<Item = &'e Example>) -> (usize, Option<usize>) {
    let mut seen = BTreeSet::new();
    let (mut count, mut first) = (0, None);
    for example in examples {
        if !seen.insert(example.identity()) {
            count += 1;
            first = first.or(Some(example.record));
        }
    }
    (count, first)
}

#[cfg(test)]
mod case_tests;
#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod tests;
