//! A head for labels: pooled states, a frozen layer with its activation and norm where the family has one, and the trained layers
//! that stand beside the adapter; forward and backward side by side.

use std::rc::Rc;

use super::adapter::Adapter;
use super::base_masks::head_input;
use super::block::Pass;
use super::weights::NormWeights;
use crate::batch::LabelTarget;
use crate::config::ModelConfig;
use crate::config::head::{LabelHeadSpec, Pool};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::activation::{self, Input, InputMut};
use crate::ops::label_head::{self, LabelScores, Layer, PreparedLoss, Targets};
use crate::ops::norm::{self, Norm};
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

/// The frozen part of the head, and the trained part that the model folder has, if it has one of the right size.
#[derive(Debug)]
pub struct LabelHead<T: Real> {
    /// What it is made of.
    pub spec: LabelHeadSpec,
    /// The norm behind the frozen layer.
    pub pooler_norm: Option<NormWeights<T>>,
    /// What scores without an adapter, and what training starts from.
    pub own: Option<HeadParams<T>>,
}

/// The trained layers of a head, in the order of the forward pass: one or two.
#[derive(Debug)]
pub struct HeadParams<T: Real>(pub Vec<HeadLayer<T>>);

/// A trained layer.
#[derive(Debug)]
pub struct HeadLayer<T: Real> {
    /// Its path in the model.
    pub path: String,
    /// `[out_features, in_features]`.
    pub weight: Tensor<T>,
    /// `[1, out_features]`.
    pub bias: Option<Tensor<T>>,
}

/// Path, shape and bias of the trained layers of a model with a head for labels; none with another head.
pub fn trained_layers(model: &ModelConfig) -> Vec<(String, [usize; 2], bool)> {
    let crate::config::head::HeadSpec::Labels(spec) = &model.head else { return Vec::new() };
    let [dense, last] = model.family.modules().trained_layers;
    let hidden = model.hidden_size;
    let dense = spec.dense.then(|| (dense.to_owned(), [hidden, hidden], true));
    dense.into_iter().chain([(last.to_owned(), [spec.num_labels, hidden], spec.bias)]).collect()
}

impl<T: Real> HeadParams<T> {
    /// The layers of `model` with the numbers that `source(name, [rows, cols])` gives for `PATH.weight` and `PATH.bias`; none if it
    /// has no such layers.
    ///
    /// # Errors
    /// The first error of `source`.
    pub fn build<E>(
        model: &ModelConfig,
        mut source: impl FnMut(&str, [usize; 2]) -> Result<Tensor<T>, E>,
    ) -> Result<Option<Self>, E> {
        let mut layers = Vec::new();
        for (path, shape, has_bias) in trained_layers(model) {
            let weight = source(&format!("{path}.weight"), shape)?;
            let bias = match has_bias {
                true => Some(source(&format!("{path}.bias"), [1, shape[0]])?),
                false => None,
            };
            layers.push(HeadLayer { path, weight, bias });
        }
        Ok((!layers.is_empty()).then_some(Self(layers)))
    }

    /// A new head: weights normal with the model's `initializer_range`, biases 0, as transformers does.
    ///
    /// # Errors
    /// Those of the device.
    pub fn random(device: &Device, model: &ModelConfig, seed: u64) -> Result<Option<Self>> {
        let mut index = HEAD_STREAMS;
        Self::build(model, |name, [rows, cols]| {
            index += 1;
            if name.ends_with(".bias") {
                return device.zeros(rows, cols);
            }
            let mut stream = Stream::new(seed, Purpose::AdapterInit, index);
            let range = model.initializer_range as f32;
            let values = (0..rows * cols).map(|_| T::from_f32(stream.normal() * range));
            device.tensor(rows, cols, &values.collect::<Vec<_>>())
        })
    }

    /// Weight and bias of every layer in order, with what a file calls them.
    pub(super) fn named(&self) -> impl Iterator<Item = (String, &Tensor<T>)> {
        self.0.iter().flat_map(|layer| {
            let bias = layer.bias.iter().map(|bias| (format!("{}.bias", layer.path), bias));
            std::iter::once((format!("{}.weight", layer.path), &layer.weight)).chain(bias)
        })
    }

    /// The same tensors, to change.
    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor<T>> {
        self.0.iter_mut().flat_map(|layer| std::iter::once(&mut layer.weight).chain(&mut layer.bias))
    }

    /// The same layers with other tensors.
    ///
    /// # Errors
    /// The first error of `to`.
    pub(super) fn map<U: Real>(&self, to: impl Fn(&Tensor<T>) -> Result<Tensor<U>>) -> Result<HeadParams<U>> {
        let layer = |layer: &HeadLayer<T>| {
            let bias = layer.bias.as_ref().map(&to).transpose()?;
            Ok(HeadLayer { path: layer.path.clone(), weight: to(&layer.weight)?, bias })
        };
        Ok(HeadParams(self.0.iter().map(layer).collect::<Result<_>>()?))
    }

    /// The layer of this number, for the op; all but the last end with tanh.
    fn layer(&self, number: usize) -> Layer<'_, T> {
        let HeadLayer { weight, bias, .. } = &self.0[number];
        Layer { weight, bias: bias.as_ref(), tanh: number + 1 < self.0.len() }
    }
}

/// Beyond the numbers of linear layers, which name the streams of adapters.
const HEAD_STREAMS: u32 = 1 << 24;

/// What the way back through the frozen part reads.
struct Pooled<T: Real> {
    /// The input of the frozen layer, where the family has one.
    input: Rc<Tensor<T>>,
    xa: Option<Tensor<T>>,
    /// The output of the frozen layer, before the activation.
    before: Option<Tensor<T>>,
    norm: Option<(Tensor<T>, Tensor<T::Stat>)>,
    /// What the trained layers read.
    out: Rc<Tensor<T>>,
}

impl<T: Real> LabelHead<T> {
    /// Its frozen tensors beside the linear layers.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        self.pooler_norm.iter().flat_map(NormWeights::tensors).collect()
    }

    /// Logits of every sequence, and on a CPU their losses.
    pub(super) fn score(
        &self,
        pass: &Pass<'_, T>,
        normed: Tensor<T>,
        (loss, scores): (&PreparedLoss, &mut LabelScores),
    ) -> Result<()> {
        let (params, targets) = (self.params(pass)?, pass.tables.label_targets()?);
        let pooled = self.pooled(pass, normed, targets)?;
        let Outputs { logits, .. } = outputs(pass, params, &pooled.out, targets, scores)?;
        found(pass.device, loss, logits, targets, scores)
    }

    /// The same, and the gradient with respect to `normed`; gradients of the trained layers and of the adapter of the frozen one are
    /// added to `grads`.
    pub(super) fn score_and_gradient(
        &self,
        pass: &Pass<'_, T>,
        normed: Tensor<T>,
        (loss, scores): (&PreparedLoss, &mut LabelScores),
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Tensor<T>> {
        let (device, params, normed_rows) = (pass.device, self.params(pass)?, normed.rows());
        let targets = pass.tables.label_targets()?;
        let pooled = self.pooled(pass, normed, targets)?;
        let Outputs { mut inputs, mut hidden, logits } = outputs(pass, params, &pooled.out, targets, scores)?;
        let mut dy;
        {
            let z = match (&logits, scores.logits::<T::Stat>()) {
                (Some(own), _) => own,
                (None, Some(there)) => &*there,
                (None, None) => return Err(Error::shape("head", "logits", "a place for them", "none")),
            };
            dy = device.empty(z.rows(), z.cols())?;
            label_head::loss_gradient(device, loss, z, targets, &mut dy)?;
        }
        found(device, loss, logits, targets, scores)?;
        // The trained layers, from the last one back.
        for number in (0..params.0.len()).rev() {
            let y = if number + 1 < params.0.len() { hidden.pop() } else { None };
            let x = inputs.pop().ok_or_else(|| Error::shape("head", "x", "one of every layer", "none"))?;
            let mut dx = device.empty(x.rows(), x.cols())?;
            let grad = grads.first_mut().and_then(|grads| grads.head_mut()).map(|head| &mut head.0[number]);
            // For a head that nobody trains.
            let mut spare = None;
            let (d_weight, d_bias) = match grad {
                Some(layer) => (&mut layer.weight, layer.bias.as_mut()),
                None => (spare.insert(device.zeros(dy.cols(), x.cols())?), None),
            };
            let (y, dx_of) = (y.as_deref(), Some(&mut dx));
            let args = label_head::Backward { x: &x, y, dy: &mut dy, dx: dx_of, d_weight, d_bias };
            label_head::backward(device, &params.layer(number), args, targets.live_rows())?;
            pass.mask_in_place(head_input(pass.config, number), pass.sequences(), &mut dx)?;
            dy = dx;
        }
        let d_pooled = self.pooled_backward(pass, pooled, dy, grads)?;
        if self.spec.pool != Pool::Mean {
            return Ok(d_pooled);
        }
        let mut d_normed = device.empty(normed_rows, d_pooled.cols())?;
        label_head::pool_backward(device, &d_pooled, targets, &mut d_normed)?;
        Ok(d_normed)
    }

    /// The trained layers of the adapter of the batch, or the model's own.
    fn params<'p>(&'p self, pass: &Pass<'p, T>) -> Result<&'p HeadParams<T>> {
        let of_adapter = match pass.adapters {
            [] => None,
            [one] => one.head(),
            _ => {
                return Err(Error::shape(
                    "head",
                    "adapters",
                    "one in a batch with labels",
                    pass.adapters.len(),
                ));
            }
        };
        of_adapter.or(self.own.as_ref()).ok_or_else(|| {
            Error::input("MODEL", "the model has no head for these labels")
                .expected("an adapter with one, or a model folder that was saved from a classifier")
                .fix("name the folder of a trained adapter")
                .into()
        })
    }

    /// The states that the trained layers read, one row per sequence.
    fn pooled(&self, pass: &Pass<'_, T>, normed: Tensor<T>, targets: &Targets) -> Result<Pooled<T>> {
        let device = pass.device;
        let is_one_row = |target: &LabelTarget| target.rows.len() == 1;
        let input = if self.spec.pool == Pool::Mean {
            let mut pooled = device.empty(targets.capacity(), normed.cols())?;
            label_head::pool(device, &normed, targets, &mut pooled)?;
            pooled
        } else if normed.rows() == targets.capacity() && targets.list().iter().all(is_one_row) {
            normed
        } else {
            let got = format!("{} rows for {} of them", normed.rows(), targets.capacity());
            return Err(Error::shape("head", "targets", "one row of every sequence", got));
        };
        let input = Rc::new(input);
        let Some(pooler) = self.spec.pooler else {
            return Ok(Pooled { out: input.clone(), input, xa: None, before: None, norm: None });
        };
        let group = pass.pooler_group()?;
        let live_rows = targets.live_rows();
        let xa = pass.xa(&group, input.rows(), device)?.unfused();
        let made = pass.linears(&group, &input, xa, device)?.into_iter().next();
        let (before, xa) = made.ok_or_else(|| Error::shape("head", "pooler", "a layer", "none"))?;
        let mut out = device.empty(before.rows(), before.cols())?;
        let args = activation::Forward {
            act: pooler.act,
            input: Input::Plain(&before),
            h: &mut out,
            live_rows,
            projection: None,
        };
        activation::forward(device, args)?;
        let norm = match &self.pooler_norm {
            None => None,
            Some(weights) => {
                let (mut y, mut rstd) = (device.empty(out.rows(), out.cols())?, device.empty(out.rows(), 1)?);
                let args = norm::Forward {
                    x: &mut out,
                    residual: None,
                    norm: norm_of(weights),
                    y: &mut y,
                    rstd: &mut rstd,
                    live_rows,
                    projection: None,
                };
                norm::forward(device, args)?;
                Some((std::mem::replace(&mut out, y), rstd))
            }
        };
        Ok(Pooled { input, xa: Some(xa), before: Some(before), norm, out: Rc::new(out) })
    }

    /// Goes back through the frozen layer; gives the gradient of the pooled states.
    fn pooled_backward(
        &self,
        pass: &Pass<'_, T>,
        pooled: Pooled<T>,
        d_out: Tensor<T>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Tensor<T>> {
        let (device, live_rows) = (pass.device, pass.tables.label_targets()?.live_rows());
        let Pooled { input, xa, before, norm, .. } = pooled;
        let (Some(pooler), Some(xa), Some(mut before)) = (self.spec.pooler, xa, before) else {
            return Ok(d_out);
        };
        let mut dh = d_out;
        if let (Some((s, rstd)), Some(weights)) = (&norm, &self.pooler_norm) {
            let mut ds = device.empty(s.rows(), s.cols())?;
            let args = norm::Backward {
                dy: &dh,
                s,
                norm: norm_of(weights),
                rstd,
                d_in: None,
                ds: &mut ds,
                normed: None,
                live_rows,
                projection: None,
            };
            norm::backward(device, args)?;
            dh = ds;
        }
        let args = activation::Backward {
            act: pooler.act,
            dh: &mut dh,
            input: InputMut::Plain(&mut before),
            live_rows,
            projection: None,
        };
        activation::backward(device, args)?;
        pass.pooler_backward(input, before, xa, grads)
    }
}

fn norm_of<T: Real>(weights: &NormWeights<T>) -> Norm<'_, T> {
    let NormWeights { spec, weight, bias } = weights;
    Norm { kind: spec.kind, weight, bias: bias.as_ref(), eps: T::Stat::from_f64(spec.eps) }
}

/// What the trained layers read and make.
struct Outputs<T: Real> {
    /// Their inputs, in order.
    inputs: Vec<Rc<Tensor<T>>>,
    /// Outputs of all but the last one.
    hidden: Vec<Rc<Tensor<T>>>,
    /// That of the last one, where the scores have no place for them.
    logits: Option<Tensor<T::Stat>>,
}

fn outputs<T: Real>(
    pass: &Pass<'_, T>,
    params: &HeadParams<T>,
    x: &Rc<Tensor<T>>,
    targets: &Targets,
    scores: &mut LabelScores,
) -> Result<Outputs<T>> {
    let (device, live_rows) = (pass.device, targets.live_rows());
    let mut inputs: Vec<Rc<Tensor<T>>> = Vec::new();
    let mut hidden: Vec<Rc<Tensor<T>>> = Vec::new();
    let last = params.0.len().saturating_sub(1);
    let input = |number, x: &Rc<Tensor<T>>| -> Result<Rc<Tensor<T>>> {
        let masked = pass.masked(head_input(pass.config, number), pass.sequences(), x)?;
        Ok(masked.map_or_else(|| x.clone(), Rc::new))
    };
    for number in 0..last {
        let layer = params.layer(number);
        let input = input(number, hidden.last().unwrap_or(x))?;
        let mut y = device.empty(input.rows(), layer.weight.rows())?;
        label_head::forward(device, &layer, &input, &mut y, live_rows)?;
        inputs.push(input);
        hidden.push(Rc::new(y));
    }
    let (layer, input) = (params.layer(last), input(last, hidden.last().unwrap_or(x))?);
    let own = match scores.logits::<T::Stat>() {
        Some(there) => {
            label_head::logits(device, &layer, &input, there, live_rows)?;
            None
        }
        None => {
            let mut own = device.empty(input.rows(), layer.weight.rows())?;
            label_head::logits(device, &layer, &input, &mut own, live_rows)?;
            Some(own)
        }
    };
    inputs.push(input);
    Ok(Outputs { inputs, hidden, logits: own })
}

/// Takes the losses of logits that are on the host.
fn found<S: Real>(
    device: &Device,
    loss: &PreparedLoss,
    logits: Option<Tensor<S>>,
    targets: &Targets,
    scores: &mut LabelScores,
) -> Result<()> {
    let Some(logits) = logits else { return Ok(()) };
    loss.loss.check_all(targets.list(), logits.cols())?;
    let values = if device.is_dry() { vec![S::ZERO; logits.len()] } else { logits.data().to_vec() };
    scores.set(loss.loss.scores(targets.list(), &values));
    Ok(())
}
