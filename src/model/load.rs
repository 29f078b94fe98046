//! Frozen weights from a model folder, strictly: every tensor that the configuration asks for, in the right shape.

use std::sync::Arc;

use rayon::prelude::*;

use super::head::Head;
use super::label_head::{HeadParams, trained_layers};
use super::weights::{Role, Weights};
use crate::config::ModelConfig;
use crate::device::Device;
use crate::error::{Error, InputError, Result};
use crate::formats::model_folder::ModelFolder;
use crate::formats::safetensors::TensorView;
use crate::tensor::Real;

/// Weights, and the tensors of the folder that the model does not use.
#[derive(Debug)]
pub struct Loaded<T: Real> {
    /// All weights.
    pub weights: Weights<T>,
    /// Names of the tensors that were left alone.
    pub unused: Vec<String>,
}

/// Reads the weights of `config` from `folder`. Tensors that are of another type than `T` in the file are converted. A dry device
/// gets their shapes, and no number is read.
///
/// `progress(done, total)` is called with bytes after every tensor.
///
/// # Errors
/// An input error that names the tensor that is missing, has another shape, or has no numbers of a known type;
/// [`Error::Changed`] if a file changes while it is read.
pub fn load<T: Real>(
    device: &Device,
    config: &ModelConfig,
    folder: &ModelFolder,
    progress: &dyn Fn(u64, u64),
) -> Result<Loaded<T>> {
    let mut used = Vec::new();
    let mut done = 0;
    let weights = Weights::build(config, |name, [rows, cols], role| {
        let Some((name, view)) = find(config, folder, name) else {
            return missing(folder, name).into();
        };
        let error = |what: &str| Error::input("MODEL", what).path(folder.dir()).field(&name);
        let shape = role.stored_shape([rows, cols]);
        if view.shape() != shape {
            return error("wrong shape")
                .got(format!("{:?}", view.shape()))
                .expected(format!("{shape:?}"))
                .fix("the weights and config.json belong to different models")
                .into();
        }
        used.push(name.clone());
        let tensor = if device.is_dry() && view.is_real() {
            device.empty(rows, cols)?
        } else if role == Role::Conv1d {
            let stored: Vec<T> = match view.elements::<T>()? {
                Some(values) => AsRef::<[T]>::as_ref(&values).to_vec(),
                None => view.to_f32()?.into_iter().map(T::from_f32).collect(),
            };
            device.tensor(rows, cols, &transposed(&stored, rows))?
        } else {
            match view.elements::<T>()? {
                Some(values) => device.borrowed(rows, cols, Arc::new(values))?,
                None => {
                    let values: Vec<T> = view.to_f32()?.into_iter().map(T::from_f32).collect();
                    device.tensor(rows, cols, &values)?
                }
            }
        };
        done += view.num_bytes();
        progress(done, folder.total_bytes());
        Ok(tensor)
    })?;
    let weights = with_own_head(device, config, folder, weights, &mut used)?;
    folder.check_unchanged()?;
    used.sort_unstable();
    let unused = folder
        .tensor_names()
        .into_iter()
        .filter(|name| used.binary_search_by(|u| u.as_str().cmp(name)).is_err())
        .filter(|name| !is_buffer(config, name))
        .map(str::to_owned)
        .collect();
    Ok(Loaded { weights, unused })
}

/// The weights with the trained layers that the folder has for the head, if it has all of them in the right size.
fn with_own_head<T: Real>(
    device: &Device,
    config: &ModelConfig,
    folder: &ModelFolder,
    mut weights: Weights<T>,
    used: &mut Vec<String>,
) -> Result<Weights<T>> {
    let Head::Labels(head) = &mut weights.head else { return Ok(weights) };
    let stored = |name: &str, [rows, cols]: [usize; 2]| {
        let shape = if name.ends_with(".bias") { vec![cols] } else { vec![rows, cols] };
        folder.tensor(name).filter(|view| view.shape() == shape && view.is_real())
    };
    let is_there = |(path, shape, has_bias): &(String, [usize; 2], bool)| {
        stored(&format!("{path}.weight"), *shape).is_some()
            && (!has_bias || stored(&format!("{path}.bias"), [1, shape[0]]).is_some())
    };
    if !trained_layers(config).iter().all(is_there) {
        return Ok(weights);
    }
    head.own = HeadParams::build(config, |name, [rows, cols]| {
        used.push(name.to_owned());
        let Some(view) = stored(name, [rows, cols]).filter(|_| !device.is_dry()) else {
            return device.empty(rows, cols);
        };
        let values: Vec<T> = view.to_f32()?.into_iter().map(T::from_f32).collect();
        device.tensor(rows, cols, &values)
    })?;
    Ok(weights)
}

/// The tensor of this name in a folder, with the name it has there: a file of the bare model lacks a prefix.
pub fn find(config: &ModelConfig, folder: &ModelFolder, name: &str) -> Option<(String, TensorView)> {
    let prefix = config.family.modules().base_prefix;
    let bare = |name: &str| name.strip_prefix(prefix).filter(|_| !prefix.is_empty()).map(str::to_owned);
    let named = [Some(name.to_owned()), bare(name)].into_iter().flatten();
    // As checkpoints from TensorFlow call the two parts of a LayerNorm.
    let old = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];
    let old = old.iter().find_map(|(new, old)| Some(format!("{}{old}", name.strip_suffix(new)?)));
    let old = old.iter().flat_map(|old| [Some(old.clone()), bare(old)]).flatten().collect::<Vec<_>>();
    named.chain(old).find_map(|name| {
        let view = folder.tensor(&name)?;
        Some((name, view))
    })
}

/// Whether a tensor of a folder is a buffer that models of this family store beside their weights.
pub fn is_buffer(config: &ModelConfig, name: &str) -> bool {
    config.family.modules().buffers.iter().any(|end| name.ends_with(end))
}

/// The transpose of a matrix with `cols` columns: tile by tile, so that both sides stay in the cache.
fn transposed<T: Real>(values: &[T], cols: usize) -> Vec<T> {
    const TILE: usize = 32;
    let rows = values.len() / cols.max(1);
    let mut out = vec![T::ZERO; values.len()];
    out.par_chunks_mut((TILE * rows).max(1)).enumerate().for_each(|(strip, out)| {
        let first = strip * TILE;
        for start in (0..rows).step_by(TILE) {
            for (c, out) in out.chunks_exact_mut(rows).enumerate() {
                for r in start..rows.min(start + TILE) {
                    out[r] = values[r * cols + first + c];
                }
            }
        }
    });
    out
}

/// The error of a tensor that is not there, with the prefix that the names of the folder have instead, if that is what differs.
fn missing(folder: &ModelFolder, name: &str) -> InputError {
    let error = Error::input("MODEL", "missing tensor").path(folder.dir()).field(name);
    let (prefix, rest) = name.split_once('.').unwrap_or(("", name));
    // The last part alone is that of every tensor.
    let others = folder.tensor_names().into_iter().filter(|_| rest.contains('.'));
    let found =
        others.filter_map(|other| other.strip_suffix(rest)).find(|p| p.is_empty() || p.ends_with('.'));
    match found {
        Some(found) => error
            .got(match found {
                "" => format!("{rest}: names without the prefix \"{prefix}.\""),
                found => format!("{found}{rest}: names with the prefix \"{found}\""),
            })
            .expected(format!("names with the prefix \"{prefix}.\""))
            .fix("save the whole model, not its inner part or a wrapper around it, with save_pretrained"),
        None => error.fix("the folder is incomplete or its config.json belongs to another model"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Dtype, variant};
    use crate::formats::safetensors::{NamedTensor, TensorData, write_safetensors};
    use crate::model::open::write_random;

    /// The error of the tiny model with its tensors under other names.
    fn renamed(rename: impl Fn(&str) -> String) -> String {
        let dir = tempfile::tempdir().unwrap();
        let config = write_random(variant("qwen3-tiny").unwrap(), dir.path(), 1, Dtype::F32).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let views = folder.tensor_names().into_iter().map(|name| folder.tensor(name).unwrap());
        let tensors: Vec<_> = views.map(|view| (rename(view.name()), view)).collect();
        let data: Vec<Vec<f32>> = tensors.iter().map(|(_, view)| view.to_f32().unwrap()).collect();
        let named = tensors.iter().zip(&data).map(|((name, view), data)| NamedTensor {
            name: name.clone(),
            shape: view.shape().to_vec(),
            data: TensorData::F32(data),
        });
        write_safetensors(&dir.path().join("model.safetensors"), &named.collect::<Vec<_>>(), &[]).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        load::<f32>(&Device::dry(), &config, &folder, &|_, _| {}).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_tensor_names_the_prefix_that_was_found() {
        let error = renamed(|name| format!("model.{name}"));
        assert!(error.contains("names with the prefix \"model.model.\""), "{error}");
        let error = renamed(|name| name.replacen("model.", "", 1));
        assert!(error.contains("names without the prefix \"model.\""), "{error}");
        let error = renamed(|name| format!("_orig_mod.{name}"));
        assert!(error.contains("names with the prefix \"_orig_mod.model.\""), "{error}");
        let error = renamed(|name| name.replace("embed_tokens", "wte"));
        assert!(error.contains("missing tensor") && error.contains("incomplete"), "{error}");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let config = write_random(variant("qwen3-tiny").unwrap(), dir.path(), 1, Dtype::F32).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let weights = dir.path().join("model.safetensors");
        let cut =
            |length| std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(length).unwrap();
        let length = std::fs::metadata(&weights).unwrap().len();
        let device = Device::cpu(1).unwrap();
        let result = load::<f32>(&device, &config, &folder, &|done, total| {
            if done > total / 2 {
                cut(4096);
            }
        });
        assert_eq!(result.map(drop).unwrap_err().exit_code(), 3);
        // Also if every byte was there when it was read.
        cut(length);
        let result = load::<f32>(&device, &config, &folder, &|_, _| ());
        assert_eq!(result.map(drop).unwrap_err().exit_code(), 3);
    }
}
