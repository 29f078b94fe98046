//! The frozen weights of a model, and the one list of their names and shapes.

use super::head::{Head, TokenHead};
use super::label_head::LabelHead;
use crate::config::block::{BlockSpec, NormSpec};
use crate::config::head::HeadSpec;
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

/// The frozen weights of a norm of the stream.
#[derive(Debug)]
pub struct NormWeights<T: Real> {
    /// What it computes.
    pub spec: NormSpec,
    /// `[1, hidden_size]`.
    pub weight: Tensor<T>,
    /// `[1, hidden_size]`.
    pub bias: Option<Tensor<T>>,
}

/// All frozen weights.
#[derive(Debug)]
pub struct Weights<T: Real> {
    /// `[vocab_size, hidden_size]`.
    pub embed_tokens: Tensor<T>,
    /// `[positions, hidden_size]`.
    pub embed_positions: Option<Tensor<T>>,
    /// `[token types, hidden_size]`.
    pub embed_types: Option<Tensor<T>>,
    /// The norms in the order in which the stream meets them: one before every sublayer, and one behind the last.
    pub norms: Vec<NormWeights<T>>,
    /// The blocks, beside their norms and linear layers.
    pub blocks: Vec<BlockWeights<T>>,
    /// The list of the linear layers.
    pub sites: Sites,
    /// The linear layers of all blocks.
    pub linears: PerSite<Linear<T>>,
    /// What reads the final states.
    pub head: Head<T>,
}

/// What a weight is, for those who make one up or read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix.
    Matrix,
    /// The matrix of a linear layer whose transpose, `[in_features, out_features]`, stands in files.
    Conv1d,
    /// A bias.
    Bias,
    /// The weight of a norm.
    Norm,
}

impl Role {
    /// The shape in files of a tensor that is `[rows, cols]` here.
    pub fn stored_shape(self, [rows, cols]: [usize; 2]) -> Vec<usize> {
        match self {
            Self::Matrix => vec![rows, cols],
            Self::Conv1d => vec![cols, rows],
            Self::Bias | Self::Norm => vec![cols],
        }
    }
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
        let embed_positions = match config.embed.positions {
            Some(positions) => {
                let shape = [positions.rows, hidden_size];
                Some(source(&format!("{}.weight", paths.embed_positions), shape, Role::Matrix)?)
            }
            None => None,
        };
        let embed_types = match config.embed.token_types {
            Some(types) => {
                Some(source(&format!("{}.weight", paths.embed_types), [types, hidden_size], Role::Matrix)?)
            }
            None => None,
        };
        let sites = Sites::of(config);
        let specs: Vec<NormSpec> = config.norms().collect();
        let norm = |index: usize, source: &mut Source<'_, T>| {
            norm_at(specs[index], &paths.norm(config, index), hidden_size, source)
        };
        let (mut blocks, mut norms, mut linears) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, &spec) in config.blocks.iter().enumerate() {
            let prefix = paths.block(layer);
            norms.push(norm(2 * layer, &mut source)?);
            let mut head_norm = |part: usize| {
                let name = format!("{prefix}.{}.weight", paths.qk_norm[part]);
                source(&name, [1, spec.attn.head_dim], Role::Norm)
            };
            let qk_norm = match spec.attn.qk_norm {
                true => Some((head_norm(0)?, head_norm(1)?)),
                false => None,
            };
            norms.push(norm(2 * layer + 1, &mut source)?);
            for number in sites.of_block(layer) {
                linears.push(linear(&sites[number], &mut source)?);
            }
            blocks.push(BlockWeights { spec, qk_norm });
        }
        norms.push(norm(2 * blocks.len(), &mut source)?);
        let head = match &config.head {
            HeadSpec::Tokens if config.tie_word_embeddings => Head::Tokens(TokenHead { weight: None }),
            HeadSpec::Tokens => {
                let weight = source(&format!("{}.weight", paths.head), table, Role::Matrix)?;
                Head::Tokens(TokenHead { weight: Some(weight) })
            }
            HeadSpec::Labels(spec) => {
                for number in sites.of_block(blocks.len()) {
                    linears.push(linear(&sites[number], &mut source)?);
                }
                let norm = spec.pooler.and_then(|pooler| pooler.norm);
                let norm = norm.map(|spec| norm_at(spec, paths.pooler_norm, hidden_size, &mut source));
                Head::Labels(LabelHead { spec: *spec, pooler_norm: norm.transpose()?, own: None })
            }
        };
        let linears = linears.into_iter().collect();
        Ok(Self { embed_tokens, embed_positions, embed_types, norms, blocks, sites, linears, head })
    }

    /// All tensors, in the order in which [`Weights::build`] asks for them.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        let mut all = vec![&self.embed_tokens];
        all.extend(&self.embed_positions);
        all.extend(&self.embed_types);
        for (layer, block) in self.blocks.iter().enumerate() {
            all.extend(self.norms[2 * layer].tensors());
            all.extend(block.qk_norm.iter().flat_map(|(q, k)| [q, k]));
            all.extend(self.norms[2 * layer + 1].tensors());
            for linear in &self.linears[self.sites.of_block(layer)] {
                all.extend(linear.weight.tensors());
                all.extend(linear.bias.as_ref());
            }
        }
        all.extend(self.norms.last().into_iter().flat_map(NormWeights::tensors));
        for linear in &self.linears[self.sites.of_block(self.blocks.len())] {
            all.extend(linear.weight.tensors());
            all.extend(linear.bias.as_ref());
        }
        all.extend(self.head.tensors());
        all
    }
}

/// Gives the tensor of a name, which has a shape and a role.
type Source<'a, T> = dyn FnMut(&str, [usize; 2], Role) -> Result<Tensor<T>> + 'a;

/// Asks for the weights of a norm.
fn norm_at<T: Real>(
    spec: NormSpec,
    path: &str,
    size: usize,
    source: &mut Source<'_, T>,
) -> Result<NormWeights<T>> {
    let weight = source(&format!("{path}.weight"), [1, size], Role::Norm)?;
    let bias = match spec.bias {
        true => Some(source(&format!("{path}.bias"), [1, size], Role::Bias)?),
        false => None,
    };
    Ok(NormWeights { spec, weight, bias })
}

/// Asks for the weights of a linear layer.
fn linear<T: Real>(site: &Site, source: &mut Source<'_, T>) -> Result<Linear<T>> {
    let Site { path, shape, bias, is_conv1d, .. } = site;
    let matrix = if *is_conv1d { Role::Conv1d } else { Role::Matrix };
    let weight = Weight::Dense(source(&format!("{path}.weight"), *shape, matrix)?);
    let bias = match bias {
        true => Some(source(&format!("{path}.bias"), [1, shape[0]], Role::Bias)?),
        false => None,
    };
    Ok(Linear { weight, bias })
}

impl<T: Real> NormWeights<T> {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor<T>> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variant;
    use crate::device::Device;

    #[test]
    fn shapes_agree_with_the_configuration_and_its_parameter_count() {
        for name in ["qwen3-tiny", "qwen2.5-0.5b", "qwen3-8b", "gpt2", "bert-base", "xlm-r-base"] {
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
