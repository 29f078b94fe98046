//! The frozen weights of a decoder, and the one list of their names and shapes.

use crate::config::ModelConfig;
use crate::device::Tensor;
use crate::error::Result;
use crate::tensor::Real;

/// The linear layers of a block, in the order of the forward pass ([`crate::config::LINEAR_MODULES`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// The other factor of the MLP.
    Up,
    /// Output of the MLP.
    Down,
}

impl Module {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name of the layer, as `target_modules` has it.
    pub fn name(self) -> &'static str {
        crate::config::LINEAR_MODULES[self as usize]
    }

    /// Path within the block, as in Hugging Face checkpoints.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// A frozen linear layer.
#[derive(Debug)]
pub struct Linear<T: Real> {
    /// `[out_features, in_features]`.
    pub weight: Tensor<T>,
    /// `[1, out_features]`.
    pub bias: Option<Tensor<T>>,
}

/// The frozen weights of one block.
#[derive(Debug)]
pub struct BlockWeights<T: Real> {
    /// Norm before attention, `[1, hidden_size]`.
    pub input_layernorm: Tensor<T>,
    /// Norms of query and key heads, `[1, head_dim]` each.
    pub qk_norm: Option<(Tensor<T>, Tensor<T>)>,
    /// Norm before the MLP, `[1, hidden_size]`.
    pub post_attention_layernorm: Tensor<T>,
    /// The linear layers by [`Module`].
    pub linears: [Linear<T>; 7],
}

/// All frozen weights.
#[derive(Debug)]
pub struct Weights<T: Real> {
    /// `[vocab_size, hidden_size]`.
    pub embed_tokens: Tensor<T>,
    /// The blocks.
    pub blocks: Vec<BlockWeights<T>>,
    /// Final norm, `[1, hidden_size]`.
    pub norm: Tensor<T>,
    /// `[vocab_size, hidden_size]`; none where the embedding table is the head.
    pub lm_head: Option<Tensor<T>>,
}

/// What a weight is, for those who make one up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix.
    Matrix,
    /// A bias.
    Bias,
    /// The weight of a norm.
    Norm,
}

impl<T: Real> Weights<T> {
    /// Builds the weights of `config`, asking `source(name, [rows, cols], role)` for every tensor once, in file order.
    ///
    /// Vectors are `[1, n]`.
    ///
    /// # Errors
    /// The first error of `source`.
    pub fn build(
        config: &ModelConfig,
        mut source: impl FnMut(&str, [usize; 2], Role) -> Result<Tensor<T>>,
    ) -> Result<Self> {
        let hidden_size = config.hidden_size;
        let table = [config.vocab_size, hidden_size];
        let embed_tokens = source("model.embed_tokens.weight", table, Role::Matrix)?;
        let mut blocks = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            let mut norm =
                |name: &str, size| source(&format!("{prefix}.{name}.weight"), [1, size], Role::Norm);
            let input_layernorm = norm("input_layernorm", hidden_size)?;
            let qk_norm = match config.qk_norm {
                true => Some((
                    norm("self_attn.q_norm", config.head_dim)?,
                    norm("self_attn.k_norm", config.head_dim)?,
                )),
                false => None,
            };
            let post_attention_layernorm = norm("post_attention_layernorm", hidden_size)?;
            let mut linear = |module: Module| -> Result<Linear<T>> {
                let [rows, cols] = linear_shape(config, module);
                let name = format!("{prefix}.{}", module.path());
                let weight = source(&format!("{name}.weight"), [rows, cols], Role::Matrix)?;
                let has_bias = config.attention_bias && matches!(module, Module::Q | Module::K | Module::V);
                let bias = match has_bias {
                    true => Some(source(&format!("{name}.bias"), [1, rows], Role::Bias)?),
                    false => None,
                };
                Ok(Linear { weight, bias })
            };
            let linears = [
                linear(Module::Q)?,
                linear(Module::K)?,
                linear(Module::V)?,
                linear(Module::O)?,
                linear(Module::Gate)?,
                linear(Module::Up)?,
                linear(Module::Down)?,
            ];
            blocks.push(BlockWeights { input_layernorm, qk_norm, post_attention_layernorm, linears });
        }
        let norm = source("model.norm.weight", [1, hidden_size], Role::Norm)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(source("lm_head.weight", table, Role::Matrix)?),
        };
        Ok(Self { embed_tokens, blocks, norm, lm_head })
    }

    /// All tensors, in the order in which [`Weights::build`] asks for them.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        let mut all = vec![&self.embed_tokens];
        for block in &self.blocks {
            all.push(&block.input_layernorm);
            all.extend(block.qk_norm.iter().flat_map(|(q, k)| [q, k]));
            all.push(&block.post_attention_layernorm);
            for linear in &block.linears {
                all.push(&linear.weight);
                all.extend(linear.bias.as_ref());
            }
        }
        all.push(&self.norm);
        all.extend(self.lm_head.as_ref());
        all
    }

    /// The head: its own matrix, or the embedding table.
    pub fn head(&self) -> &Tensor<T> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

/// `[out_features, in_features]` of a linear layer.
pub fn linear_shape(config: &ModelConfig, module: Module) -> [usize; 2] {
    let (hidden_size, intermediate_size) = (config.hidden_size, config.intermediate_size);
    match module {
        Module::Q => [config.q_size(), hidden_size],
        Module::K | Module::V => [config.kv_size(), hidden_size],
        Module::O => [hidden_size, config.q_size()],
        Module::Gate | Module::Up => [intermediate_size, hidden_size],
        Module::Down => [hidden_size, intermediate_size],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variant;
    use crate::device::Device;

    #[test]
    fn shapes_agree_with_the_configuration_and_its_parameter_count() {
        for name in ["qwen3-tiny", "qwen2.5-0.5b", "qwen3-8b"] {
            let config = variant(name).unwrap().model_config().unwrap();
            for module in Module::ALL {
                let [rows, cols] = linear_shape(&config, module);
                assert_eq!(config.linear_shape(module.name()), Some((cols, rows)));
            }
            let device = Device::dry();
            let mut count = 0;
            let weights = Weights::<f32>::build(&config, |_, [rows, cols], _| {
                count += rows * cols;
                device.empty(rows, cols)
            })
            .unwrap();
            assert_eq!(count as u64, config.parameter_count());
            assert_eq!(device.memory().live_bytes, 4 * config.parameter_count());
            assert_eq!(weights.tensors().iter().map(|t| t.len()).sum::<usize>(), count);
        }
    }
}
