//! What a row of a data file says, whatever tool wrote it: a pair, a conversation, a text, or token ids.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::Error;

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The file it came from.
    pub file: Arc<Path>,
    /// Physical line in that file, from 1.
    pub line: usize,
    /// What the row asks for and answers.
    pub body: Body,
    /// The row's `"meta"` object, and every single value of the row that has no meaning of its own. Lists and objects are kept
    /// as their JSON text.
    pub meta: Map<String, Value>,
    /// Names of the columns that have no meaning of their own, and of keys inside turns that nobody reads.
    pub columns: Arc<[String]>,
    /// Keys whose list or object was written as JSON text.
    pub json_texts: Arc<[String]>,
}

impl Record {
    /// An input error of class DATA at this row.
    pub(super) fn error(&self, what: impl Into<String>) -> crate::error::InputError {
        Error::input("DATA", what).path(&self.file).line(self.line)
    }
}

/// The forms of rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A question and its answer.
    InputOutput {
        /// The prompt, not supervised.
        input: String,
        /// The answer, supervised.
        output: String,
        /// Which keys the two came from.
        form: PairForm,
    },
    /// Turns of a conversation.
    Messages(Conversation),
    /// A text that is learned from its first token to its last.
    Text(String),
    /// Token ids made elsewhere.
    Tokenised {
        /// The tokens.
        input_ids: Vec<u32>,
        /// One label per token, -100 where not supervised, not shifted.
        labels: Vec<i64>,
    },
    /// Token ids made elsewhere, and what the whole sequence is labelled with.
    Labelled {
        /// The tokens.
        input_ids: Vec<u32>,
        /// The type of every token; all 0 if it is empty.
        token_type_ids: Vec<u32>,
        /// The label, if the row has one.
        label: Option<RowLabel>,
    },
}

/// The label of a row, as it stands there.
#[derive(Debug, Clone, PartialEq)]
pub enum RowLabel {
    /// The name of a class.
    Name(String),
    /// The number of a class, or a number to predict.
    Number(f64),
    /// One number per output.
    Numbers(Vec<f64>),
}

/// Where the two texts of a pair came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairForm {
    /// `input` and `output`.
    InputOutput,
    /// `instruction`, `input` and `output` (Alpaca).
    Instruction,
    /// `prompt` and `completion` (TRL).
    PromptCompletion,
}

impl PairForm {
    /// What stands between the two texts in the plain format.
    pub fn separator(self) -> &'static str {
        match self {
            Self::InputOutput | Self::Instruction => "\n",
            Self::PromptCompletion => "",
        }
    }

    /// The two texts as turns.
    pub fn turns(self, input: &str, output: &str) -> [Message; 2] {
        let [asks, answers] = self.keys();
        [("user", input, asks), ("assistant", output, answers)]
            .map(|(role, text, key)| Message::new(role, text).at(TurnPlace::key(key)))
    }

    /// The keys of the two texts.
    fn keys(self) -> [&'static str; 2] {
        match self {
            Self::InputOutput => ["input", "output"],
            Self::Instruction => ["instruction", "output"],
            Self::PromptCompletion => ["prompt", "completion"],
        }
    }
}

/// Turns of a conversation, and what the chat template is to know besides.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The turns, in order.
    pub turns: Vec<Message>,
    /// Variables of the chat template that this row sets: `tools`, `documents`, and what `chat_template_kwargs` says.
    pub variables: Map<String, Value>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the chat template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// True if the row takes this turn out of the loss (`weight`, `train`, `loss`, `loss_mask`, a prompt of turns).
    pub masked: bool,
    /// All other keys (`tool_calls`, `name`, ...), handed to the chat template.
    pub extra: Map<String, Value>,
    /// Where it stands in its row.
    pub place: TurnPlace,
}

/// Where a turn stands in its row, for messages: `messages[2]`, `conversations[0]`, or a key that is a turn
/// by itself (`output`).
#[derive(Debug, Clone, Copy, Default)]
pub struct TurnPlace {
    key: &'static str,
    index: Option<usize>,
    /// The key of its text, where it is an object.
    text: &'static str,
    /// The key that its calls of tools were read from.
    calls: &'static str,
}

/// Two turns are the same if they say the same, wherever they stand.
impl PartialEq for TurnPlace {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl TurnPlace {
    /// A key of the row that is a turn by itself.
    pub fn key(key: &'static str) -> Self {
        Self { key, ..Self::default() }
    }

    /// An element of the list `key` whose text is its value `text`.
    pub(super) fn element(key: &'static str, index: usize, text: &'static str) -> Self {
        Self { key, index: Some(index), text, calls: "tool_calls" }
    }

    /// The same where its text is a call of a tool.
    pub(super) fn with_calls_in_text(self) -> Self {
        Self { calls: self.text, ..self }
    }

    /// The turn as a field of its row.
    pub fn field(&self) -> String {
        match (self.key, self.index) {
            ("", _) => "messages".to_owned(),
            (key, None) => key.to_owned(),
            (key, Some(index)) => format!("{key}[{index}]"),
        }
    }

    /// The key of the row that it belongs to.
    pub fn list(&self) -> &'static str {
        if self.key.is_empty() { "messages" } else { self.key }
    }

    /// Its key `key`.
    pub fn field_of(&self, key: &str) -> String {
        let field = self.field();
        if self.index.is_some() && !key.is_empty() { format!("{field}.{key}") } else { field }
    }

    /// The key of its text.
    pub(super) fn text_key(&self) -> &'static str {
        self.text
    }

    /// Its text.
    pub fn text_field(&self) -> String {
        self.field_of(self.text)
    }

    /// Its calls of tools.
    pub fn calls_field(&self) -> String {
        self.field_of(self.calls)
    }
}

impl Message {
    /// A turn without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// The same at a place of its row.
    #[must_use]
    pub fn at(self, place: TurnPlace) -> Self {
        Self { place, ..self }
    }
}

impl Conversation {
    /// Turns without variables.
    pub fn new(turns: Vec<Message>) -> Self {
        Self { turns, variables: Map::new() }
    }

    /// The tools that the template is told of, be it an empty list.
    pub fn tools(&self) -> Option<&Value> {
        self.variables.get("tools").filter(|tools| !tools.is_null())
    }
}

impl Body {
    /// True for rows that are written for a chat model: conversations and instructions.
    pub fn is_chat(&self) -> bool {
        matches!(self, Self::Messages(_) | Self::InputOutput { form: PairForm::Instruction, .. })
    }
}
