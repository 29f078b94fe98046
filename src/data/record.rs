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
    /// Names of the columns that have no meaning of their own.
    pub columns: Arc<[String]>,
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
}

impl Message {
    /// A turn without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
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
