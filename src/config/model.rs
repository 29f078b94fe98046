//! The shape of a model, as its `config.json` gives it.
//!
//! A `config.json` may need maths that this engine does not support. Ignoring such a key would silently train
//! another model than the user's, so every key that changes the maths is either supported or an error that
//! names the key. The defaults of absent keys are those of the configuration classes of transformers. The
//! parsers are in `families`.

use super::base_dropout::BaseDropout;
use super::block::{BlockSpec, EmbedSpec, LinearSpec, NormKind, NormSpec, RopeScaling, RopeSpec};
use super::families::Family;
use super::head::{HeadSpec, LabelHeadSpec, PoolerSpec};
use super::sites::Slot;
use super::values::BaseDropoutMode;
use crate::error::{Error, InputError, Result};

/// Most blocks of a model.
pub(super) const MAX_LAYERS: usize = 1024;
/// Most labels of a head.
pub(super) const MAX_LABELS: usize = 1 << 17;

/// The shape and constants of a model. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Where the parts of the model stand in its files.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding table; may exceed the number of tokens of the tokenizer.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// What comes before the blocks.
    pub embed: EmbedSpec,
    /// The blocks.
    pub blocks: Vec<BlockSpec>,
    /// What reads the final states.
    pub head: HeadSpec,
    /// The head for labels that models of this family have.
    pub label_head: LabelHeadSpec,
    /// Whether the head of a language model is the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token that starts a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Dropout of the model itself.
    pub base_dropout: BaseDropout,
    /// Padding token; unused here, since nothing is padded.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// True if the weights of `other` have the same shapes as this model's. Constants without effect on
    /// shapes (`rope_theta`, the context length, token ids) may differ, since fine-tuned models change them.
    pub fn has_shape_of(&self, other: &Self) -> bool {
        // Every field is named, so that a new field must be classified here.
        let Self {
            family,
            hidden_size,
            vocab_size,
            embed: EmbedSpec { positions, token_types, norm },
            blocks,
            tie_word_embeddings,
            head: _,
            label_head: _,
            max_position_embeddings: _,
            initializer_range: _,
            bos_token_id: _,
            eos_token_ids: _,
            pad_token_id: _,
            base_dropout: _,
        } = self;
        let same_blocks = blocks.len() == other.blocks.len()
            && blocks.iter().zip(&other.blocks).all(|(own, other)| {
                own.linears(*hidden_size).eq(other.linears(*hidden_size))
                    && own.attn.qk_norm == other.attn.qk_norm
                    && own.attn.head_dim == other.attn.head_dim
            });
        *family == other.family
            && *hidden_size == other.hidden_size
            && *vocab_size == other.vocab_size
            && *positions == other.embed.positions
            && *token_types == other.embed.token_types
            && norm.is_some() == other.embed.norm.is_some()
            && same_blocks
            && *tie_word_embeddings == other.tie_word_embeddings
    }

    /// The same model with a head that predicts next tokens.
    ///
    /// # Errors
    /// An input error if models of its family have none.
    pub fn with_token_head(self) -> Result<Self> {
        match self.family.is_language_model() {
            true => Ok(Self { head: HeadSpec::Tokens, ..self }),
            false => Error::input("MODEL", format!("{} models predict no next tokens", self.family))
                .field("model")
                .expected("a language model")
                .fix("use --task classify or --task regress (score: --mode), or another model")
                .into(),
        }
    }

    /// The same model with as much of its dropout applied in training as `mode` says.
    ///
    /// # Errors
    /// An input error with the key of `config.json` that would have to be applied and cannot be.
    pub fn with_base_dropout(mut self, mode: BaseDropoutMode) -> Result<Self> {
        self.base_dropout = self.base_dropout.with_mode(mode)?;
        Ok(self)
    }

    /// The same model with a head for this many labels.
    pub fn with_label_head(mut self, num_labels: usize) -> Self {
        self.label_head.num_labels = num_labels;
        Self { head: HeadSpec::Labels(self.label_head), ..self }
    }

    /// The frozen layer of the head, if there is one.
    pub fn pooler(&self) -> Option<PoolerSpec> {
        match &self.head {
            HeadSpec::Labels(head) => head.pooler,
            HeadSpec::Tokens => None,
        }
    }

    /// Longest sequence in tokens: that the model was made for, or that its scaled rotation stretches it to.
    pub fn max_sequence_length(&self) -> usize {
        let made_for = self.max_position_embeddings;
        let stretched = |factor: f64, from: usize| (factor * from as f64).min((1u64 << 28) as f64) as usize;
        match self.blocks.first().and_then(|block| block.attn.rope).map(|rope| rope.scaling) {
            Some(RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. }) => {
                made_for.max(stretched(factor, made_for))
            }
            Some(RopeScaling::Yarn { factor, original_max_positions, .. }) => {
                made_for.max(stretched(factor, original_max_positions))
            }
            // Files of Llama 3.1 say the stretched length.
            Some(RopeScaling::Llama3 { .. } | RopeScaling::Default) | None => made_for,
        }
    }

    /// Number of blocks.
    pub fn num_hidden_layers(&self) -> usize {
        self.blocks.len()
    }

    /// The same model with this many blocks: as many of the first ones as there are, then the last one again.
    pub fn with_num_hidden_layers(mut self, count: usize) -> Self {
        if let Some(&last) = self.blocks.last() {
            self.blocks.resize(count, last);
        }
        self
    }

    /// The same model with `change` made to every block.
    pub fn with_blocks(mut self, change: impl Fn(&mut BlockSpec)) -> Self {
        self.blocks.iter_mut().for_each(change);
        self
    }

    /// Weights of the linear layers of all blocks, without biases.
    pub fn linear_weights(&self) -> u64 {
        self.linears().map(|linear| linear.shape[0] as u64 * linear.shape[1] as u64).sum()
    }

    /// The linear layers that can have an adapter, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = LinearSpec> {
        let pooler = self.pooler().map(|pooler| LinearSpec {
            slot: Slot::Pooler,
            shape: [self.hidden_size; 2],
            bias: pooler.bias,
        });
        self.blocks.iter().flat_map(|block| block.linears(self.hidden_size)).chain(pooler)
    }

    /// The norms in the order in which the stream meets them: one before every sublayer, or of the embeddings, and
    /// one behind the last sublayer.
    pub fn norms(&self) -> impl Iterator<Item = NormSpec> {
        let first = self.embed.norm.or_else(|| self.blocks.first().map(|block| block.norm));
        let others = self.blocks.iter().flat_map(|block| [block.norm; 2]);
        first.into_iter().chain(others)
    }

    /// Whether the head is a matrix of its own, as large as the embedding table.
    pub fn has_own_head(&self) -> bool {
        self.head == HeadSpec::Tokens && !self.tie_word_embeddings
    }

    /// Number of frozen parameters; tied ones count once. Those of a trained head are not counted.
    pub fn parameter_count(&self) -> u64 {
        let n = |size: usize| size as u64;
        let biases: u64 = self.linears().filter(|linear| linear.bias).map(|linear| n(linear.shape[0])).sum();
        let norms: u64 = self.norms().map(|norm| n(self.hidden_size) * (1 + u64::from(norm.bias))).sum();
        let pooler_norm = self.pooler().and_then(|pooler| pooler.norm);
        let pooler_norm = pooler_norm.map_or(0, |norm| n(self.hidden_size) * (1 + u64::from(norm.bias)));
        let head_norms = |block: &BlockSpec| if block.attn.qk_norm { 2 * n(block.attn.head_dim) } else { 0 };
        let rows = [
            self.vocab_size,
            if self.has_own_head() { self.vocab_size } else { 0 },
            self.embed.positions.map_or(0, |positions| positions.rows),
            self.embed.token_types.unwrap_or(0),
        ];
        self.linear_weights()
            + biases
            + norms
            + pooler_norm
            + self.blocks.iter().map(head_norms).sum::<u64>()
            + rows.map(n).iter().sum::<u64>() * n(self.hidden_size)
    }

    /// Checks that every size is sane and that sizes fit each other, so that no later product can overflow.
    ///
    /// # Errors
    /// An input error of class `MODEL` that names the key.
    pub fn validate(&self) -> Result<()> {
        let Some(block) = self.blocks.first() else {
            return self.size_fault("num_hidden_layers", 0, MAX_LAYERS).into();
        };
        // Blocks differ in what is no size.
        let BlockSpec { attn, mlp, .. } = block;
        for (key, size, limit) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", mlp.size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers(), MAX_LAYERS),
            ("num_attention_heads", attn.heads, 1024),
            ("num_key_value_heads", attn.kv_heads, 1024),
            ("head_dim", attn.head_dim, 1024),
            ("vocab_size", self.vocab_size, 4_000_000),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 28),
            ("type_vocab_size", self.embed.token_types.unwrap_or(1), 1 << 16),
        ] {
            if size == 0 || size > limit {
                return self.size_fault(key, size, limit).into();
            }
        }
        if !attn.heads.is_multiple_of(attn.kv_heads) {
            return Error::input("MODEL", "query heads must share the key/value heads evenly")
                .field(self.family.key("num_key_value_heads"))
                .got(attn.kv_heads)
                .expected(format!("a divisor of num_attention_heads = {}", attn.heads))
                .fix("check that config.json belongs to this model")
                .into();
        }
        if attn.rope.is_some() && !attn.head_dim.is_multiple_of(2) {
            return Error::input("MODEL", "RoPE rotates pairs")
                .field("head_dim")
                .got(attn.head_dim)
                .expected("an even number")
                .fix("check hidden_size, num_attention_heads and head_dim in config.json")
                .into();
        }
        let norms = self.norms().map(|norm| {
            let key = if norm.kind == NormKind::Rms { "rms_norm_eps" } else { "layer_norm_eps" };
            (key, norm.eps, norm.eps > 0.0 && norm.eps < 1.0, "a number above 0 and below 1")
        });
        let thetas =
            self.blocks.iter().filter_map(|block| block.attn.rope).map(|RopeSpec { theta, .. }| {
                ("rope_theta", theta, theta >= 1.0 && theta.is_finite(), "a number of at least 1")
            });
        let range = self.initializer_range;
        let range = ("initializer_range", range, range >= 0.0 && range.is_finite(), "a number of at least 0");
        for (key, value, good, expected) in norms.chain(thetas).chain([range]) {
            if !good {
                return Error::input("MODEL", "the number is out of range")
                    .field(self.family.key(key))
                    .got(value)
                    .expected(expected)
                    .fix("check that config.json belongs to this model")
                    .into();
            }
        }
        Ok(())
    }

    fn size_fault(&self, key: &'static str, size: usize, limit: usize) -> InputError {
        let error = Error::input("MODEL", "the size is out of range").field(self.family.key(key)).got(size);
        error.expected(format!("1 to {limit}")).fix("check that config.json belongs to this model")
    }
}
