//! The linear layers of a block, in groups that share their input: one call of the op for a group.

use std::rc::Rc;

use super::super::adapter::Adapter;
use super::super::tables::RowSet;
use super::Pass;
use crate::config::Slot;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::{self, Apply, Dora, GradJob, InputGradient, Layer, Lora, LoraGrad};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

/// Some linear layers of a block by their numbers, and the rows that go through them.
pub(in crate::model) struct Group<'s, T: Real> {
    numbers: Vec<usize>,
    set: &'s RowSet<T>,
}

/// Adapters of a layer, by index.
type Loras<'s, T> = Vec<Option<Lora<'s, T>>>;

/// `x~ A^T` or `dxa` of the layers of a group: a narrow product of a tensor that may be made along with the tensor.
pub(in crate::model) struct Projection<T: Real> {
    products: Vec<Tensor<T>>,
    /// For the kernel that makes the tensor; none where the product is a launch of its own.
    fused: Option<FusedProjection>,
}

impl<T: Real> Projection<T> {
    /// Of no layer.
    pub(super) fn none() -> Self {
        Self { products: Vec::new(), fused: None }
    }

    /// For a tensor whose kernel makes nothing but it.
    pub(in crate::model) fn unfused(self) -> Self {
        Self { fused: None, ..self }
    }

    /// What the kernel that makes the tensor multiplies along the way.
    pub(super) fn fused(&self) -> Option<FusedProjection> {
        self.fused
    }
}

/// What the gradients of the adapters of one layer are made of, but for the input.
pub(super) struct PartialJob<'s, T: Real> {
    number: usize,
    set: &'s RowSet<T>,
    dy: Rc<Tensor<T>>,
    xa: Tensor<T>,
    dxa: Tensor<T>,
}

/// What the gradients of the adapters of one layer are made of: kept until the end of the block.
pub(super) struct Job<'s, T: Real> {
    of: PartialJob<'s, T>,
    x: Rc<Tensor<T>>,
}

impl<'s, T: Real> PartialJob<'s, T> {
    /// With the input of the layer, or the rows of it that go through the layer.
    pub(super) fn with_input(self, x: Rc<Tensor<T>>) -> Job<'s, T> {
        Job { of: self, x }
    }
}

impl<T: Real> Pass<'_, T> {
    /// Layers of block `layer` that share their input.
    pub(super) fn group<'s>(&self, layer: usize, slots: &[Slot], set: &'s RowSet<T>) -> Result<Group<'s, T>> {
        let numbers = slots.iter().map(|&slot| self.number(layer, slot)).collect::<Result<_>>()?;
        Ok(Group { numbers, set })
    }

    /// Number of a layer in the model.
    pub(super) fn number(&self, layer: usize, slot: Slot) -> Result<usize> {
        let number = self.weights.sites.number(layer, slot);
        number
            .ok_or_else(|| Error::shape("block", "slot", "a linear layer of the block", format!("{slot:?}")))
    }

    /// Whether an adapter has the layer of this number as a target.
    pub(super) fn is_trained(&self, number: usize) -> bool {
        self.adapters.iter().any(|adapter| adapter.params(number).is_some())
    }

    /// Empty tensors for `x~ A^T` of a group with `rows` rows, and the products that give it, for the kernel that makes the input.
    pub(in crate::model) fn xa(
        &self,
        group: &Group<'_, T>,
        rows: usize,
        place: &Device,
    ) -> Result<Projection<T>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let products = empty_each(&layers, |i| place.empty(rows, op.xa_cols(i)))?;
        let refs: Vec<_> = products.iter().collect();
        let fused = lora_matmul::projection(self.device, &op, &refs)?;
        Ok(Projection { products, fused })
    }

    /// The same for the gradients `dxa`, for the kernel that makes the gradient of the output.
    pub(super) fn dxa(&self, group: &Group<'_, T>, rows: usize) -> Result<Projection<T>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let products = empty_each(&layers, |i| self.device.empty(rows, op.xa_cols(i)))?;
        let refs: Vec<_> = products.iter().collect();
        let fused = lora_matmul::projection_back(self.device, &op, &refs)?;
        Ok(Projection { products, fused })
    }

    /// `y` of every layer with its `x~ A^T`, which is made here unless it was made with `x`.
    pub(in crate::model) fn linears(
        &self,
        group: &Group<'_, T>,
        x: &Tensor<T>,
        xa: Projection<T>,
        place: &Device,
    ) -> Result<Vec<(Tensor<T>, Tensor<T>)>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let Projection { products: mut xa, fused } = xa;
        if fused.is_none() {
            let mut refs: Vec<_> = xa.iter_mut().collect();
            lora_matmul::project(self.device, &op, x, &mut refs)?;
        }
        let mut y = empty_each(&layers, |i| place.empty(x.rows(), layers[i].weight.rows()))?;
        let args = y.iter_mut().zip(&xa).map(|(y, xa)| Apply { y, xa });
        lora_matmul::apply(self.device, &op, x, &mut args.collect::<Vec<_>>())?;
        Ok(y.into_iter().zip(xa).collect())
    }

    /// `y` of every layer again, from the saved `x~ A^T`.
    pub(super) fn linears_again(
        &self,
        group: &Group<'_, T>,
        x: &Tensor<T>,
        xa: &[Tensor<T>],
    ) -> Result<Vec<Tensor<T>>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let mut outputs = empty_each(&layers, |i| self.device.empty(x.rows(), layers[i].weight.rows()))?;
        let args = outputs.iter_mut().zip(xa).map(|(y, xa)| Apply { y, xa });
        lora_matmul::recompute(self.device, &op, x, &mut args.collect::<Vec<_>>())?;
        Ok(outputs)
    }

    /// `x~ A^T` of the one layer of a group, again.
    pub(super) fn projected(&self, group: &Group<'_, T>, x: &Tensor<T>) -> Result<Tensor<T>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let mut xa = self.device.empty(x.rows(), op.xa_cols(0))?;
        lora_matmul::project(self.device, &op, x, &mut [&mut xa])?;
        Ok(xa)
    }

    /// `dxa` of every layer, which is made here unless it was made with `dy`, and the gradient of the input they share, where it
    /// is wanted.
    pub(super) fn linears_back(
        &self,
        group: &Group<'_, T>,
        dy: &[&Tensor<T>],
        dxa: Projection<T>,
        dx: Option<&mut Tensor<T>>,
    ) -> Result<Vec<Tensor<T>>> {
        let loras = self.loras(group);
        let layers = self.layers(group, &loras);
        let op = lora_matmul::Group::new(&layers, &group.set.rows);
        let Projection { products: mut dxa, fused } = dxa;
        if fused.is_none() {
            let mut refs: Vec<_> = dxa.iter_mut().collect();
            lora_matmul::project_back(self.device, &op, dy, &mut refs)?;
        }
        if let Some(dx) = dx {
            let refs: Vec<_> = dxa.iter().collect();
            lora_matmul::backward_input(self.device, &op, InputGradient { dy, dxa: &refs, dx })?;
        }
        Ok(dxa)
    }

    /// What the gradients of a layer need, but for its input: `dy`, `xa` and `dxa`.
    pub(super) fn partial<'s>(
        &self,
        layer: usize,
        slot: Slot,
        set: &'s RowSet<T>,
        (dy, xa, dxa): (Rc<Tensor<T>>, Tensor<T>, Tensor<T>),
    ) -> Result<PartialJob<'s, T>> {
        Ok(PartialJob { number: self.number(layer, slot)?, set, dy, xa, dxa })
    }

    /// Adds to the gradients of the adapters of block `layer`.
    pub(super) fn gradients(
        &self,
        layer: usize,
        jobs: &[Job<'_, T>],
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<()> {
        let groups: Vec<Group<'_, T>> =
            jobs.iter().map(|Job { of, .. }| Group { numbers: vec![of.number], set: of.set }).collect();
        let loras: Vec<_> = groups.iter().map(|group| self.loras(group)).collect();
        let mut of_layers: Vec<Vec<Option<LoraGrad<'_, T::Stat>>>> =
            jobs.iter().map(|_| Vec::new()).collect();
        let numbers = self.weights.sites.of_block(layer);
        for adapter in grads {
            for (number, params) in numbers.clone().zip(&mut adapter.params_mut()[numbers.clone()]) {
                let Some(at) = jobs.iter().position(|job| job.of.number == number) else { continue };
                of_layers[at].push(params.as_mut().map(|p| LoraGrad {
                    a: &mut p.a,
                    b: &mut p.b,
                    magnitude: p.magnitude.as_mut(),
                }));
            }
        }
        let mut all = Vec::new();
        for (((job, group), loras), grads) in jobs.iter().zip(&groups).zip(&loras).zip(&mut of_layers) {
            let PartialJob { dy, xa, dxa, .. } = &job.of;
            let [layer] = exactly(self.layers(group, loras))?;
            all.push(GradJob { layer, rows: &job.of.set.rows, x: &job.x, dy, xa, dxa, grads });
        }
        lora_matmul::gradients(self.device, &mut all)
    }

    /// The frozen layer of a head, for the rows that it reads.
    pub(in crate::model) fn pooler_group(&self) -> Result<Group<'_, T>> {
        self.group(self.num_blocks(), &[Slot::Pooler], self.sequences())
    }

    /// The rows that a head for labels reads: one for every sequence.
    pub(in crate::model) fn sequences(&self) -> &RowSet<T> {
        self.tables.pooled.as_ref().unwrap_or(&self.tables.supervised)
    }

    /// Goes back through that layer, from the gradient `dy` of its output: adds to the gradients of its adapter, and gives the
    /// gradient of its input.
    pub(in crate::model) fn pooler_backward(
        &self,
        x: Rc<Tensor<T>>,
        dy: Tensor<T>,
        xa: Tensor<T>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Tensor<T>> {
        let (group, layer) = (self.pooler_group()?, self.num_blocks());
        let mut dx = self.like(&x)?;
        let dxa = self.dxa(&group, dy.rows())?.unfused();
        let [dxa] = exactly(self.linears_back(&group, &[&dy], dxa, Some(&mut dx))?)?;
        let job = self.partial(layer, Slot::Pooler, group.set, (Rc::new(dy), xa, dxa))?.with_input(x);
        self.gradients(layer, &[job], grads)?;
        Ok(dx)
    }

    fn loras(&self, group: &Group<'_, T>) -> Vec<Loras<'_, T>> {
        let of_layer = |&number: &usize| {
            let mut loras = Vec::new();
            for (index, adapter) in self.adapters.iter().enumerate() {
                let norm = self.of_adapters.dora_norm(index, number);
                loras.push(adapter.params(number).map(|params| Lora {
                    a: &params.a,
                    b: &params.b,
                    scaling: T::Stat::from_f64(params.scaling),
                    dora:
                        params.magnitude.as_ref().zip(norm).map(|(magnitude, norm)| Dora { magnitude, norm }),
                }));
            }
            loras
        };
        group.numbers.iter().map(of_layer).collect()
    }

    fn layers<'s>(&'s self, group: &'s Group<'s, T>, loras: &'s [Loras<'s, T>]) -> Vec<Layer<'s, T>> {
        let of_layer = |(&number, loras): (&usize, &'s Loras<'s, T>)| {
            let linear = &self.weights.linears[number];
            Layer {
                weight: linear.weight.dense(),
                bias: linear.bias.as_ref(),
                loras,
                adapters: self.of_adapters.on_gpu(number),
                magnitudes: self.of_adapters.magnitudes(number),
                dropout: self.dropout(number),
            }
        };
        group.numbers.iter().zip(loras).map(of_layer).collect()
    }
}

/// A tensor for each of some layers.
fn empty_each<T: Real>(
    layers: &[Layer<'_, T>],
    make: impl Fn(usize) -> Result<Tensor<T>>,
) -> Result<Vec<Tensor<T>>> {
    (0..layers.len()).map(make).collect()
}

/// As an array what there are `N` of.
pub(super) fn exactly<X, const N: usize>(items: Vec<X>) -> Result<[X; N]> {
    let count = items.len();
    items.try_into().map_err(|_| Error::shape("linears", "items", N, count))
}
