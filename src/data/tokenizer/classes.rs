//! Behaviour of the tokenizer classes of `transformers` beyond their files: default special tokens, and which
//! classes apply `add_bos_token`.
//!
//! Facts of transformers 4.57.6: `models/*/tokenization_*_fast.py` for the defaults, and the result of
//! `AutoTokenizer` for folders with every combination of class, `add_bos_token`, `add_eos_token` and
//! post-processor.

use serde_json::{Map, Value};

/// Kinds of tokenizer classes with different behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Llama,
    Gemma,
    Cohere,
    GptNeoX,
    Gpt2,
    Qwen2,
    /// All others: `tokenizer.json` defines what is added.
    Other,
}

impl Class {
    /// The class that `tokenizer_config.json` names, or else that of the model type.
    pub(super) fn of(config: &Map<String, Value>, model_type: Option<&str>) -> Self {
        let named = config.get("tokenizer_class").and_then(Value::as_str);
        match named.map(|name| name.strip_suffix("Fast").unwrap_or(name)) {
            Some("LlamaTokenizer" | "CodeLlamaTokenizer") => Self::Llama,
            Some("GemmaTokenizer") => Self::Gemma,
            Some("CohereTokenizer") => Self::Cohere,
            Some("GPTNeoXTokenizer") => Self::GptNeoX,
            Some("GPT2Tokenizer") => Self::Gpt2,
            Some("Qwen2Tokenizer") => Self::Qwen2,
            Some(_) => Self::Other,
            None => Self::of_model(model_type.unwrap_or_default()),
        }
    }

    fn of_model(model_type: &str) -> Self {
        match model_type {
            "llama" | "mistral" | "ministral" | "mixtral" | "code_llama" | "phi3" | "phimoe" | "arcee"
            | "diffllama" | "jamba" | "jetmoe" | "persimmon" | "zamba" | "zamba2" | "deepseek_v2"
            | "deepseek_v3" | "ernie4_5" | "llama4_text" => Self::Llama,
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" | "gemma3n_text" | "recurrent_gemma" => Self::Gemma,
            "cohere" | "cohere2" => Self::Cohere,
            "gpt_neox" | "olmo" | "olmo2" | "olmoe" | "stablelm" | "mpt" | "mamba" | "mamba2" | "rwkv" => {
                Self::GptNeoX
            }
            "gpt2" | "gpt_neo" | "gptj" | "gpt_bigcode" | "granite" | "granitemoe" | "olmo3"
            | "starcoder2" => Self::Gpt2,
            "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" | "qwen3_next" => Self::Qwen2,
            _ => Self::Other,
        }
    }

    /// Whether BOS is added before a text (`add_bos_token`), if the class decides it.
    pub(super) fn adds_bos(self, config: &Map<String, Value>) -> Option<bool> {
        let configured = config.get("add_bos_token").and_then(Value::as_bool);
        match self {
            Self::Llama | Self::Gemma | Self::Cohere => Some(configured.unwrap_or(true)),
            Self::GptNeoX => Some(configured.unwrap_or(false)),
            Self::Gpt2 | Self::Qwen2 | Self::Other => None,
        }
    }

    /// The special tokens of the class, for roles that no file mentions.
    pub(super) fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            Self::Gemma => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
            ],
            Self::Cohere => &[
                ("unk_token", "<UNK>"),
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ],
            Self::GptNeoX | Self::Gpt2 => &[("unk_token", END), ("bos_token", END), ("eos_token", END)],
            Self::Qwen2 => &[("unk_token", END), ("eos_token", END), ("pad_token", END)],
            Self::Other => &[],
        }
    }
}
