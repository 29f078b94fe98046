//! The frozen weights of a decoder, and the one list of their names and shapes.

use super::head::{Head, TokenHead};
use crate::config::block::BlockSpec;
use crate::config::{ModelConfig, PerSite, Site, Sites};
use crate::device::Tensor;
use crate::error::Result;
use crate::tensor::Real;

/// How the weight of a linear layer is held.
#[derive(Debug)]
pub enum Weight<T: Real> {
    /// Number by number.
    Dense(Tensor<T>),
}

impl<T: Real> Weight<T> {
    /// The numbers themselves.
    pub fn dense(&self) -> &Tensor<T> {
        match self {
            Self::Dense(tensor) => tensor,
        }
    }

    /// The tensors that hold it.
    fn tensors(&self) -> impl Iterator<Item = &Tensor<T>> {
        match self {
            Self::Dense(tensor) => std::iter::once(tensor),
        }
    }
}

/// A frozen linear layer.
#[derive(Debug)]
pub struct Linear<T: Real> {
    /// `[out_features, in_features]`.
    pub weight: Weight<T>,
    /// `[1, out_features]`.
    pub bias: Option<Tensor<T>>,
}

/// The frozen weights of one block.
#[derive(Debug)]
pub struct BlockWeights<T: Real> {
    /// What it is made of.
    pub spec: BlockSpec,
    /// Norms of query and key heads, `[1, head_dim]` each.
    pub qk_norm: Option<(Tensor<T>, Tensor<T>)>,
}

/// All frozen weights.
#[derive(Debug)]
pub struct Weights<T: Real> {
    /// `[vocab_size, hidden_size]`.
    pub embed_tokens: Tensor<T>,
    /// The norms in the order in which the stream meets them, `[1, hidden_size]` each: one before every sublayer, and one
    /// behind the last.
    pub norms: Vec<Tensor<T>>,
    /// The blocks, beside their norms and linear layers.
    pub blocks: Vec<BlockWeights<T>>,
    /// The list of the linear layers.
    pub sites: Sites,
    /// The linear layers of all blocks.
    pub linears: PerSite<Linear<T>>,
    /// What reads the final states.
    pub head: Head<T>,
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
        let paths = config.family.modules();
        let embed_tokens = source(&format!("{}.weight", paths.embed_tokens), table, Role::Matrix)?;
        let sites = Sites::of(config);
        let (mut blocks, mut norms, mut linears) = (Vec::new(), Vec::new(), Vec::new());
        for layer in 0..config.num_hidden_layers {
            let (spec, prefix) = (config.block(layer), paths.block(layer));
            let mut norm =
                |name: &str, size| source(&format!("{prefix}.{name}.weight"), [1, size], Role::Norm);
            norms.push(norm(paths.norm_before_attention, hidden_size)?);
            let qk_norm = match spec.attn.qk_norm {
                true => Some((
                    norm(paths.qk_norm[0], spec.attn.head_dim)?,
                    norm(paths.qk_norm[1], spec.attn.head_dim)?,
                )),
                false => None,
            };
            norms.push(norm(paths.norm_before_mlp, hidden_size)?);
            for number in sites.of_block(layer) {
                let Site { path, shape, bias, .. } = &sites[number];
                let weight = Weight::Dense(source(&format!("{path}.weight"), *shape, Role::Matrix)?);
                let bias = match bias {
                    true => Some(source(&format!("{path}.bias"), [1, shape[0]], Role::Bias)?),
                    false => None,
                };
                linears.push(Linear { weight, bias });
            }
            blocks.push(BlockWeights { spec, qk_norm });
        }
        let linears = linears.into_iter().collect();
        norms.push(source(&format!("{}.weight", paths.final_norm), [1, hidden_size], Role::Norm)?);
        let weight = match config.tie_word_embeddings {
            true => None,
            false => Some(source(&format!("{}.weight", paths.head), table, Role::Matrix)?),
        };
        let head = Head::Tokens(TokenHead { weight });
        Ok(Self { embed_tokens, norms, blocks, sites, linears, head })
    }

    /// All tensors, in the order in which [`Weights::build`] asks for them.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        let mut all = vec![&self.embed_tokens];
        for (layer, block) in self.blocks.iter().enumerate() {
            all.push(&self.norms[2 * layer]);
            all.extend(block.qk_norm.iter().flat_map(|(q, k)| [q, k]));
            all.push(&self.norms[2 * layer + 1]);
            for linear in &self.linears[self.sites.of_block(layer)] {
                all.extend(linear.weight.tensors());
                all.extend(linear.bias.as_ref());
            }
        }
        all.extend(self.norms.last());
        all.extend(self.head.tensors());
        all
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
