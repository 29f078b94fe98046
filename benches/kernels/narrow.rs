//! Adapters of a group of layers, for kernels that make its narrow products.

use half::bf16;
use tanren::batch::AdapterRows;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::gpu::{Factors, LayerAdapters};
use tanren::ops::lora_matmul::{Group, Layer, Lora, Rows, projection, projection_back};
use tanren::ops::projection::FusedProjection;

use super::common::LORA_R;
use super::harness::{Cost, random};

/// Layers `[out_features, in_features]` with one adapter of rank 16 each, and the outputs of their narrow products.
pub(crate) struct Narrow {
    weights: Vec<Tensor<bf16>>,
    tables: Vec<LayerAdapters>,
    rows: Rows,
    pub(crate) outputs: Vec<Tensor<bf16>>,
    factors: Vec<(Tensor<bf16>, Tensor<bf16>)>,
}

/// What narrow products add to the kernel that makes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extra(Cost);

impl Extra {
    pub(crate) fn on_top_of(self, cost: Cost) -> Cost {
        Cost { flops: cost.flops + self.0.flops, bytes: cost.bytes + self.0.bytes }
    }
}

impl Narrow {
    /// Layers of these shapes and `rows` rows.
    pub(crate) fn new(device: &Device, rows: usize, shapes: &[[usize; 2]]) -> Result<Self> {
        let (mut weights, mut tables, mut outputs, mut factors) = (vec![], vec![], vec![], vec![]);
        for &[out, input] in shapes {
            weights.push(device.empty(out, input)?);
            let (a, b_t) = (random(device, LORA_R, input, 0.02, 80)?, random(device, LORA_R, out, 0.02, 81)?);
            let of_layer = Factors { a: &a, b_t: &b_t, grads: None, scaling: 1.0 };
            tables.push(LayerAdapters::new(device, [out, input], &[Some(of_layer)])?);
            outputs.push(device.empty(rows, LORA_R)?);
            factors.push((a, b_t));
        }
        let run = [AdapterRows { adapter: 0, rows: 0..rows }];
        let rows = Rows::new(device, rows, &run, None)?;
        Ok(Self { weights, tables, rows, outputs, factors })
    }

    /// What the products of [`Narrow::new`] cost.
    pub(crate) fn cost(rows: usize, shapes: &[[usize; 2]], back: bool) -> Extra {
        let numbers: usize = shapes.iter().map(|&[out, input]| if back { out } else { input }).sum();
        Extra(Cost {
            flops: 2 * (rows * LORA_R * numbers) as u64,
            bytes: 2 * (LORA_R * (numbers + rows * shapes.len())) as u64,
        })
    }

    /// Calls `f` with the group of the layers.
    pub(crate) fn with_group<R>(&self, f: impl FnOnce(&Group<'_, bf16>) -> R) -> R {
        let lora = |(a, b)| [Some(Lora { a, b, scaling: 1.0, dora: None })];
        let loras: Vec<_> = self.factors.iter().map(|(a, b)| lora((a, b))).collect();
        let layers = self.weights.iter().zip(&self.tables).zip(&loras);
        let layers = layers.map(|((weight, table), loras)| Layer {
            weight,
            bias: None,
            loras,
            adapters: Some(table),
            magnitudes: None,
            dropout: None,
        });
        f(&Group::new(&layers.collect::<Vec<_>>(), &self.rows))
    }

    /// For the kernel that makes the input, or with `back` the gradient of the output.
    pub(crate) fn project(&self, device: &Device, back: bool) -> Result<Option<FusedProjection>> {
        let outputs: Vec<_> = self.outputs.iter().collect();
        self.with_group(|group| {
            if back { projection_back(device, group, &outputs) } else { projection(device, group, &outputs) }
        })
    }
}
