//! Frozen weights from a model folder, strictly: every tensor that the configuration asks for, in the right shape.

use std::sync::Arc;

use super::weights::Weights;
use crate::config::ModelConfig;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::model_folder::ModelFolder;
use crate::tensor::{DType, Real};

/// Weights, and the tensors of the folder that the model does not use.
#[derive(Debug)]
pub struct Loaded<T: Real> {
    /// All weights.
    pub weights: Weights<T>,
    /// Names of the tensors that were left alone.
    pub unused: Vec<String>,
}

/// Reads the weights of `config` from `folder`. Tensors that are of type `T` in the file stay where it is mapped on a
/// CPU, and go to a GPU straight from there; others are converted. A dry device gets their shapes, and
/// no number is read.
///
/// `progress(done, total)` is called with bytes after every tensor.
///
/// # Errors
/// An input error that names the tensor that is missing, has another shape, or has no numbers of a known type.
pub fn load<T: Real>(
    device: &Device,
    config: &ModelConfig,
    folder: &ModelFolder,
    progress: &dyn Fn(u64, u64),
) -> Result<Loaded<T>> {
    let mut used = Vec::new();
    let mut done = 0;
    let weights = Weights::build(config, |name, [rows, cols], role| {
        let error = |what: &str| Error::input("MODEL", what).path(folder.dir()).field(name);
        let Some(view) = folder.tensor(name) else {
            return error("missing tensor")
                .fix("the folder is incomplete or its config.json belongs to another model")
                .into();
        };
        let shape = match role {
            super::weights::Role::Matrix => vec![rows, cols],
            _ => vec![cols],
        };
        if view.shape() != shape {
            return error("wrong shape")
                .got(format!("{:?}", view.shape()))
                .expected(format!("{shape:?}"))
                .fix("the weights and config.json belong to different models")
                .into();
        }
        used.push(name.to_owned());
        let is_real = matches!(view.dtype(), DType::F64 | DType::F32 | DType::F16 | DType::Bf16);
        let tensor = match view.mapped::<T>() {
            _ if device.is_dry() && is_real => device.empty(rows, cols)?,
            Some(mapped) => device.borrowed(rows, cols, Arc::new(mapped))?,
            None => {
                let values: Vec<T> = view.to_f32()?.into_iter().map(T::from_f32).collect();
                device.tensor(rows, cols, &values)?
            }
        };
        done += view.bytes().len() as u64;
        progress(done, folder.total_bytes());
        Ok(tensor)
    })?;
    used.sort_unstable();
    let unused = folder
        .tensor_names()
        .into_iter()
        .filter(|name| used.binary_search_by(|u| u.as_str().cmp(name)).is_err())
        .map(str::to_owned)
        .collect();
    Ok(Loaded { weights, unused })
}
