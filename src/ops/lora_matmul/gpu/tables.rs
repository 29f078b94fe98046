//! The tables that kernels read in device memory: which rows go through which adapter, and where its factors are.

use std::sync::Arc;

use crate::batch::AdapterRows;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{DropoutKey, LoraFactor, LoraRun};
use crate::device::{Device, Table, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::ops::lora_matmul::{OP, RowKeys};
use crate::tensor::Real;

/// Which rows go through which adapter, and who they are, in device memory.
#[derive(Debug)]
pub struct Rows {
    pub(super) runs: Table<LoraRun>,
    pub(super) keys: Option<Table<[u32; 2]>>,
    /// Rows that tensors have room for.
    pub(super) capacity: usize,
    /// One more than the largest adapter that a run names.
    pub(super) adapters_named: usize,
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
        let mut rows = Self::with_capacity(device, num_rows, runs.len(), keys.is_some())?;
        rows.write(device, num_rows, runs, keys)?;
        Ok(rows)
    }

    /// Room for the rows of batches to come: `capacity` rows in at most `runs` runs, with or without keys for dropout.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize, runs: usize, has_keys: bool) -> Result<Self> {
        let keys = has_keys.then(|| Table::with_capacity(device, capacity)).transpose()?;
        Ok(Self { runs: Table::with_capacity(device, runs)?, keys, capacity, adapters_named: 0 })
    }

    /// Takes the rows of another batch; see [`Rows::new`].
    ///
    /// # Errors
    /// As [`Rows::new`], and [`Error::Shape`] if there are more rows or runs than room.
    pub fn write(
        &mut self,
        device: &Device,
        num_rows: usize,
        runs: &[AdapterRows],
        keys: Option<&RowKeys>,
    ) -> Result<()> {
        let mut next = 0;
        for run in runs {
            if run.rows.start < next || run.rows.end > num_rows || run.rows.start > run.rows.end {
                return Err(Error::shape(OP, "runs", format!("ascending, below {num_rows}"), &run.rows));
            }
            next = run.rows.end;
        }
        if num_rows > self.capacity {
            return Err(Error::shape(OP, "rows", format!("at most {}", self.capacity), num_rows));
        }
        let entry = |run: &AdapterRows| LoraRun {
            row_start: run.rows.start as i32,
            row_end: run.rows.end as i32,
            adapter: run.adapter as i32,
            reserved: 0,
        };
        self.runs.write(device, &runs.iter().map(entry).collect::<Vec<_>>())?;
        self.adapters_named = runs.iter().map(|run| run.adapter + 1).max().unwrap_or(0);
        match (&mut self.keys, keys) {
            (Some(_), Some(keys)) if keys.len() != num_rows => {
                Err(Error::shape(OP, "keys", num_rows, keys.len()))
            }
            (Some(table), Some(keys)) => table.write(device, keys.as_slice()),
            _ => Ok(()),
        }
    }

    /// Address of the keys of the rows; null without.
    pub(super) fn row_keys(&self) -> DevicePtr {
        self.keys.as_ref().map_or(DevicePtr(0), Table::ptr)
    }
}

/// Gradients of `A` and of `B` transposed.
pub type FactorGrads<'a, T> = (&'a Tensor<<T as Real>::Stat>, &'a Tensor<<T as Real>::Stat>);

/// `[out_features, in_features]` of a layer, and its factors by adapter.
pub type LayerFactors<'a, T> = ([usize; 2], Vec<Option<Factors<'a, T>>>);

/// One adapter's part of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a, T: Real> {
    /// `A`, `[r, in_features]`.
    pub a: &'a Tensor<T>,
    /// `B` transposed, `[r, out_features]`.
    pub b_t: &'a Tensor<T>,
    /// Their gradients, added to by [`super::gradients`]; none where nobody trains them.
    pub grads: Option<FactorGrads<'a, T>>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: f32,
}

/// The adapters of one layer, in device memory.
#[derive(Debug, Clone)]
pub struct LayerAdapters {
    /// Address of the table of `A`, by adapter.
    pub(super) a: DevicePtr,
    /// Address of the table of `B` transposed, by adapter.
    pub(super) b_t: DevicePtr,
    pub(super) num_adapters: usize,
    pub(super) max_rank: usize,
    /// Where the tables are, with those of other layers.
    _memory: Arc<Tensor<u32>>,
}

impl LayerAdapters {
    /// The table of the adapters of a layer `[out_features, in_features]`, by index; none where an adapter leaves the layer alone.
    ///
    /// # Errors
    /// As [`LayerAdapters::of_layers`].
    pub fn new<T: Real>(
        device: &Device,
        shape: [usize; 2],
        adapters: &[Option<Factors<'_, T>>],
    ) -> Result<Self> {
        Ok(Self::of_layers(device, &[(shape, adapters.to_vec())])?.remove(0))
    }

    /// The tables of many layers, in one piece of memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if a factor or gradient has another shape than its layer `[out_features, in_features]`; errors of the
    /// device.
    pub fn of_layers<T: Real>(device: &Device, layers: &[LayerFactors<'_, T>]) -> Result<Vec<Self>> {
        let mut entries: Vec<LoraFactor> = Vec::new();
        let mut max_ranks = Vec::new();
        for ([out_features, in_features], adapters) in layers {
            let (mut a, mut b_t, mut max_rank) = (Vec::new(), Vec::new(), 0);
            for adapter in adapters {
                let Some(factors) = adapter else {
                    a.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                    b_t.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                    continue;
                };
                let r = factors.a.rows();
                max_rank = max_rank.max(r);
                check_shape(OP, "lora_a", factors.a, [r, *in_features])?;
                check_shape(OP, "lora_b transposed", factors.b_t, [r, *out_features])?;
                if let Some((da, db_t)) = factors.grads {
                    check_shape(OP, "d lora_a", da, [r, *in_features])?;
                    check_shape(OP, "d lora_b transposed", db_t, [r, *out_features])?;
                }
                let entry = |value: &Tensor<T>, grad: Option<&Tensor<T::Stat>>| LoraFactor {
                    value: value.ptr(),
                    grad: grad.map_or(DevicePtr(0), Tensor::ptr),
                    r: r as i32,
                    scaling: factors.scaling,
                };
                a.push(entry(factors.a, factors.grads.map(|g| g.0)));
                b_t.push(entry(factors.b_t, factors.grads.map(|g| g.1)));
            }
            entries.extend(a);
            entries.extend(b_t);
            max_ranks.push(max_rank);
        }
        let words = size_of::<LoraFactor>() / size_of::<u32>();
        let memory = Arc::new(device.tensor(entries.len(), words, bytemuck::cast_slice(&entries))?);
        let mut next = memory.ptr().0;
        let mut place = |adapters: usize| {
            let at = DevicePtr(next);
            next += (adapters * size_of::<LoraFactor>()) as u64;
            at
        };
        let of_layer = |((_, adapters), max_rank): (&([usize; 2], Vec<_>), usize)| Self {
            a: place(adapters.len()),
            b_t: place(adapters.len()),
            num_adapters: adapters.len(),
            max_rank,
            _memory: memory.clone(),
        };
        Ok(layers.iter().zip(max_ranks).map(of_layer).collect())
    }
}

/// Room for the keys of the masks of `layers` layers; [`Table::write`] sets those of a step.
///
/// # Errors
/// Errors of the device.
pub fn dropout_keys(device: &Device, keys: &[[u32; 2]]) -> Result<Table<DropoutKey>> {
    Table::new(device, &keys.iter().map(|&word| DropoutKey { word }).collect::<Vec<_>>())
}
