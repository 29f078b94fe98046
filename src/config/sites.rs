//! The only list of the linear layers of a model, with their paths in Hugging Face checkpoints, to which
//! PEFT's rules apply.

use std::ops::{Index, IndexMut, Range};
use std::sync::Arc;

use super::model::ModelConfig;

/// The linear layers of a block, in the order of the forward pass, and that of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Queries, keys and values in one.
    Qkv,
    /// Output of attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up projection of the MLP, the factor of the gate.
    Up,
    /// Gate and up projection in one.
    GateUp,
    /// Output of the MLP.
    Down,
    /// The frozen layer of a head.
    Pooler,
}

/// One linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The block it is in; the number of blocks for that of the head.
    pub block: usize,
    /// Which layer of the block.
    pub slot: Slot,
    /// Its path in the model, as in `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether files have its weight as `[in_features, out_features]`.
    pub is_conv1d: bool,
}

impl Site {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        last_part(&self.path)
    }
}

/// The part of a path behind its last dot.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// All linear layers of a model that can have an adapter, block by block. A clone shares the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sites {
    all: Arc<[Site]>,
    /// Where each block starts, and the end.
    starts: Arc<[usize]>,
}

impl Sites {
    /// The linear layers of a model.
    pub fn of(model: &ModelConfig) -> Self {
        let (mut all, mut starts) = (Vec::new(), vec![0]);
        let paths = model.family.modules();
        for (block, spec) in model.blocks.iter().enumerate() {
            all.extend(spec.linears(model.hidden_size).map(|linear| Site {
                block,
                slot: linear.slot,
                path: format!("{}.{}", paths.block(block), (paths.linear)(linear.slot)),
                shape: linear.shape,
                bias: linear.bias,
                is_conv1d: paths.is_conv1d,
            }));
            starts.push(all.len());
        }
        all.extend(model.pooler().map(|pooler| Site {
            block: model.num_hidden_layers(),
            slot: Slot::Pooler,
            path: (paths.linear)(Slot::Pooler).to_owned(),
            shape: [model.hidden_size; 2],
            bias: pooler.bias,
            is_conv1d: false,
        }));
        starts.push(all.len());
        Self { all: all.into(), starts: starts.into() }
    }

    /// Number of the layers.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True for a model without blocks.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The layers by their number.
    pub fn iter(&self) -> std::slice::Iter<'_, Site> {
        self.all.iter()
    }

    /// The names of the layers, each once, in the order of the forward pass.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for site in self.iter() {
            if !names.contains(&site.name()) {
                names.push(site.name());
            }
        }
        names
    }

    /// Numbers of the layers of a block; behind the last block, of those of the head.
    pub fn of_block(&self, block: usize) -> Range<usize> {
        match (self.starts.get(block), self.starts.get(block + 1)) {
            (Some(&start), Some(&end)) => start..end,
            _ => self.len()..self.len(),
        }
    }

    /// Number of a layer in the model; none if the block has no such layer.
    pub fn number(&self, block: usize, slot: Slot) -> Option<usize> {
        self.of_block(block).find(|&number| self.all[number].slot == slot)
    }
}

impl Index<usize> for Sites {
    type Output = Site;

    fn index(&self, number: usize) -> &Site {
        &self.all[number]
    }
}

/// One value per linear layer, by the number of the layer in [`Sites`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerSite<X>(Vec<X>);

impl<X> PerSite<X> {
    /// The results of `make` for every layer, in order.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn try_of<E>(sites: &Sites, mut make: impl FnMut(usize, &Site) -> Result<X, E>) -> Result<Self, E> {
        sites.iter().enumerate().map(|(number, site)| make(number, site)).collect::<Result<_, E>>().map(Self)
    }

    /// The value of a layer.
    pub fn iter(&self) -> std::slice::Iter<'_, X> {
        self.0.iter()
    }

    /// The value of a layer, mutable.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, X> {
        self.0.iter_mut()
    }

    /// Maps every value with `make`.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn try_map<Y, E>(&self, make: impl FnMut(&X) -> Result<Y, E>) -> Result<PerSite<Y>, E> {
        self.0.iter().map(make).collect::<Result<_, E>>().map(PerSite)
    }
}

impl<X> FromIterator<X> for PerSite<X> {
    fn from_iter<I: IntoIterator<Item = X>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<X> Index<usize> for PerSite<X> {
    type Output = X;

    fn index(&self, number: usize) -> &X {
        &self.0[number]
    }
}

impl<X> Index<Range<usize>> for PerSite<X> {
    type Output = [X];

    fn index(&self, numbers: Range<usize>) -> &[X] {
        &self.0[numbers]
    }
}

impl<X> IndexMut<usize> for PerSite<X> {
    fn index_mut(&mut self, number: usize) -> &mut X {
        &mut self.0[number]
    }
}

impl<X> IndexMut<Range<usize>> for PerSite<X> {
    fn index_mut(&mut self, numbers: Range<usize>) -> &mut [X] {
        &mut self.0[numbers]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variant;

    #[test]
    fn layers_stand_block_by_block_in_the_order_of_the_forward_pass() {
        let model = variant("Qwen2.5-0.5B").unwrap().model_config().unwrap();
        let sites = Sites::of(&model);
        assert_eq!(sites.len(), 24 * 7);
        let names: Vec<_> = sites.of_block(3).map(|number| sites[number].name()).collect();
        assert_eq!(names, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
        let down = &sites[sites.number(23, Slot::Down).unwrap()];
        assert_eq!((down.path.as_str(), down.shape), ("model.layers.23.mlp.down_proj", [896, 4864]));
        let key = &sites[sites.number(0, Slot::K).unwrap()];
        assert_eq!((key.shape, key.bias, down.bias), ([128, 896], true, false));
        assert_eq!(sites.number(24, Slot::Q), None);
        // Random streams depend on this order.
        assert_eq!(sites.number(2, Slot::O), Some(2 * 7 + 3));
    }
}
