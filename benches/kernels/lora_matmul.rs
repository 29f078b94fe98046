//! The LoRA matmul of every group of a Qwen3 block, forward and backward, against its floor and against cuBLASLt.
//!
//! `plain` is the frozen product alone by the same kernel. cuBLASLt's bar is the frozen product forward, and the products of the
//! gradients with the frozen weights backward: without anything for the adapters.

use half::bf16;
use tanren::batch::AdapterRows;
use tanren::device::kernels::DevicePtr;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::gpu::{
    Backward, Factors, Group, Layer, LayerAdapters, Rows, backward, forward,
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
}

struct LayerInputs {
    weight: Tensor<bf16>,
    dy: Tensor<bf16>,
    a: Tensor<bf16>,
    b_t: Tensor<bf16>,
    da: Tensor<f32>,
    db_t: Tensor<f32>,
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
                da: device.zeros(LORA_R, case.inputs)?,
                db_t: device.zeros(LORA_R, out)?,
            })
        };
        let layers: Vec<LayerInputs> = case.outputs.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let table = |(l, &out): (&LayerInputs, &usize)| {
            let factors = Factors { a: &l.a, b_t: &l.b_t, grads: Some((&l.da, &l.db_t)), scaling: 1.0 };
            LayerAdapters::new(device, [out, case.inputs], &[Some(factors)])
        };
        let run = [AdapterRows { adapter: 0, rows: 0..case.rows }];
        Ok(Self {
            x: random(device, case.rows, case.inputs, 1.0, 0)?,
            tables: layers.iter().zip(&case.outputs).map(table).collect::<Result<_>>()?,
            layers,
            rows: Rows::new(device, case.rows, &run, None)?,
        })
    }

    fn with_group<R>(&self, is_adapted: bool, f: impl FnOnce(&Group<'_, bf16>) -> R) -> R {
        let layers = self.layers.iter().zip(&self.tables).map(|(l, table)| Layer {
            weight: &l.weight,
            bias: None,
            adapters: is_adapted.then_some(table),
            key: DevicePtr(0),
        });
        f(&Group { layers: &layers.collect::<Vec<_>>(), rows: &self.rows, dropout: None, tile: None })
    }
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
            let dy: Vec<&Tensor<bf16>> = from.layers.iter().map(|l| &l.dy).collect();
            let xa: Vec<&Tensor<bf16>> = to.xa.iter().collect();
            let args = Backward { dy: &dy, x: &from.x, xa: &xa, dx: Some(&mut to.dx) };
            from.with_group(true, |group| backward(device, group, args))
        })?;

        let product = |&outputs: &usize| Product::Forward { rows, inputs, outputs };
        let bar: Vec<Product> = self.outputs.iter().map(product).collect();
        let with_lora = Cost { flops: base.flops + lora_flops, ..base };
        bench.run(&name_of("forward lora"), with_lora, &bar, make, |device, (from, to)| {
            let Outputs { y, xa, .. } = to;
            let (mut y, mut xa) = (y.iter_mut().collect::<Vec<_>>(), xa.iter_mut().collect::<Vec<_>>());
            from.with_group(true, |group| forward(device, group, &from.x, &mut y, &mut xa))
        })?;
        bench.run(&name_of("forward plain"), base, &bar, make, |device, (from, to)| {
            let Outputs { y, none, .. } = to;
            let (mut y, mut none) = (y.iter_mut().collect::<Vec<_>>(), none.iter_mut().collect::<Vec<_>>());
            from.with_group(false, |group| forward(device, group, &from.x, &mut y, &mut none))
        })
    }
}
