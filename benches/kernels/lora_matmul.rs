//! The LoRA matmul of every group of a Qwen3 block, forward and backward, against its floor and against cuBLASLt.
//!
//! `plain` is the frozen product alone by the same kernel; cuBLASLt's bar is the frozen product, and with LoRA two more products
//! per layer that read and write y again (`x A^T`, then `y += xa B^T`), as libraries without a fused kernel do it.

use criterion::Criterion;
use half::bf16;
use tanren::batch::AdapterRows;
use tanren::device::kernels::DevicePtr;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::gpu::{
    Backward, Factors, Group, Layer, LayerAdapters, Rows, backward, forward,
};

use crate::common::LORA_R;
use crate::cublaslt::{Blas, Product};
use crate::harness::{Bench, Cost, random};

/// Rows that fill an RTX 3080 in whole waves.
pub(crate) const ROWS: [usize; 2] = [2176, 4352];

/// Model, hidden size, intermediate size, columns of q, columns of k and of v.
pub(crate) const MODELS: [(&str, usize, usize, usize, usize); 4] = [
    ("Qwen3-0.6B", 1024, 3072, 2048, 1024),
    ("Qwen3-1.7B", 2048, 6144, 2048, 1024),
    ("Qwen3-4B", 2560, 9728, 4096, 1024),
    ("Qwen3-8B", 4096, 12288, 4096, 1024),
];

/// Tiles, groups and models.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "lora_matmul");
    let blas = Blas::open();
    if let Err(reason) = &blas {
        println!("no cuBLASLt to compare with: {reason}");
    }
    for (model, hidden, intermediate, q, kv) in MODELS {
        for rows in ROWS {
            for (group, inputs, outputs) in [
                ("qkv", hidden, vec![q, kv, kv]),
                ("o", q, vec![hidden]),
                ("gate_up", hidden, vec![intermediate; 2]),
                ("down", intermediate, vec![hidden]),
            ] {
                let case = Case::new(device, rows, inputs, &outputs)?;
                case.run(&mut bench, &format!("{model} {group} {rows}"), blas.as_ref().ok())?;
            }
        }
    }
    Ok(())
}

/// The tensors of one group.
struct Case {
    rows: usize,
    inputs: usize,
    outputs: Vec<usize>,
    x: Tensor<bf16>,
    layers: Vec<CaseLayer>,
}

struct CaseLayer {
    weight: Tensor<bf16>,
    dy: Tensor<bf16>,
    a: Tensor<bf16>,
    b_t: Tensor<bf16>,
    da: Tensor<f32>,
    db_t: Tensor<f32>,
}

impl Case {
    fn new(device: &Device, rows: usize, inputs: usize, outputs: &[usize]) -> Result<Self> {
        let layer = |(i, &out): (usize, &usize)| -> Result<CaseLayer> {
            let index = 10 * i as u32;
            Ok(CaseLayer {
                weight: random(device, out, inputs, 0.02, index + 1)?,
                dy: random(device, rows, out, 1.0, index + 2)?,
                a: random(device, LORA_R, inputs, 0.02, index + 3)?,
                b_t: random(device, LORA_R, out, 0.02, index + 4)?,
                da: device.zeros(LORA_R, inputs)?,
                db_t: device.zeros(LORA_R, out)?,
            })
        };
        Ok(Self {
            rows,
            inputs,
            outputs: outputs.to_vec(),
            x: random(device, rows, inputs, 1.0, 0)?,
            layers: outputs.iter().enumerate().map(layer).collect::<Result<_>>()?,
        })
    }

    fn run(&self, bench: &mut Bench<'_>, name: &str, blas: Option<&Blas>) -> Result<()> {
        let device = bench.device.clone();
        let run = [AdapterRows { adapter: 0, rows: 0..self.rows }];
        let rows = Rows::new(&device, self.rows, &run, None)?;
        let tables: Vec<LayerAdapters> = self
            .layers
            .iter()
            .zip(&self.outputs)
            .map(|(l, &out)| {
                let factors = Factors { a: &l.a, b_t: &l.b_t, grads: Some((&l.da, &l.db_t)), scaling: 1.0 };
                LayerAdapters::new(&device, [out, self.inputs], &[Some(factors)])
            })
            .collect::<Result<_>>()?;
        let layer = |adapted: bool| {
            let pairs = self.layers.iter().zip(&tables);
            pairs.map(move |(l, table)| Layer {
                weight: &l.weight,
                bias: None,
                adapters: adapted.then_some(table),
                key: DevicePtr(0),
            })
        };
        let (plain, adapted): (Vec<_>, Vec<_>) = (layer(false).collect(), layer(true).collect());
        let group = |layers| Group { layers, rows: &rows, dropout: None, tile: None };
        let columns: usize = self.outputs.iter().sum();
        let base = Cost {
            flops: 2 * (self.rows * self.inputs * columns) as u64,
            bytes: 2 * (self.rows * (self.inputs + columns) + self.inputs * columns) as u64,
        };
        let lora_flops = 2 * (self.rows * LORA_R * (self.inputs * self.outputs.len() + columns)) as u64;
        let outputs = |cols: &dyn Fn(usize) -> usize| -> Result<Vec<Tensor<bf16>>> {
            self.outputs.iter().map(|&out| device.zeros(self.rows, cols(out))).collect()
        };
        let (mut y, mut none, mut xa) = (outputs(&|out| out)?, outputs(&|_| 0)?, outputs(&|_| LORA_R)?);

        let plain_seconds = bench.run(&format!("forward plain {name}"), base, || {
            let (mut y, mut none) = (y.iter_mut().collect::<Vec<_>>(), none.iter_mut().collect::<Vec<_>>());
            forward(&device, &group(&plain), &self.x, &mut y, &mut none)
        })?;
        let with_lora = Cost { flops: base.flops + lora_flops, ..base };
        let lora_seconds = bench.run(&format!("forward lora {name}"), with_lora, || {
            let (mut y, mut xa) = (y.iter_mut().collect::<Vec<_>>(), xa.iter_mut().collect::<Vec<_>>());
            forward(&device, &group(&adapted), &self.x, &mut y, &mut xa)
        })?;
        println!("  lora over plain: {:.3}", lora_seconds / plain_seconds);
        let mut dx = device.empty(self.rows, self.inputs)?;
        let dy: Vec<&Tensor<bf16>> = self.layers.iter().map(|l| &l.dy).collect();
        let all = Cost { flops: base.flops + 2 * lora_flops, bytes: 2 * base.bytes };
        bench.run(&format!("backward lora {name}"), all, || {
            let args =
                Backward { dy: &dy, x: &self.x, xa: &xa.iter().collect::<Vec<_>>(), dx: Some(&mut dx) };
            backward(&device, &group(&adapted), args)
        })?;
        let Some(blas) = blas else { return Ok(()) };
        let product = |out| Product { rows: self.rows, inputs: self.inputs, outputs: out };
        let products: Vec<Product> = self.outputs.iter().map(|&out| product(out)).collect();
        match blas.seconds(&products, 0).and_then(|frozen| Ok((frozen, blas.seconds(&products, LORA_R)?))) {
            Ok((frozen, unfused)) => println!(
                "  cuBLASLt: {:.3} ms ({:.2} of its speed), with separate LoRA {:.3} ms ({:.2})",
                1e3 * frozen,
                frozen / plain_seconds,
                1e3 * unfused,
                unfused / lora_seconds
            ),
            Err(reason) => println!("  cuBLASLt: {reason}"),
        }
        Ok(())
    }
}
