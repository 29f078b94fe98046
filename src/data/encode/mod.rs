//! Rows become token ids with labels: which tokens the model is trained on is decided here, from the spans that are emitted.
//!
//! - plain: `encode(input + "\n") + encode(output) + [eos]`, after the BOS token where the tokenizer puts one by itself;
//! - chat: `encode(template of [user: input], asking for an answer) + encode(output) + [end of turn]`;
//! - conversations: every assistant turn is an answer to the template of all turns before it.
//!
//! Prompt and answer are encoded apart, so the prompt ids are those seen at inference. Labels of the prompt are -100. The end
//! of turn is the special token that the template puts after an assistant's text, or the tokenizer's EOS if it puts none.

mod chat;
mod fit;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::audit::{Audit, RowNotes};
use super::jsonl::{Body, Message, Record};
use super::template::Renderer;
use super::tokenizer::Tokenizer;
use crate::batch::IGNORE_INDEX;
use crate::error::{Error, Result};

/// How input and output become one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Input, line end, output.
    Plain,
    /// The chat template of the model.
    Chat,
}

/// What happens to a row longer than the limit. The answer is never shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// An error that lists the first such lines.
    Error,
    /// The beginning of the prompt is cut; the template and the answers stay whole.
    PromptLeft,
    /// The row is left out and counted.
    Skip,
}

/// The choices of an [`Encoder`].
#[derive(Debug, Clone)]
pub struct EncodeOptions {
    /// How input and output become one text. Conversations need [`Format::Chat`].
    pub format: Format,
    /// Most tokens of an example.
    pub max_seq_length: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Encode special tokens written in the data as ordinary text.
    pub escape_special: bool,
    /// Leave out rows with nothing to learn instead of failing.
    pub skip_empty: bool,
    /// Rows of the model's embedding, the limit for ids of tokenised rows; the tokenizer's size if none.
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
            truncation: Truncation::Error,
            escape_special: false,
            skip_empty: false,
            vocab_size: None,
            template_variables: Map::new(),
        }
    }
}

/// One row, ready to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// One label per token, -100 where not supervised, not shifted.
    pub labels: Vec<i64>,
    /// Tokens before the first supervised one.
    pub prompt_len: usize,
    /// Index of its row among the records.
    pub record: usize,
    /// Whether its prompt was cut.
    pub truncated: bool,
}

impl Example {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Tokens that carry loss. The first token never does: nothing comes before it that could predict it.
    pub fn supervised(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORE_INDEX).count()
    }
}

/// Turns rows into examples. Made once per run, used from many threads.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    renderer: Option<&'a Renderer>,
    options: EncodeOptions,
    /// What the template sees besides the conversation.
    variables: Map<String, Value>,
    /// How the template treats assistant turns; none without a template.
    turn: Option<chat::TurnStyle>,
    /// The token that ends an answer.
    end: (String, u32),
}

/// Tokens and labels of one row, of whatever length.
#[derive(Debug, Default)]
struct Labelled {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

impl Labelled {
    fn prompt(&mut self, ids: &[u32]) {
        self.input_ids.extend_from_slice(ids);
        self.labels.resize(self.input_ids.len(), IGNORE_INDEX);
    }

    fn answer(&mut self, ids: &[u32]) {
        self.input_ids.extend_from_slice(ids);
        self.labels.extend(ids.iter().map(|&id| i64::from(id)));
    }
}

/// What became of one row.
enum Outcome {
    Example(Example, RowNotes),
    Empty(RowNotes),
    TooLong { len: usize, answer_len: usize, notes: RowNotes },
}

impl<'a> Encoder<'a> {
    /// An encoder; with a renderer it asks the template once how it ends an assistant turn.
    ///
    /// # Errors
    /// [`Error::Input`] if [`Format::Chat`] has no template, the template does not render a simple conversation, or no
    /// token that ends an answer is known.
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
        let turn = renderer.map(|r| chat::TurnStyle::probe(r, &variables, tokenizer)).transpose()?;
        let end = turn.as_ref().and_then(|turn| turn.end.clone()).or_else(|| tokenizer.eos_token());
        let Some(end) = end else {
            return Error::input("TOKENIZER", "no token ends an answer")
                .field("eos_token")
                .expected("a token of the vocabulary")
                .fix("set \"eos_token\" in tokenizer_config.json")
                .into();
        };
        Ok(Self { tokenizer, renderer, options, variables, turn, end })
    }

    /// The token that ends an answer, in training and as the stop of generation, and its id.
    pub fn end_token(&self) -> (&str, u32) {
        (&self.end.0, self.end.1)
    }

    /// Encodes all rows on all cores; order is kept. `progress` is called with the number of rows finished since its last call,
    /// from any thread.
    ///
    /// # Errors
    /// The error of the first bad row in row order; or one [`Error::Input`] that lists up to five rows that are too long.
    pub fn encode_all(
        &self,
        records: &[Record],
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<(Vec<Example>, Audit)> {
        let outcomes: Vec<Result<Outcome>> = records
            .par_iter()
            .enumerate()
            .map(|(i, record)| {
                let outcome = self.encode_row(i, record);
                progress(1);
                outcome
            })
            .collect();
        let mut examples = Vec::with_capacity(records.len());
        let mut audit = Audit::default();
        let mut too_long = Vec::new();
        for (record, outcome) in records.iter().zip(outcomes) {
            match outcome? {
                Outcome::Example(example, notes) => {
                    audit.add(record, &example, notes);
                    examples.push(example);
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
        if examples.is_empty() {
            return Error::input("DATA", "no row is left")
                .got(format!("{} rows skipped", records.len()))
                .fix("raise --max-seq-length, or check that the rows have answers")
                .into();
        }
        audit.finish(&examples, records);
        Ok((examples, audit))
    }

    /// The ids that ask for the answer of `record`: its input, its conversation without a last assistant turn, or its
    /// tokens before the first supervised one. Of any length.
    ///
    /// # Errors
    /// [`Error::Input`] that names the row.
    pub fn encode_prompt(&self, record: &Record) -> Result<Vec<u32>> {
        let ids = match &record.body {
            Body::InputOutput { input, .. } => self.prompt_ids(input),
            Body::Messages(turns) => {
                let asked = match turns.split_last() {
                    Some((last, before)) if last.role == chat::ASSISTANT => before,
                    _ => turns,
                };
                self.conversation_prompt_ids(asked)
            }
            Body::Tokenised { input_ids, labels } => {
                let prompt = labels.iter().position(|&label| label != IGNORE_INDEX);
                return Ok(input_ids[..prompt.unwrap_or(input_ids.len())].to_vec());
            }
        };
        ids.map_err(|e| at_row(record, e))
    }

    /// The ids of an answer with the token that ends it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_answer(&self, answer: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_open_answer(answer)?;
        ids.push(self.end.1);
        Ok(ids)
    }

    /// The ids of an answer without the token that ends it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_open_answer(&self, answer: &str) -> Result<Vec<u32>> {
        self.encode_text(answer)
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        if self.options.escape_special {
            self.tokenizer.encode_plain(text)
        } else {
            self.tokenizer.encode(text)
        }
    }

    fn encode_row(&self, index: usize, record: &Record) -> Result<Outcome> {
        let notes = RowNotes { special: self.special_in(record) };
        let (labelled, truncated) = match &record.body {
            Body::InputOutput { input, output } => {
                self.input_output(input, output).map_err(|e| at_row(record, e))?
            }
            Body::Messages(turns) => self.messages(turns).map_err(|e| at_row(record, e))?,
            Body::Tokenised { input_ids, labels } => self.tokenised(record, input_ids, labels)?,
        };
        let Labelled { input_ids, labels } = labelled;
        let prompt_len = labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(labels.len());
        let example = Example { input_ids, labels, prompt_len, record: index, truncated };
        Ok(if example.supervised() == 0 {
            Outcome::Empty(notes)
        } else if example.len() > self.options.max_seq_length {
            let answer_len = example.len() - example.prompt_len;
            Outcome::TooLong { len: example.len(), answer_len, notes }
        } else {
            Outcome::Example(example, notes)
        })
    }

    /// The first special token written in the texts of a row.
    fn special_in(&self, record: &Record) -> Option<String> {
        let find = |text: &str| self.tokenizer.first_special_in(text).map(|range| text[range].to_owned());
        match &record.body {
            Body::InputOutput { input, output } => find(input).or_else(|| find(output)),
            Body::Messages(turns) => turns.iter().find_map(|turn| find(&turn.content)),
            Body::Tokenised { .. } => None,
        }
    }

    fn prompt_ids(&self, input: &str) -> Result<Vec<u32>> {
        match self.options.format {
            Format::Chat => self.conversation_prompt_ids(&[Message::new(chat::USER, input)]),
            Format::Plain => {
                let bos = self.tokenizer.bos_token().filter(|_| self.tokenizer.adds_bos());
                let mut ids: Vec<u32> = bos.into_iter().map(|(_, id)| id).collect();
                ids.extend(self.encode_text(&format!("{input}\n"))?);
                Ok(ids)
            }
        }
    }
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

#[cfg(test)]
mod tests;
