//! The tables that kernels read in device memory: which rows go through which adapter, and where its factors are.

use half::bf16;

use crate::batch::AdapterRows;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{DropoutKey, LoraFactor, LoraRun, LoraSlab};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::ops::lora_matmul::{OP, RowKeys};

/// Which rows go through which adapter, and who they are, in device memory.
#[derive(Debug)]
pub struct Rows {
    pub(super) runs: Vec<AdapterRows>,
    pub(super) table: Tensor<u32>,
    pub(super) keys: Option<Tensor<u32>>,
    pub(super) num_rows: usize,
}

impl Rows {
    /// The rows of a batch: ascending `runs` (rows that are in none go through no adapter), and for dropout the `keys`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the runs do not ascend within `num_rows` or there are fewer keys than rows; errors of the device.
    pub fn new(
        device: &Device,
        num_rows: usize,
        runs: &[AdapterRows],
        keys: Option<&RowKeys>,
    ) -> Result<Self> {
        let mut next = 0;
        for run in runs {
            if run.rows.start < next || run.rows.end > num_rows || run.rows.start > run.rows.end {
                return Err(Error::shape(OP, "runs", format!("ascending, below {num_rows}"), &run.rows));
            }
            next = run.rows.end;
        }
        let entry = |run: &AdapterRows| LoraRun {
            row_start: run.rows.start as i32,
            row_end: run.rows.end as i32,
            adapter: run.adapter as i32,
            reserved: 0,
        };
        let table: Vec<LoraRun> = runs.iter().map(entry).collect();
        let keys = match keys {
            Some(keys) if keys.len() != num_rows => {
                return Err(Error::shape(OP, "keys", num_rows, keys.len()));
            }
            Some(keys) => Some(device.tensor(num_rows, 2, bytemuck::cast_slice(keys.as_slice()))?),
            None => None,
        };
        Ok(Self { runs: runs.to_vec(), table: upload(device, &table)?, keys, num_rows })
    }

    /// Pieces of at most `slab_rows` rows of one adapter.
    pub(super) fn slabs(&self, slab_rows: usize) -> Vec<LoraSlab> {
        let pieces = self.runs.iter().flat_map(|run| {
            run.rows.clone().step_by(slab_rows).map(|start| LoraSlab {
                row_start: start as i32,
                row_end: (start + slab_rows).min(run.rows.end) as i32,
                adapter: run.adapter as i32,
                reserved: 0,
            })
        });
        pieces.collect()
    }
}

/// One adapter's part of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// `A`, `[r, in_features]`.
    pub a: &'a Tensor<bf16>,
    /// `B` transposed, `[r, out_features]`.
    pub b_t: &'a Tensor<bf16>,
    /// Their gradients, added to by [`super::backward`]; none where nobody trains them.
    pub grads: Option<(&'a Tensor<f32>, &'a Tensor<f32>)>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: f32,
}

/// The adapters of one layer, in device memory.
#[derive(Debug)]
pub struct LayerAdapters {
    pub(super) a: Tensor<u32>,
    pub(super) b_t: Tensor<u32>,
    pub(super) num_adapters: usize,
    pub(super) max_rank: usize,
}

impl LayerAdapters {
    /// The table of the adapters of a layer `[out_features, in_features]`, by index; none where an adapter leaves the layer alone.
    ///
    /// # Errors
    /// [`Error::Shape`] if a factor or gradient has another shape; errors of the device.
    pub fn new(
        device: &Device,
        [out_features, in_features]: [usize; 2],
        adapters: &[Option<Factors<'_>>],
    ) -> Result<Self> {
        let mut max_rank = 0;
        let (mut a, mut b_t) = (Vec::new(), Vec::new());
        for adapter in adapters {
            let Some(factors) = adapter else {
                a.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                b_t.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                continue;
            };
            let r = factors.a.rows();
            max_rank = max_rank.max(r);
            check_shape(OP, "lora_a", factors.a, [r, in_features])?;
            check_shape(OP, "lora_b transposed", factors.b_t, [r, out_features])?;
            if let Some((da, db_t)) = factors.grads {
                check_shape(OP, "d lora_a", da, [r, in_features])?;
                check_shape(OP, "d lora_b transposed", db_t, [r, out_features])?;
            }
            let entry = |value: &Tensor<bf16>, grad: Option<&Tensor<f32>>| LoraFactor {
                value: value.ptr(),
                grad: grad.map_or(DevicePtr::default(), Tensor::ptr),
                r: r as i32,
                scaling: factors.scaling,
            };
            a.push(entry(factors.a, factors.grads.map(|g| g.0)));
            b_t.push(entry(factors.b_t, factors.grads.map(|g| g.1)));
        }
        Ok(Self {
            a: upload(device, &a)?,
            b_t: upload(device, &b_t)?,
            num_adapters: adapters.len(),
            max_rank,
        })
    }
}

/// The key of a layer's masks as the kernels read it.
///
/// # Errors
/// Errors of the device.
pub fn dropout_key(device: &Device, key: [u32; 2]) -> Result<Tensor<u32>> {
    upload(device, &[DropoutKey { word: key }])
}

/// A table of structs, one a row.
pub(super) fn upload<S: bytemuck::Pod>(device: &Device, entries: &[S]) -> Result<Tensor<u32>> {
    device.tensor(entries.len(), size_of::<S>() / size_of::<u32>(), bytemuck::cast_slice(entries))
}
