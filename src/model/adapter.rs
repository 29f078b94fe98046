//! A LoRA adapter of a whole model: its trained tensors, their start, and their names in PEFT files.
//!
//! Gradients and optimizer moments have the same structure, so they are adapters too ([`Adapter::zeros_like`]), and so is the
//! copy in full precision that a rounded adapter is trained in ([`Adapter::cast`]).

use std::collections::BTreeMap;

use super::peft_config::lora_config;
use super::weights::{Module, Weights, linear_shape};
use crate::config::{LoraConfig, ModelConfig};
use crate::device::{Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::formats::adapter::{AdapterConfig, AdapterTensor, TargetModules as PeftModules};
use crate::ops::lora_matmul;
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
}

/// See the module text.
#[derive(Debug)]
pub struct Adapter<T: Real> {
    config: LoraConfig,
    blocks: Vec<[Option<LoraParams<T>>; 7]>,
    /// Whether `b` is `[r, out_features]`, as kernels have it ([`lora_matmul::b_shape`]).
    transposed: bool,
}

/// Prefix of every name in a PEFT file of a causal language model.
const PREFIX: &str = "base_model.model.model.layers";

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
        let targets = config.modules_of(model)?;
        let mut blocks = Vec::new();
        for (layer, block) in weights.blocks.iter().enumerate() {
            let mut params = [const { None }; 7];
            for module in Module::ALL.into_iter().filter(|m| targets.contains(&m.name())) {
                let [out_features, in_features] = linear_shape(model, module);
                let index = (layer * Module::ALL.len() + module as usize) as u32;
                let mut stream = Stream::new(seed, Purpose::AdapterInit, index);
                let bound = 1.0 / (in_features as f32).sqrt();
                let values =
                    (0..config.r * in_features).map(|_| T::from_f32((2.0 * stream.uniform() - 1.0) * bound));
                let a = device.tensor(config.r, in_features, &values.collect::<Vec<_>>())?;
                let [rows, cols] = lora_matmul::b_shape(device, out_features, config.r);
                let b = device.zeros(rows, cols)?;
                let weight = &block.linears[module as usize].weight;
                let magnitude = match config.use_dora {
                    true => Some(row_norms(device, weight, config.r)?),
                    false => None,
                };
                params[module as usize] = Some(LoraParams { a, b, magnitude });
            }
            blocks.push(params);
        }
        Ok(Self { config: config.clone(), blocks, transposed: device.machine() == Machine::Gpu })
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
        let targets = lora.modules_of(model)?;
        let mut used = 0;
        let transposed = device.machine() == Machine::Gpu;
        let mut take = |name: String, [rows, cols]: [usize; 2], part: Part| -> Result<Tensor<T>> {
            let shape = if let Part::Magnitude = part { vec![cols] } else { vec![rows, cols] };
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
        let mut blocks = Vec::new();
        for layer in 0..model.num_hidden_layers {
            let mut params = [const { None }; 7];
            for module in Module::ALL.into_iter().filter(|m| targets.contains(&m.name())) {
                let [out_features, in_features] = linear_shape(model, module);
                let name = |part| tensor_name(layer, module, part);
                let a = take(name(Part::A), [lora.r, in_features], Part::A)?;
                let b = take(name(Part::B), [out_features, lora.r], Part::B)?;
                let magnitude = match lora.use_dora {
                    true => Some(take(name(Part::Magnitude), [1, out_features], Part::Magnitude)?),
                    false => None,
                };
                params[module as usize] = Some(LoraParams { a, b, magnitude });
            }
            blocks.push(params);
        }
        let adapter = Self { config: lora, blocks, transposed };
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
        self.map(|tensor| {
            if device.is_dry() {
                return device.empty(tensor.rows(), tensor.cols());
            }
            let values: Vec<U> = device.read(tensor)?.iter().map(|x| U::from_f64(x.to_f64())).collect();
            device.tensor(tensor.rows(), tensor.cols(), &values)
        })
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
                Part::Magnitude => shape = vec![tensor.cols()],
                Part::A | Part::B => {}
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
                Part::Magnitude => source(&name, &[cols])?,
                Part::A | Part::B => source(&name, &[rows, cols])?,
            };
            let values: Vec<T> = values.into_iter().map(T::from_f32).collect();
            device.write(tensor, &values)?;
        }
        Ok(())
    }

    fn map<U: Real>(&self, to: impl Fn(&Tensor<T>) -> Result<Tensor<U>>) -> Result<Adapter<U>> {
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let mut params = [const { None }; 7];
            for (params, p) in
                params.iter_mut().zip(block).filter_map(|(params, p)| Some((params, p.as_ref()?)))
            {
                let magnitude = p.magnitude.as_ref().map(&to).transpose()?;
                *params = Some(LoraParams { a: to(&p.a)?, b: to(&p.b)?, magnitude });
            }
            blocks.push(params);
        }
        Ok(Adapter { config: self.config.clone(), blocks, transposed: self.transposed })
    }

    /// Rank, scale and targets.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Changes the dropout of later trainings; the tensors stay.
    pub fn set_dropout(&mut self, dropout: f64) {
        self.config.dropout = dropout;
    }

    /// The tensors of a layer, if it is a target.
    pub fn params(&self, layer: usize, module: Module) -> Option<&LoraParams<T>> {
        self.blocks[layer][module as usize].as_ref()
    }

    /// The tensors of the layers of a block by [`Module`], to change.
    pub fn block_mut(&mut self, layer: usize) -> &mut [Option<LoraParams<T>>; 7] {
        &mut self.blocks[layer]
    }

    /// True if some layer of the block is a target.
    pub fn adapts_block(&self, layer: usize) -> bool {
        self.blocks[layer].iter().any(Option::is_some)
    }

    /// All tensors in a fixed order: by block, module, A, B, magnitude.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        self.named_tensors().into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// The tensors with their names in PEFT files, in the order of [`Adapter::tensors`].
    pub fn named_tensors(&self) -> Vec<(String, &Tensor<T>)> {
        self.parts().into_iter().map(|(name, _, tensor)| (name, tensor)).collect()
    }

    fn parts(&self) -> Vec<(String, Part, &Tensor<T>)> {
        let mut all = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            for (module, params) in Module::ALL.into_iter().zip(block) {
                let Some(params) = params else { continue };
                let name = |part| tensor_name(layer, module, part);
                all.push((name(Part::A), Part::A, &params.a));
                all.push((name(Part::B), Part::B, &params.b));
                if let Some(magnitude) = &params.magnitude {
                    all.push((name(Part::Magnitude), Part::Magnitude, magnitude));
                }
            }
        }
        all
    }

    /// The tensors to change, in the order of [`Adapter::tensors`].
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor<T>> {
        let mut all = Vec::new();
        for params in self.blocks.iter_mut().flatten().flatten() {
            all.push(&mut params.a);
            all.push(&mut params.b);
            all.extend(params.magnitude.as_mut());
        }
        all
    }

    /// Number of trained numbers.
    pub fn num_params(&self) -> usize {
        self.tensors().iter().map(|t| t.len()).sum()
    }

    /// The configuration file that goes with it.
    pub fn peft_config(&self, base_model: &str) -> AdapterConfig {
        let modules = Module::ALL
            .into_iter()
            .filter(|&m| self.blocks.first().is_some_and(|b| b[m as usize].is_some()))
            .map(|m| m.name().to_owned())
            .collect();
        AdapterConfig {
            r: self.config.r,
            lora_alpha: self.config.alpha,
            lora_dropout: self.config.dropout,
            target_modules: PeftModules::List(modules),
            use_rslora: self.config.use_rslora,
            use_dora: self.config.use_dora,
            base_model_name_or_path: Some(base_model.to_owned()),
            task_type: Some("CAUSAL_LM".to_owned()),
            ..AdapterConfig::default()
        }
    }
}

/// Norms of the rows of a weight, the first magnitudes of DoRA.
fn row_norms<T: Real, W: Real>(device: &Device, weight: &Tensor<W>, r: usize) -> Result<Tensor<T>> {
    // The factors of a start: B is zero.
    let [rows, cols] = lora_matmul::b_shape(device, weight.rows(), r);
    let (a, b) = (device.zeros(r, weight.cols())?, device.zeros(rows, cols)?);
    let mut norms = device.empty(1, weight.rows())?;
    lora_matmul::dora_norm(device, weight, (&a, &b), W::Stat::ZERO, &mut norms)?;
    if device.is_dry() {
        return device.empty(norms.rows(), norms.cols());
    }
    let values: Vec<T> = device.read(&norms)?.iter().map(|n| T::from_f64(n.to_f64())).collect();
    device.tensor(norms.rows(), norms.cols(), &values)
}

/// The transpose of a matrix with `cols` columns.
fn transpose<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

/// Parts of a layer's adapter.
#[derive(Clone, Copy)]
enum Part {
    A,
    B,
    Magnitude,
}

fn tensor_name(layer: usize, module: Module, part: Part) -> String {
    let part = match part {
        Part::A => "lora_A.weight",
        Part::B => "lora_B.weight",
        // PEFT writes it without ".weight".
        Part::Magnitude => "lora_magnitude_vector",
    };
    format!("{PREFIX}.{layer}.{}.{part}", module.path())
}
