//! The linear layers of a block, in groups that share their input: one call of the op for a group.

use super::super::adapter::Adapter;
use super::super::tables::RowSet;
use super::Pass;
use crate::config::Slot;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::gpu::Project;
use crate::ops::lora_matmul::{self, Apply, Frozen, GradJob, Lora, LoraGrad, LoraMatmul, OnGpu, xa_cols};
use crate::tensor::Real;

/// Some linear layers of a block by their numbers, and the rows that go through them.
pub(super) struct Group<'s, T: Real, const N: usize> {
    numbers: [usize; N],
    set: &'s RowSet<T>,
}

/// Adapters of a layer, by index.
type Loras<'s, T> = Vec<Option<Lora<'s, T>>>;

/// `x~ A^T` or `dxa` of the layers of a group: a narrow product of a tensor that may be made along with the tensor.
pub(in crate::model) struct Narrow<T: Real, const N: usize> {
    pub(super) products: [Tensor<T>; N],
    /// What the kernel that makes the tensor has to make of it; none where that is a step of its own.
    pub(super) made_by: Option<Project>,
}

impl<T: Real, const N: usize> Narrow<T, N> {
    /// For a tensor whose kernel makes nothing but it.
    pub(super) fn apart(self) -> Self {
        Self { made_by: None, ..self }
    }
}

/// What the gradients of the adapters of one layer are made of.
pub(super) struct Job<'t, T: Real> {
    pub(super) slot: Slot,
    pub(super) set: &'t RowSet<T>,
    pub(super) x: &'t Tensor<T>,
    pub(super) dy: &'t Tensor<T>,
    pub(super) xa: &'t Tensor<T>,
    pub(super) dxa: &'t Tensor<T>,
}

impl<T: Real> Pass<'_, T> {
    /// Layers of block `layer` that share their input.
    pub(super) fn group<'s, const N: usize>(
        &self,
        layer: usize,
        slots: [Slot; N],
        set: &'s RowSet<T>,
    ) -> Result<Group<'s, T, N>> {
        Ok(Group { numbers: try_array(|i| self.number(layer, slots[i]))?, set })
    }

    /// Number of a layer in the model.
    pub(super) fn number(&self, layer: usize, slot: Slot) -> Result<usize> {
        let number = self.weights.sites.number(layer, slot);
        number
            .ok_or_else(|| Error::shape("block", "slot", "a linear layer of the block", format!("{slot:?}")))
    }

    /// Room for `x~ A^T` of a group with `rows` rows, and the products that give it, for the kernel that makes the input.
    pub(super) fn xa<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        rows: usize,
        place: &Device,
    ) -> Result<Narrow<T, N>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let products = try_array(|i| place.empty(rows, xa_cols(self.device, &layers, i)))?;
        let made_by = lora_matmul::projection(&group.set.device, &layers, &products.each_ref())?;
        Ok(Narrow { products, made_by })
    }

    /// The same for the gradients `dxa`, for the kernel that makes the gradient of the output.
    pub(super) fn dxa<const N: usize>(&self, group: &Group<'_, T, N>, rows: usize) -> Result<Narrow<T, N>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let products = try_array(|i| self.device.empty(rows, xa_cols(self.device, &layers, i)))?;
        let made_by = lora_matmul::projection_back(&group.set.device, &layers, &products.each_ref())?;
        Ok(Narrow { products, made_by })
    }

    /// `y` of every layer with its `x~ A^T`, which is made here unless it was made with `x`.
    pub(super) fn linears<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        x: &Tensor<T>,
        xa: Narrow<T, N>,
        place: &Device,
    ) -> Result<[(Tensor<T>, Tensor<T>); N]> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let Narrow { products: mut xa, made_by } = xa;
        if made_by.is_none() {
            lora_matmul::project(&group.set.device, x, &layers, &mut xa.each_mut())?;
        }
        let mut y: [Tensor<T>; N] = try_array(|i| place.empty(x.rows(), layers[i].frozen.weight.rows()))?;
        let args = y.iter_mut().zip(&xa).map(|(y, xa)| Apply { y, xa });
        lora_matmul::apply(&group.set.device, x, &layers, &mut args.collect::<Vec<_>>())?;
        let mut pairs = y.into_iter().zip(xa);
        try_array(|_| pairs.next().ok_or_else(|| Error::shape("linears", "layers", N, "fewer")))
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
        let mut outputs = try_array(|i| self.device.empty(x.rows(), layers[i].frozen.weight.rows()))?;
        let args = outputs.iter_mut().zip(xa).map(|(y, xa)| Apply { y, xa });
        lora_matmul::recompute(&group.set.device, x, &layers, &mut args.collect::<Vec<_>>())?;
        Ok(outputs)
    }

    /// `x~ A^T` of one layer alone.
    pub(super) fn projection(&self, group: &Group<'_, T, 1>, x: &Tensor<T>) -> Result<Tensor<T>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let mut xa = self.device.empty(x.rows(), xa_cols(self.device, &layers, 0))?;
        lora_matmul::project(&group.set.device, x, &layers, &mut [&mut xa])?;
        Ok(xa)
    }

    /// `dxa` of every layer, which is made here unless it was made with `dy`, and the gradient of the input they share, where it
    /// is wanted.
    pub(super) fn linears_back<const N: usize>(
        &self,
        group: &Group<'_, T, N>,
        dy: [&Tensor<T>; N],
        dxa: Narrow<T, N>,
        dx: Option<&mut Tensor<T>>,
    ) -> Result<[Tensor<T>; N]> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let Narrow { products: mut dxa, made_by } = dxa;
        if made_by.is_none() {
            lora_matmul::project_back(&group.set.device, &layers, &dy, &mut dxa.each_mut())?;
        }
        if let Some(dx) = dx {
            lora_matmul::backward_input(&group.set.device, &layers, &dy, &dxa.each_ref(), dx)?;
        }
        Ok(dxa)
    }

    /// Adds to the gradients of the adapters of block `layer`.
    pub(super) fn gradients(
        &self,
        layer: usize,
        jobs: &[Job<'_, T>],
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<()> {
        let groups: Result<Vec<_>> = jobs.iter().map(|job| self.group(layer, [job.slot], job.set)).collect();
        let groups: Vec<Group<'_, T, 1>> = groups?;
        let loras: Vec<_> = groups.iter().map(|group| self.loras(group)).collect();
        let mut of_layers: Vec<Vec<Option<LoraGrad<'_, T::Stat>>>> =
            jobs.iter().map(|_| Vec::new()).collect();
        let numbers = self.weights.sites.of_block(layer);
        for adapter in grads {
            for (number, params) in numbers.clone().zip(&mut adapter.params_mut()[numbers.clone()]) {
                let Some(at) = groups.iter().position(|group| group.numbers == [number]) else { continue };
                of_layers[at].push(params.as_mut().map(|p| LoraGrad {
                    a: &mut p.a,
                    b: &mut p.b,
                    magnitude: p.magnitude.as_mut(),
                }));
            }
        }
        let mut all = Vec::new();
        for (((job, group), loras), grads) in jobs.iter().zip(&groups).zip(&loras).zip(&mut of_layers) {
            let [layer] = self.layers(group, loras);
            all.push(GradJob { layer, x: job.x, dy: job.dy, xa: job.xa, dxa: job.dxa, grads });
        }
        lora_matmul::gradients(self.device, &mut all)
    }

    fn loras<const N: usize>(&self, group: &Group<'_, T, N>) -> [Loras<'_, T>; N] {
        group.numbers.map(|number| {
            let mut loras = Vec::new();
            for (index, adapter) in self.adapters.iter().enumerate() {
                let norm = self.of_adapters.dora_norm(index, number);
                loras.push(adapter.params(number).map(|params| Lora {
                    a: &params.a,
                    b: &params.b,
                    scaling: T::Stat::from_f64(params.scaling),
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
        std::array::from_fn(|i| {
            let number = group.numbers[i];
            let linear = &self.weights.linears[number];
            LoraMatmul {
                frozen: Frozen { weight: &linear.weight, bias: linear.bias.as_ref() },
                loras: &loras[i],
                rows: &group.set.adapter_rows,
                dropout: self.dropout(number, &group.set.keys),
                gpu: group.set.gpu.as_ref().map(|rows| OnGpu {
                    adapters: self.of_adapters.on_gpu(number),
                    magnitudes: self.of_adapters.magnitudes(number),
                    rows,
                    key: self.of_adapters.dropout_key(number),
                    live_rows: group.set.device.live_rows(),
                }),
            }
        })
    }
}

/// What `make` makes of every index, or its first error.
pub(super) fn try_array<R, const N: usize>(make: impl FnMut(usize) -> Result<R>) -> Result<[R; N]> {
    let made: Vec<R> = (0..N).map(make).collect::<Result<_>>()?;
    // As many as indices.
    made.try_into().map_err(|made: Vec<R>| Error::shape("linears", "items", N, made.len()))
}
