//! The LoRA matmul of every group of a Qwen3 block, forward and backward, against its floor and against cuBLASLt.
//!
//! `plain` is the frozen product alone by the same kernel. cuBLASLt's bar is the frozen product forward, and the products of the
//! gradients with the frozen weights backward: without anything for the adapters.

use half::bf16;
use tanren::batch::AdapterRows;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::gpu::{FactorGrads, Factors, LayerAdapters};
use tanren::ops::lora_matmul::{
    Backward, Forward, Group, Layer, LayerBackward, Lora, LoraGrad, Rows, backward, forward,
};

use super::common::LORA_R;
use super::cublaslt::Product;
use super::harness::{Bench, Cost, random};

/// Groups and models, what takes most of a step first.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        let (hidden, q, kv) = (model.hidden, model.q_cols(), model.kv_cols());
        for &rows in bench.mode.rows() {
            for (group, inputs, outputs) in [
                ("gate_up", hidden, vec![model.intermediate; 2]),
                ("qkv", hidden, vec![q, kv, kv]),
                ("down", model.intermediate, vec![hidden]),
                ("o", q, vec![hidden]),
            ] {
                Case { rows, inputs, outputs }.run(bench, &format!("{} {group} {rows}", model.name))?;
            }
        }
    }
    Ok(())
}

/// The shape of one group.
struct Case {
    rows: usize,
    inputs: usize,
    outputs: Vec<usize>,
}

/// What the kernels read.
struct Inputs {
    x: Tensor<bf16>,
    layers: Vec<LayerInputs>,
    tables: Vec<LayerAdapters>,
    rows: Rows,
    /// Of `A` and of `B` transposed, which the tables name too.
    grads: Vec<[Tensor<f32>; 2]>,
}

struct LayerInputs {
    weight: Tensor<bf16>,
    dy: Tensor<bf16>,
    a: Tensor<bf16>,
    b_t: Tensor<bf16>,
}

/// What they write.
struct Outputs {
    y: Vec<Tensor<bf16>>,
    xa: Vec<Tensor<bf16>>,
    none: Vec<Tensor<bf16>>,
    dx: Tensor<bf16>,
}

impl Inputs {
    fn new(device: &Device, case: &Case) -> Result<Self> {
        let layer = |(i, &out): (usize, &usize)| -> Result<LayerInputs> {
            let index = 10 * i as u32;
            Ok(LayerInputs {
                weight: random(device, out, case.inputs, 0.02, index + 1)?,
                dy: random(device, case.rows, out, 1.0, index + 2)?,
                a: random(device, LORA_R, case.inputs, 0.02, index + 3)?,
                b_t: random(device, LORA_R, out, 0.02, index + 4)?,
            })
        };
        let layers: Vec<LayerInputs> = case.outputs.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let grads = |&out: &usize| Ok([device.zeros(LORA_R, case.inputs)?, device.zeros(LORA_R, out)?]);
        let grads: Vec<[Tensor<f32>; 2]> = case.outputs.iter().map(grads).collect::<Result<_>>()?;
        let table = |((l, [da, db_t]), &out): ((&LayerInputs, &[Tensor<f32>; 2]), &usize)| {
            let factors =
                Factors { a: &l.a, b_t: &l.b_t, grads: Some(FactorGrads { a: da, b_t: db_t }), scaling: 1.0 };
            LayerAdapters::new(device, [out, case.inputs], &[Some(factors)])
        };
        let run = [AdapterRows { adapter: 0, rows: 0..case.rows }];
        Ok(Self {
            x: random(device, case.rows, case.inputs, 1.0, 0)?,
            tables: layers.iter().zip(&grads).zip(&case.outputs).map(table).collect::<Result<_>>()?,
            layers,
            grads,
            rows: Rows::new(device, case.rows, &run, None)?,
        })
    }

    fn forward(&self, device: &Device, y: &mut [Tensor<bf16>], xa: &mut [Tensor<bf16>]) -> Result<()> {
        // Without columns for the adapters there are none.
        let is_adapted = xa.iter().all(|xa| xa.cols() > 0);
        let loras = adapters(&self.layers);
        let layers = layers(&self.layers, is_adapted.then_some((&self.tables, &loras)));
        let mut outputs: Vec<_> = y.iter_mut().zip(xa).map(|(y, xa)| Forward { y, xa }).collect();
        forward(device, &Group::new(&layers, &self.rows), &self.x, &mut outputs)
    }

    fn backward(&mut self, device: &Device, xa: &[Tensor<bf16>], dx: &mut Tensor<bf16>) -> Result<()> {
        let loras = adapters(&self.layers);
        let layers = layers(&self.layers, Some((&self.tables, &loras)));
        let views = self.grads.iter_mut().map(|[a, b]| [Some(LoraGrad { a, b, magnitude: None })]);
        let mut grads: Vec<_> = views.collect();
        let of_layers = grads.iter_mut().zip(&self.layers).zip(xa);
        let mut of_layers: Vec<_> =
            of_layers.map(|((grads, l), xa)| LayerBackward { dy: &l.dy, xa, grads }).collect();
        let args = Backward { x: &self.x, dx: Some(dx), layers: &mut of_layers };
        backward(device, &Group::new(&layers, &self.rows), args)
    }
}

/// The one adapter of a layer.
type Adapter<'a> = [Option<Lora<'a, bf16>>; 1];

fn adapters(layers: &[LayerInputs]) -> Vec<Adapter<'_>> {
    layers.iter().map(|l| [Some(Lora { a: &l.a, b: &l.b_t, scaling: 1.0, dora: None })]).collect()
}

/// The layers as the op takes them, with adapters or without.
fn layers<'a>(
    layers: &'a [LayerInputs],
    adapters: Option<(&'a Vec<LayerAdapters>, &'a Vec<Adapter<'a>>)>,
) -> Vec<Layer<'a, bf16>> {
    let layer = |(i, l): (usize, &'a LayerInputs)| Layer {
        weight: &l.weight,
        bias: None,
        loras: adapters.map_or(&[], |(_, loras)| &loras[i]),
        adapters: adapters.map(|(tables, _)| &tables[i]),
        magnitudes: None,
        dropout: None,
    };
    layers.iter().enumerate().map(layer).collect()
}

impl Outputs {
    fn new(device: &Device, case: &Case) -> Result<Self> {
        let each = |cols: &dyn Fn(usize) -> usize| -> Result<Vec<Tensor<bf16>>> {
            case.outputs.iter().map(|&out| random(device, case.rows, cols(out), 1.0, 90)).collect()
        };
        let (y, xa, none) = (each(&|out| out)?, each(&|_| LORA_R)?, each(&|_| 0)?);
        Ok(Self { y, xa, none, dx: device.empty(case.rows, case.inputs)? })
    }
}

impl Case {
    fn run(&self, bench: &mut Bench<'_>, name: &str) -> Result<()> {
        let Self { rows, inputs, .. } = *self;
        let columns: usize = self.outputs.iter().sum();
        let base = Cost {
            flops: 2 * (rows * inputs * columns) as u64,
            bytes: 2 * (rows * (inputs + columns) + inputs * columns) as u64,
        };
        let lora_flops = 2 * (rows * LORA_R * (inputs * self.outputs.len() + columns)) as u64;
        let make = |device: &Device, _| Ok((Inputs::new(device, self)?, Outputs::new(device, self)?));

        let all = Cost { flops: base.flops + 2 * lora_flops, bytes: 2 * base.bytes };
        let product = |&outputs: &usize| Product::Input { rows, inputs, outputs };
        let bar: Vec<Product> = self.outputs.iter().map(product).collect();
        let name_of = |what: &str| format!("lora_matmul/{what} {name}");
        bench.run(&name_of("backward lora"), all, &bar, make, |device, (from, to)| {
            from.backward(device, &to.xa, &mut to.dx)
        })?;

        let product = |&outputs: &usize| Product::Forward { rows, inputs, outputs };
        let bar: Vec<Product> = self.outputs.iter().map(product).collect();
        let with_lora = Cost { flops: base.flops + lora_flops, ..base };
        bench.run(&name_of("forward lora"), with_lora, &bar, make, |device, (from, to)| {
            from.forward(device, &mut to.y, &mut to.xa)
        })?;
        bench.run(&name_of("forward plain"), base, &bar, make, |device, (from, to)| {
            from.forward(device, &mut to.y, &mut to.none)
        })
    }
}
