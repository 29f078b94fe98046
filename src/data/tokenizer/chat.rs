//! The chat templates of a model folder, in the order in which `transformers` looks for them.

use serde_json::{Map, Value};

use super::Tokenizer;
use crate::error::{Error, Result};

/// The name of the template that is used unless a conversation has tools.
const DEFAULT: &str = "default";

/// The name of the template for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// A chat template and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTemplate {
    /// Its name; a single template is the default.
    pub name: String,
    /// Its text.
    pub source: String,
    /// The file it comes from.
    pub origin: String,
}

impl NamedTemplate {
    pub(super) fn default(source: String, origin: String) -> Self {
        Self { name: DEFAULT.into(), source, origin }
    }
}

/// The templates under the key `chat_template` of a JSON file: one text, or a list of `{name, template}`.
pub(super) fn templates_in(config: &Map<String, Value>, origin: &str) -> Vec<NamedTemplate> {
    match config.get("chat_template") {
        Some(Value::String(source)) => vec![NamedTemplate::default(source.clone(), origin.to_owned())],
        Some(Value::Array(list)) => {
            let text = |entry: &Value, key: &str| entry.get(key)?.as_str().map(str::to_owned);
            let entry = |entry| {
                let (name, source) = (text(entry, "name")?, text(entry, "template")?);
                Some(NamedTemplate { name, source, origin: origin.to_owned() })
            };
            list.iter().filter_map(entry).collect()
        }
        Some(Value::Object(by_name)) => {
            let entry = |(name, source): (&String, &Value)| {
                let source = source.as_str()?.to_owned();
                Some(NamedTemplate { name: name.clone(), source, origin: origin.to_owned() })
            };
            by_name.iter().filter_map(entry).collect()
        }
        _ => Vec::new(),
    }
}

impl Tokenizer {
    /// The chat template of the model, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.template(DEFAULT).map(|template| template.source.as_str())
    }

    /// The file the chat template came from.
    pub fn chat_template_origin(&self) -> &str {
        self.template(DEFAULT).map_or("tokenizer_config.json", |template| template.origin.as_str())
    }

    /// The chat template for conversations with tools, if the model has a separate one.
    pub fn tool_template(&self) -> Option<&NamedTemplate> {
        self.template(TOOL_USE)
    }

    /// All templates of the model, by their names.
    pub fn templates(&self) -> &[NamedTemplate] {
        &self.templates
    }

    /// Refuses a model with templates of which none is the default.
    ///
    /// # Errors
    /// [`Error::Input`] of class TEMPLATE with the names of the templates.
    pub fn check_templates(&self) -> Result<()> {
        let Some(first) = self.templates.first().filter(|_| self.chat_template().is_none()) else {
            return Ok(());
        };
        let names: Vec<&str> = self.templates.iter().map(|template| template.name.as_str()).collect();
        Error::input("TEMPLATE", "the model has named chat templates, and none is the default")
            .path(&first.origin)
            .got(names.join(", "))
            .expected("a template named \"default\"")
            .fix("write the one you want into chat_template.jinja in the model's folder")
            .into()
    }

    fn template(&self, name: &str) -> Option<&NamedTemplate> {
        self.templates.iter().find(|template| template.name == name)
    }
}
