//! A LoRA adapter of a whole model: its trained tensors, their start, and their names in PEFT files.
//!
//! Gradients and optimizer moments have the same structure, so they are adapters too ([`Adapter::zeros_like`]), and so is the
//! copy in full precision that a rounded adapter is trained in ([`Adapter::cast`]).

use std::collections::BTreeMap;

use super::head::Head;
use super::label_head::{HeadParams, LabelHead};
use super::peft_config::{lora_config, to_peft_config};
use super::weights::Weights;
use crate::config::{LoraConfig, ModelConfig, PerSite, Site, SiteLora, Sites};
use crate::device::{Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::formats::adapter::{AdapterConfig, AdapterTensor};
use crate::ops::lora_matmul::{self, Merged};
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

/// The trained tensors of one linear layer.
#[derive(Debug)]
pub struct LoraParams<T: Real> {
    /// `[r, in_features]`.
    pub a: Tensor<T>,
    /// `[out_features, r]`; on a GPU transposed.
    pub b: Tensor<T>,
    /// `[1, out_features]`, with DoRA.
    pub magnitude: Option<Tensor<T>>,
    /// The factor before `B A`.
    pub scaling: f64,
}

/// See the module text.
#[derive(Debug)]
pub struct Adapter<T: Real> {
    config: LoraConfig,
    sites: Sites,
    params: PerSite<Option<LoraParams<T>>>,
    /// The trained layers of a head for labels; none of a language model.
    head: Option<HeadParams<T>>,
    /// Whether `b` is `[r, out_features]`, as kernels have it ([`lora_matmul::b_shape`]).
    transposed: bool,
}

/// Prefix of every name in a PEFT file.
const PREFIX: &str = "base_model.model";

impl<T: Real> Adapter<T> {
    /// A new adapter: A uniform in `+-1/sqrt(in_features)` (PEFT's `kaiming_uniform(a = sqrt(5))`), B zero, and the magnitudes of
    /// DoRA the norms of the weight's rows, so that the model starts unchanged.
    ///
    /// # Errors
    /// An input error if a target module is not in the model.
    pub fn new<W: Real<Stat = T::Stat>>(
        device: &Device,
        config: &LoraConfig,
        model: &ModelConfig,
        weights: &Weights<W>,
        seed: u64,
    ) -> Result<Self> {
        let targets = config.at_sites(model)?;
        let sites = weights.sites.clone();
        let params = PerSite::try_of(&sites, |number, site| {
            let Some(SiteLora { r, scaling }) = targets[number] else { return Ok(None) };
            let [out_features, in_features] = site.shape;
            let mut stream = Stream::new(seed, Purpose::AdapterInit, number as u32);
            let bound = 1.0 / (in_features as f32).sqrt();
            let values = (0..r * in_features).map(|_| T::from_f32((2.0 * stream.uniform() - 1.0) * bound));
            let a = device.tensor(r, in_features, &values.collect::<Vec<_>>())?;
            let [rows, cols] = lora_matmul::b_shape(device, out_features, r);
            let b = device.zeros(rows, cols)?;
            let magnitude = match config.use_dora {
                true => Some(row_norms(device, weights.linears[number].weight.dense(), r)?),
                false => None,
            };
            Ok::<_, Error>(Some(LoraParams { a, b, magnitude, scaling }))
        })?;
        let transposed = device.machine() == Machine::Gpu;
        let head = match &weights.head {
            Head::Labels(LabelHead { own: Some(own), .. }) => Some(own.map(|tensor| cast(device, tensor))?),
            Head::Labels(_) | Head::Tokens(_) => HeadParams::random(device, model, seed)?,
        };
        Ok(Self { config: config.clone(), sites, params, head, transposed })
    }

    /// The adapter of a PEFT file, strictly: every tensor that the configuration asks for, and no other.
    ///
    /// # Errors
    /// An input error that names the tensor or the key.
    pub fn from_peft(
        device: &Device,
        model: &ModelConfig,
        config: &AdapterConfig,
        tensors: &BTreeMap<String, AdapterTensor>,
        path: &std::path::Path,
    ) -> Result<Self> {
        let lora = lora_config(config, model, path)?;
        let targets = lora.at_sites(model)?;
        let mut used = 0;
        let transposed = device.machine() == Machine::Gpu;
        let mut take = |name: String, [rows, cols]: [usize; 2], part: Part| -> Result<Tensor<T>> {
            let shape =
                if let Part::Magnitude | Part::HeadBias = part { vec![cols] } else { vec![rows, cols] };
            let error = |what: &str| Error::input("ADAPTER", what).path(path).field(name.clone());
            let Some(tensor) = tensors.get(&name) else {
                let error = error("missing tensor").expected(&name);
                let error = match tensors.keys().next() {
                    Some(found) => error.got(format!("tensors such as {found}")),
                    None => error,
                };
                return error.fix("the adapter must belong to this model and its adapter_config.json").into();
            };
            if tensor.shape != shape {
                return error("wrong shape")
                    .got(format!("{:?}", tensor.shape))
                    .expected(format!("{shape:?}"))
                    .fix("the adapter belongs to another model or rank")
                    .into();
            }
            used += 1;
            let values: Vec<T> = tensor.data.iter().map(|&x| T::from_f32(x)).collect();
            match part {
                Part::B if transposed => device.tensor(cols, rows, &transpose(&values, cols)),
                _ => device.tensor(rows, cols, &values),
            }
        };
        let sites = Sites::of(model);
        let params = PerSite::try_of(&sites, |number, site| {
            let Some(SiteLora { r, scaling }) = targets[number] else { return Ok(None) };
            let [out_features, in_features] = site.shape;
            let name = |part| tensor_name(site, part);
            let a = take(name(Part::A), [r, in_features], Part::A)?;
            let b = take(name(Part::B), [out_features, r], Part::B)?;
            let magnitude = match lora.use_dora {
                true => Some(take(name(Part::Magnitude), [1, out_features], Part::Magnitude)?),
                false => None,
            };
            Ok::<_, Error>(Some(LoraParams { a, b, magnitude, scaling }))
        })?;
        let head = HeadParams::build(model, |name, shape| {
            let part = if name.ends_with(".bias") { Part::HeadBias } else { Part::HeadWeight };
            take(format!("{PREFIX}.{name}"), shape, part)
        })?;
        let adapter = Self { config: lora, sites, params, head, transposed };
        if used != tensors.len() {
            let known: Vec<String> = adapter.named_tensors().into_iter().map(|(name, _)| name).collect();
            let mut extra = tensors.keys().filter(|name| !known.contains(name));
            let saved =
                extra.clone().find(|name| name.contains("embed_tokens.") || name.contains("lm_head."));
            if let Some(name) = saved {
                return Error::input("ADAPTER", "embeddings were saved beside the adapter")
                    .path(path)
                    .field(name)
                    .fix("save the adapter with save_embedding_layers=False; a resized vocabulary belongs into the model folder")
                    .into();
            }
            let extra = extra.next();
            return Error::input("ADAPTER", "the file has a tensor that its configuration does not ask for")
                .path(path)
                .field(extra.map_or("", String::as_str))
                .fix("the adapter must belong to this model and its adapter_config.json")
                .into();
        }
        Ok(adapter)
    }

    /// An adapter of the same structure, all zero: for gradients and moments.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much memory.
    pub fn zeros_like(&self, device: &Device) -> Result<Adapter<T::Stat>> {
        self.map(|tensor| device.zeros(tensor.rows(), tensor.cols()))
    }

    /// The same numbers in another type, rounded where it is narrower.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much memory.
    pub fn cast<U: Real>(&self, device: &Device) -> Result<Adapter<U>> {
        self.map(|tensor| cast(device, tensor))
    }

    /// The numbers under their names in PEFT files and in their shapes there, whatever the device holds them in.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn to_peft(&self, device: &Device) -> Result<Vec<(String, AdapterTensor)>> {
        let of = |(name, part, tensor): (String, Part, &Tensor<T>)| {
            let mut data: Vec<f32> = device.read(tensor)?.iter().map(|x| x.to_f64() as f32).collect();
            let mut shape = tensor.shape().to_vec();
            match part {
                Part::B if self.transposed => {
                    data = transpose(&data, tensor.cols());
                    shape.reverse();
                }
                Part::Magnitude | Part::HeadBias => shape = vec![tensor.cols()],
                Part::A | Part::B | Part::HeadWeight => {}
            }
            Ok((name, AdapterTensor { shape, data }))
        };
        self.parts().into_iter().map(of).collect()
    }

    /// Overwrites all numbers with those that `source(name, shape)` gives for the names and shapes of [`Adapter::to_peft`].
    ///
    /// # Errors
    /// The first error of `source`, and of the device.
    pub fn set_from_peft(
        &mut self,
        device: &Device,
        mut source: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let transposed = self.transposed;
        let names: Vec<(String, Part)> =
            self.parts().into_iter().map(|(name, part, _)| (name, part)).collect();
        for ((name, part), tensor) in names.into_iter().zip(self.tensors_mut()) {
            let [rows, cols] = tensor.shape();
            let values = match part {
                Part::B if transposed => transpose(&source(&name, &[cols, rows])?, rows),
                Part::Magnitude | Part::HeadBias => source(&name, &[cols])?,
                Part::A | Part::B | Part::HeadWeight => source(&name, &[rows, cols])?,
            };
            let values: Vec<T> = values.into_iter().map(T::from_f32).collect();
            device.write(tensor, &values)?;
        }
        Ok(())
    }

    fn map<U: Real>(&self, to: impl Fn(&Tensor<T>) -> Result<Tensor<U>>) -> Result<Adapter<U>> {
        let params = self.params.try_map(|params| {
            let Some(p) = params else { return Ok(None) };
            let magnitude = p.magnitude.as_ref().map(&to).transpose()?;
            Ok::<_, Error>(Some(LoraParams { a: to(&p.a)?, b: to(&p.b)?, magnitude, scaling: p.scaling }))
        })?;
        Ok(Adapter {
            config: self.config.clone(),
            sites: self.sites.clone(),
            params,
            head: self.head.as_ref().map(|head| head.map(&to)).transpose()?,
            transposed: self.transposed,
        })
    }

    /// The trained layers of the head, if it has any.
    pub fn head(&self) -> Option<&HeadParams<T>> {
        self.head.as_ref()
    }

    /// The same, to change.
    pub fn head_mut(&mut self) -> Option<&mut HeadParams<T>> {
        self.head.as_mut()
    }

    /// Rank, scale and targets.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Changes the dropout of later trainings; the tensors stay.
    pub fn set_dropout(&mut self, dropout: f64) {
        self.config.dropout = dropout;
    }

    /// The tensors of a layer by its number in [`Sites`], if it is a target.
    pub fn params(&self, number: usize) -> Option<&LoraParams<T>> {
        self.params[number].as_ref()
    }

    /// The tensors of all layers by their numbers; none where a layer is no target.
    pub fn all_params(&self) -> &PerSite<Option<LoraParams<T>>> {
        &self.params
    }

    /// The same, to change.
    pub fn params_mut(&mut self) -> &mut PerSite<Option<LoraParams<T>>> {
        &mut self.params
    }

    /// True if some layer of the block is a target.
    pub fn adapts_block(&self, layer: usize) -> bool {
        self.params[self.sites.of_block(layer)].iter().any(Option::is_some)
    }

    /// All tensors in a fixed order: by layer, A, B, magnitude; then those of the head.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        self.named_tensors().into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// The tensors with their names in PEFT files, in the order of [`Adapter::tensors`].
    pub fn named_tensors(&self) -> Vec<(String, &Tensor<T>)> {
        self.parts().into_iter().map(|(name, _, tensor)| (name, tensor)).collect()
    }

    fn parts(&self) -> Vec<(String, Part, &Tensor<T>)> {
        let mut all = Vec::new();
        for (site, params) in self.sites.iter().zip(self.params.iter()) {
            let Some(params) = params else { continue };
            let name = |part| tensor_name(site, part);
            all.push((name(Part::A), Part::A, &params.a));
            all.push((name(Part::B), Part::B, &params.b));
            if let Some(magnitude) = &params.magnitude {
                all.push((name(Part::Magnitude), Part::Magnitude, magnitude));
            }
        }
        for (name, tensor) in self.head.iter().flat_map(HeadParams::named) {
            let part = if name.ends_with(".bias") { Part::HeadBias } else { Part::HeadWeight };
            all.push((format!("{PREFIX}.{name}"), part, tensor));
        }
        all
    }

    /// The tensors to change, in the order of [`Adapter::tensors`].
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor<T>> {
        let mut all = Vec::new();
        for params in self.params.iter_mut().flatten() {
            all.push(&mut params.a);
            all.push(&mut params.b);
            all.extend(params.magnitude.as_mut());
        }
        all.extend(self.head.iter_mut().flat_map(HeadParams::tensors_mut));
        all
    }

    /// Whether each tensor decays under weight decay, in the order of [`Adapter::tensors`]: all but the biases of a head.
    pub fn decays(&self) -> Vec<bool> {
        self.parts().into_iter().map(|(_, part, _)| !matches!(part, Part::HeadBias)).collect()
    }

    /// Number of trained numbers.
    pub fn num_params(&self) -> usize {
        self.tensors().iter().map(|t| t.len()).sum()
    }

    /// The configuration file that goes with it.
    pub fn peft_config(&self, base_model: &str) -> AdapterConfig {
        to_peft_config(&self.config, &self.sites, (base_model, self.head.is_some()))
    }
}

/// Norms of the rows of a weight, the first magnitudes of DoRA.
fn row_norms<T: Real, W: Real>(device: &Device, weight: &Tensor<W>, r: usize) -> Result<Tensor<T>> {
    // The factors of a start: B is zero.
    let [rows, cols] = lora_matmul::b_shape(device, weight.rows(), r);
    let (a, b) = (device.zeros(r, weight.cols())?, device.zeros(rows, cols)?);
    let mut norms = device.empty(1, weight.rows())?;
    lora_matmul::dora_norm(device, Merged { weight, a: &a, b: &b, scaling: W::Stat::ZERO }, &mut norms)?;
    if device.is_dry() {
        return device.empty(norms.rows(), norms.cols());
    }
    let values: Vec<T> = device.read(&norms)?.iter().map(|n| T::from_f64(n.to_f64())).collect();
    device.tensor(norms.rows(), norms.cols(), &values)
}

/// The numbers of a tensor in another type; a dry device gets its shape.
fn cast<T: Real, U: Real>(device: &Device, tensor: &Tensor<T>) -> Result<Tensor<U>> {
    if device.is_dry() {
        return device.empty(tensor.rows(), tensor.cols());
    }
    let values: Vec<U> = device.read(tensor)?.iter().map(|x| U::from_f64(x.to_f64())).collect();
    device.tensor(tensor.rows(), tensor.cols(), &values)
}

/// The transpose of a matrix with `cols` columns.
fn transpose<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

/// Parts of a layer's adapter, and of a head.
#[derive(Clone, Copy)]
enum Part {
    A,
    B,
    Magnitude,
    HeadWeight,
    HeadBias,
}

fn tensor_name(site: &Site, part: Part) -> String {
    let part = match part {
        Part::A => "lora_A.weight",
        Part::B => "lora_B.weight",
        // PEFT writes it without ".weight".
        Part::Magnitude => "lora_magnitude_vector",
        // Their names are those of the head.
        Part::HeadWeight => "weight",
        Part::HeadBias => "bias",
    };
    format!("{PREFIX}.{}.{part}", site.path)
}
