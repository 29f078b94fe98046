//! The linear layers of a block, in groups that share their input: one call of the op for a group.

use super::super::adapter::Adapter;
use super::super::weights::Module;
use super::{Pass, RowSet};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::gemm::Write;
use crate::ops::lora_matmul::{
    self, Dropout, Forward, Frozen, LayerBackward, Lora, LoraGrad, LoraMatmul, Recompute,
};
use crate::tensor::Real;

/// Some linear layers of block `layer`, and the rows that go through them.
pub(super) struct Group<'s, T: Real, const N: usize> {
    pub(super) layer: usize,
    pub(super) modules: [Module; N],
    pub(super) set: &'s RowSet<T>,
}

/// Adapters of a layer, by index.
type Loras<'s, T> = Vec<Option<Lora<'s, T>>>;

impl<T: Real> Pass<'_, T> {
    /// `y` and `x~ A^T` of every layer, from where `y_place` and `xa_place` say.
    pub(super) fn linears<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        x: &Tensor<T>,
        [y_place, xa_place]: [Device; 2],
    ) -> Result<[(Tensor<T>, Tensor<T>); N]> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let mut outputs = try_map(&layers, |layer| {
            let y = y_place.empty(x.rows(), layer.frozen.weight.rows())?;
            Ok((y, xa_place.empty(x.rows(), layer.xa_cols(self.device))?))
        })?;
        let mut args = outputs.each_mut().map(|(y, xa)| Forward { y, xa });
        lora_matmul::forward(self.device, x, &layers, &mut args)?;
        Ok(outputs)
    }

    /// `y` of every layer again, from the saved `x~ A^T`.
    pub(super) fn linears_again<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        x: &Tensor<T>,
        xa: &[Tensor<T>; N],
    ) -> Result<[Tensor<T>; N]> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let mut outputs = try_map(&layers, |l| self.device.empty(x.rows(), l.frozen.weight.rows()))?;
        let args = outputs.iter_mut().zip(xa).map(|(y, xa)| Recompute { y, xa });
        lora_matmul::recompute(self.device, x, &layers, &mut args.collect::<Vec<_>>())?;
        Ok(outputs)
    }

    /// `x~ A^T` of one layer alone.
    pub(super) fn projection(&self, group: &Group<'_, T, 1>, x: &Tensor<T>) -> Result<Tensor<T>> {
        let loras = self.loras(group);
        let [layer] = self.layers(group, &loras);
        let mut xa = self.device.empty(x.rows(), layer.xa_cols(self.device))?;
        lora_matmul::project(self.device, x, &layer, &mut xa)?;
        Ok(xa)
    }

    /// Goes back through a group: `saved` is `(dy, xa)` of every layer; see [`lora_matmul::backward`].
    pub(super) fn linears_backward<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        x: &Tensor<T>,
        saved: [(&Tensor<T>, &Tensor<T>); N],
        dx: Option<(&mut Tensor<T>, Write)>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<()> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let mut of_layers: [Vec<Option<LoraGrad<'_, T::Stat>>>; N] = std::array::from_fn(|_| Vec::new());
        for adapter in grads {
            for (module, params) in Module::ALL.into_iter().zip(adapter.block_mut(group.layer)) {
                let Some(at) = group.modules.iter().position(|&m| m == module) else { continue };
                of_layers[at].push(params.as_mut().map(|p| LoraGrad {
                    a: &mut p.a,
                    b: &mut p.b,
                    magnitude: p.magnitude.as_mut(),
                }));
            }
        }
        let args = saved.into_iter().zip(&mut of_layers);
        let mut args: Vec<_> = args.map(|((dy, xa), grads)| LayerBackward { dy, xa, grads }).collect();
        lora_matmul::backward(self.device, &layers, lora_matmul::Backward { x, dx, layers: &mut args })
    }

    fn loras<const N: usize>(&self, group: &Group<'_, T, N>) -> [Loras<'_, T>; N] {
        group.modules.map(|module| {
            let mut loras = Vec::new();
            for (adapter, norms) in self.adapters.iter().zip(&self.dora_norms) {
                let norm = norms[group.layer][module as usize].as_ref();
                loras.push(adapter.params(group.layer, module).map(|params| Lora {
                    a: &params.a,
                    b: &params.b,
                    scaling: T::Stat::from_f64(adapter.config().scaling()),
                    dora: params.magnitude.as_ref().zip(norm),
                }));
            }
            loras
        })
    }

    fn layers<'s, const N: usize>(
        &'s self,
        group: &'s Group<'s, T, N>,
        loras: &'s [Loras<'s, T>; N],
    ) -> [LoraMatmul<'s, T>; N] {
        let p = self.adapters.first().map_or(0.0, |a| a.config().dropout);
        std::array::from_fn(|i| {
            let module = group.modules[i] as usize;
            let linear = &self.weights.blocks[group.layer].linears[module];
            let number = (group.layer * Module::ALL.len() + module) as u32;
            let keys = &group.set.keys;
            LoraMatmul {
                frozen: Frozen { weight: &linear.weight, bias: linear.bias.as_ref() },
                loras: &loras[i],
                rows: &group.set.adapter_rows,
                dropout: self.dropout.and_then(|d| Dropout::new(p, d.seed, d.step, number, keys)),
            }
        })
    }
}

/// What `make` makes of every item, or its first error.
fn try_map<I, R, const N: usize>(items: &[I; N], make: impl FnMut(&I) -> Result<R>) -> Result<[R; N]> {
    let made: Vec<R> = items.iter().map(make).collect::<Result<_>>()?;
    // As many as items.
    made.try_into().map_err(|made: Vec<R>| Error::shape("linears", "items", N, made.len()))
}
