//! The forward pass: xa and y.

use super::{Group, adapted, key, tiled, with_dora};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{LoraDownLayer, LoraFwdLayer, LoraMatmulFwdParams};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::lora_matmul::Apply;
use crate::ops::lora_matmul::plan::{self, MAX_LAYERS};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

/// See [`super::super::projection`].
pub(in super::super) fn projection<T: Real>(
    group: &Group<'_, T>,
    xa: &[&Tensor<T>],
) -> Result<Option<FusedProjection>> {
    group.check(xa.iter().copied())?;
    group.check_for_kernels()?;
    let down = group.layers.iter().zip(xa).map(|(layer, xa)| {
        let factors = adapted(layer).map(|adapters| adapters.a);
        factors.map_or_else(bytemuck::Zeroable::zeroed, |factors| LoraDownLayer {
            output: xa.ptr(),
            factors,
            key: key(layer),
            features: layer.in_features() as i64,
            ..bytemuck::Zeroable::zeroed()
        })
    });
    Ok(group.fused(&down.collect::<Vec<_>>(), group.dropout().is_some()))
}

/// Writes `xa` (`[rows, rank rounded up to 16]`) of every adapted layer: `scaling * dropout(x) A^T`, and 0 for rows without adapter.
pub(in super::super) fn project<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    group.check_for_kernels()?;
    let down = group.layers.iter().zip(&*xa).filter_map(|(layer, xa)| {
        Some(LoraDownLayer {
            input: x.ptr(),
            output: xa.ptr(),
            factors: adapted(layer)?.a,
            key: key(layer),
            features: group.in_features() as i64,
        })
    });
    group.down(device, &down.collect::<Vec<_>>(), group.dropout().is_some())
}

/// Writes `y` (`[rows, out_features]`) of every layer, given `xa`.
pub(in super::super) fn apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    if group.has_dora() {
        with_dora::apply(device, group, x, outputs)
    } else {
        launch(device, group, x, outputs)
    }
}

/// As [`apply`], of `W`, bias, `A` and `B` alone.
pub(super) fn launch<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    group.check_for_kernels()?;
    let xa_stride = group.xa_stride("xa", &outputs.iter().map(|out| out.xa).collect::<Vec<_>>())?;
    let problem = group.problem();
    if problem.rows == 0 {
        return Ok(());
    }
    let plan = plan::forward(&problem, device.chip()?);
    let [runs, num_runs] = group.rows.run_ptrs();
    let mut params = LoraMatmulFwdParams {
        x: x.ptr(),
        layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
        runs,
        num_runs,
        live_rows: group.rows.live().ptr(),
        num_layers: group.layers.len() as i32,
        rows: problem.rows as i32,
        in_features: problem.in_features as i32,
        xa_stride: xa_stride as i32,
        tiles_m: plan.tiles_m as i32,
        tiles_n: plan.tiles_n as i32,
        group: plan.group as i32,
        reserved: 0,
    };
    let mut first_tile = 0;
    for (slot, (layer, out)) in params.layers.iter_mut().zip(group.layers.iter().zip(outputs)) {
        *slot = LoraFwdLayer {
            weight: layer.weight.ptr(),
            bias: layer.bias.map_or(DevicePtr(0), Tensor::ptr),
            y: out.y.ptr(),
            xa: out.xa.ptr(),
            factors: layer.adapters.map_or(DevicePtr(0), |a| a.b_t),
            out_features: layer.out_features() as i32,
            first_tile,
        };
        first_tile += layer.out_features().div_ceil(plan.tile[1]) as i32;
    }
    device.launch(&tiled(&plan), &params)
}
