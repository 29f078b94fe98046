//! AdamW over the tensors of one adapter, with the moments as its state.
//!
//! In bf16, which is too narrow for small updates, the adapter is a rounded copy of a master that the
//! optimizer keeps; in f32 and f64 the adapter is its own master, so there is only one copy.

use std::any::Any;

use crate::device::kernels::DevicePtr;
use crate::device::{Class, Device, Graph, Machine, PendingCopy, Tensor};
use crate::error::{Error, Result};
use crate::formats::adapter::AdapterTensor;
use crate::model::Adapter;
use crate::ops::adamw::{self, AdamW, Trained};
use crate::ops::grad_norm::{clip_factor, grad_norm};
use crate::tensor::Real;

/// The moments of every tensor of an adapter, and the number of updates so far.
#[derive(Debug)]
pub struct Optimizer<T: Real> {
    /// The master; `None` if the adapter is its own master.
    master: Option<Adapter<T::Stat>>,
    exp_avg: Adapter<T::Stat>,
    exp_avg_sq: Adapter<T::Stat>,
    step: u64,
    /// Tables and launches for updates on a GPU; created at the first update.
    on_gpu: Option<OnGpu>,
}

/// See [`Optimizer::prepare`].
#[derive(Debug)]
struct OnGpu {
    /// Where the tensors are: parameters, moments and gradients.
    places: Vec<DevicePtr>,
    tensors: adamw::gpu::Tensors,
    scalars: adamw::gpu::StepScalars,
    launches: Launches,
}

#[derive(Debug)]
enum Launches {
    /// Recorded once for all updates, with the tensor of their outcome.
    Recorded(Graph, adamw::gpu::Outcome),
    /// Launched again at every update.
    Direct,
}

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; applies to every tensor of an adapter but the biases of a head.
    pub weight_decay: f64,
    /// Maximum gradient norm; `None` disables clipping.
    pub max_grad_norm: Option<f64>,
}

impl Update {
    /// The scalars of update `step`, without clipping.
    fn adamw(&self, step: u64) -> AdamW {
        let Self { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *self;
        AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, clip: 1.0, step }
    }
}

impl<T: Real> Optimizer<T> {
    /// Zero moments for `adapter`; see [`Optimizer::with_master`] if it is available in higher precision.
    ///
    /// # Errors
    /// [`crate::error::Error::Device`] if memory runs out.
    pub fn new(device: &Device, adapter: &Adapter<T>) -> Result<Self> {
        let is_own_master = (adapter as &dyn Any).is::<Adapter<T::Stat>>();
        Ok(Self {
            master: (!is_own_master).then(|| adapter.cast(&device.class(Class::Master))).transpose()?,
            exp_avg: adapter.zeros_like(&device.class(Class::Moments))?,
            exp_avg_sq: adapter.zeros_like(&device.class(Class::Moments))?,
            step: 0,
            on_gpu: None,
        })
    }

    /// Zero moments for `master`, and the adapter to compute with.
    ///
    /// # Errors
    /// [`crate::error::Error::Device`] if memory runs out.
    pub fn with_master(device: &Device, master: Adapter<T::Stat>) -> Result<(Self, Adapter<T>)> {
        let adapter: Adapter<T> = master.cast(&device.class(Class::Adapter))?;
        let is_own_master = (&adapter as &dyn Any).is::<Adapter<T::Stat>>();
        let optimizer = Self {
            exp_avg: master.zeros_like(&device.class(Class::Moments))?,
            exp_avg_sq: master.zeros_like(&device.class(Class::Moments))?,
            master: (!is_own_master).then_some(master),
            step: 0,
            on_gpu: None,
        };
        Ok((optimizer, adapter))
    }

    /// The master; `None` if the adapter is its own master.
    pub fn master(&self) -> Option<&Adapter<T::Stat>> {
        self.master.as_ref()
    }

    /// The trained parameters by their names in PEFT files, in full precision.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn trained_to_peft(
        &self,
        device: &Device,
        adapter: &Adapter<T>,
    ) -> Result<Vec<(String, AdapterTensor)>> {
        match &self.master {
            Some(master) => master.to_peft(device),
            None => adapter.to_peft(device),
        }
    }

    /// Replaces the trained parameters by those that `source(name, shape)` returns, and rounds them for
    /// `adapter` if it is a copy.
    ///
    /// # Errors
    /// The first error of `source`, and of the device.
    pub fn set_trained(
        &mut self,
        device: &Device,
        adapter: &mut Adapter<T>,
        mut source: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        if let Some(master) = &mut self.master {
            master.set_from_peft(device, &mut source)?;
        }
        adapter.set_from_peft(device, source)
    }

    /// Number of updates done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Clips the gradient and updates the adapter. Returns the norm before clipping; if it is not finite,
    /// nothing has changed. On a GPU the gradients are zero afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`] if `grads` belongs to another adapter; errors of the device.
    pub fn update(
        &mut self,
        device: &Device,
        update: &Update,
        adapter: &mut Adapter<T>,
        grads: &Adapter<T::Stat>,
    ) -> Result<f64> {
        if device.machine() == Machine::Gpu && self.master.is_some() {
            let mut copy = PendingCopy::new(device);
            self.start_update(device, update, adapter, grads, &mut copy)?;
            return self.finish_update(&mut copy);
        }
        let mut adamw = update.adamw(self.step + 1);
        let mut trained = self.trained(adapter, grads)?;
        let norm = grad_norm(device, &trained.iter().map(|one| one.grad).collect::<Vec<_>>());
        if !norm.is_finite() {
            return Ok(norm);
        }
        adamw.clip = clip_factor(norm, update.max_grad_norm);
        adamw::update(device, &adamw, &mut trained)?;
        self.step += 1;
        Ok(norm)
    }

    /// Allocates the GPU tables for updates of `adapter` by `grads`. Must be called before a recording, which
    /// allocations would disturb.
    ///
    /// # Errors
    /// As [`Optimizer::update`].
    pub fn prepare(
        &mut self,
        device: &Device,
        adapter: &mut Adapter<T>,
        grads: &Adapter<T::Stat>,
    ) -> Result<()> {
        let trained = self.trained(adapter, grads)?;
        let places: Vec<DevicePtr> =
            trained.iter().flat_map(|one| [one.param.ptr(), one.exp_avg.ptr(), one.grad.ptr()]).collect();
        if self.on_gpu.as_ref().is_some_and(|on_gpu| on_gpu.places == places) {
            return Ok(());
        }
        let tables = device.class(Class::Tables);
        let tensors = adamw::gpu::Tensors::new(&tables, &self.trained(adapter, grads)?)?;
        let scalars = adamw::gpu::StepScalars::new(&tables)?;
        let launch = || adamw::gpu::clip_and_update(device, &tensors, &scalars);
        let launches = match device.arena() {
            Some(_) => {
                let (graph, outcome) = device.capture(launch)?;
                Launches::Recorded(graph, outcome)
            }
            None => Launches::Direct,
        };
        self.on_gpu = Some(OnGpu { places, tensors, scalars, launches });
        Ok(())
    }

    /// Starts an update on a GPU; its norm goes to `norm`.
    ///
    /// # Errors
    /// As [`Optimizer::update`].
    pub fn start_update(
        &mut self,
        device: &Device,
        update: &Update,
        adapter: &mut Adapter<T>,
        grads: &Adapter<T::Stat>,
        norm: &mut PendingCopy,
    ) -> Result<()> {
        self.prepare(device, adapter, grads)?;
        let Some(on_gpu) = &mut self.on_gpu else {
            return Err(Error::shape("adamw", "device", "a GPU", device.label()));
        };
        self.step += 1;
        on_gpu.scalars.write(device, &update.adamw(self.step), update.max_grad_norm)?;
        match &on_gpu.launches {
            Launches::Recorded(graph, outcome) => {
                device.replay(graph)?;
                outcome.send(norm)
            }
            Launches::Direct => {
                adamw::gpu::clip_and_update(device, &on_gpu.tensors, &on_gpu.scalars)?.send(norm)
            }
        }
    }

    /// Waits for an update that was started, and returns the norm of its gradient. If it is not finite,
    /// nothing has changed.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn finish_update(&mut self, norm: &mut PendingCopy) -> Result<f64> {
        let step = adamw::gpu::Outcome::take(norm)?;
        self.step -= u64::from(!step.norm.is_finite());
        Ok(step.norm)
    }

    /// All trained tensors with their gradients, moments and shadows.
    fn trained<'t>(
        &'t mut self,
        adapter: &'t mut Adapter<T>,
        grads: &'t Adapter<T::Stat>,
    ) -> Result<Vec<Trained<'t, T>>> {
        let mut shadows: Vec<Option<&mut Tensor<T>>> = Vec::new();
        let params: Vec<&mut Tensor<T::Stat>> = match &mut self.master {
            Some(master) => {
                shadows.extend(adapter.tensors_mut().into_iter().map(Some));
                master.tensors_mut()
            }
            None => match (adapter as &mut dyn Any).downcast_mut::<Adapter<T::Stat>>() {
                Some(own) => own.tensors_mut(),
                None => Vec::new(),
            },
        };
        shadows.resize_with(params.len(), || None);
        let decays = grads.decays();
        let grads = grads.tensors();
        let (count, expected) = (grads.len(), self.exp_avg.tensors().len());
        if count != expected || params.len() != expected {
            return Err(Error::shape("adamw", "grads", expected, count));
        }
        let moments = self.exp_avg.tensors_mut().into_iter().zip(self.exp_avg_sq.tensors_mut());
        let params = params.into_iter().zip(shadows).zip(grads.into_iter().zip(decays));
        let one = |(((param, shadow), (grad, decays)), (exp_avg, exp_avg_sq))| Trained {
            param,
            shadow,
            grad,
            exp_avg,
            exp_avg_sq,
            decays,
        };
        Ok(params.zip(moments).map(one).collect())
    }

    /// The state with names, for a checkpoint: `exp_avg.<tensor>` and `exp_avg_sq.<tensor>`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn named_state(&self, device: &Device) -> Result<Vec<(String, AdapterTensor)>> {
        let mut all = Vec::new();
        for (prefix, moments) in [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            let named = moments.to_peft(device)?;
            all.extend(named.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)));
        }
        Ok(all)
    }

    /// Restores a state of [`Optimizer::named_state`] after `step` updates, with tensors from `source(name,
    /// shape)`.
    ///
    /// # Errors
    /// The first error of `source`, and of the device.
    pub fn restore(
        &mut self,
        device: &Device,
        step: u64,
        mut source: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        for (prefix, moments) in [("exp_avg", &mut self.exp_avg), ("exp_avg_sq", &mut self.exp_avg_sq)] {
            moments.set_from_peft(device, |name, shape| source(&format!("{prefix}.{name}"), shape))?;
        }
        self.step = step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoraConfig, variant};
    use crate::model::init;
    use half::bf16;

    /// An adapter of a model without weights.
    fn adapter() -> (Device, Adapter<f32>) {
        let device = Device::cpu(1).unwrap();
        let mut model = variant("qwen3-tiny").unwrap().model_config().unwrap();
        (model.hidden_size, model.vocab_size) = (8, 16);
        let model = model.with_num_hidden_layers(2);
        let lora = LoraConfig { r: 2, alpha: 4.0, ..LoraConfig::default() };
        let weights = init::dry::<f32>(&Device::dry(), &model).unwrap();
        let adapter = Adapter::new(&device, &lora, &model, &weights, 1).unwrap();
        (device, adapter)
    }

    /// An adapter of ones.
    fn ones(device: &Device, adapter: &Adapter<f32>) -> Adapter<f32> {
        let mut ones = adapter.zeros_like(device).unwrap();
        ones.tensors_mut().into_iter().for_each(|t| t.data_mut().fill(1.0));
        ones
    }

    const UPDATE: Update = Update {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: None,
    };

    #[test]
    fn a_rounded_adapter_is_trained_through_its_master() {
        let (device, mut wide) = adapter();
        let grads = ones(&device, &wide);
        let (mut optimizer, mut narrow) =
            Optimizer::<bf16>::with_master(&device, wide.cast(&device).unwrap()).unwrap();
        let mut reference = Optimizer::<f32>::new(&device, &wide).unwrap();
        assert!(reference.master().is_none());
        for _ in 0..3 {
            reference.update(&device, &UPDATE, &mut wide, &grads).unwrap();
            optimizer.update(&device, &UPDATE, &mut narrow, &grads).unwrap();
        }
        let master = optimizer.master().unwrap();
        for ((wide, master), narrow) in wide.tensors().iter().zip(master.tensors()).zip(narrow.tensors()) {
            assert_eq!(wide.data(), master.data());
            assert!(master.data().iter().zip(narrow.data()).all(|(&m, &n)| bf16::from_f32(m) == n));
        }
    }

    #[test]
    fn memory_is_counted_by_its_use() {
        let (_, adapter) = adapter();
        let numbers = adapter.num_params() as u64;
        let dry = Device::dry();
        let narrow: Adapter<bf16> = adapter.cast(&dry.class(Class::Adapter)).unwrap();
        let optimizer = Optimizer::new(&dry, &narrow).unwrap();
        let peak = dry.peak_by_class();
        let bytes = [Class::Adapter, Class::Master, Class::Moments].map(|class| peak.get(class) / numbers);
        assert_eq!((bytes, optimizer.step()), ([2, 4, 8], 0));
    }

    #[test]
    fn gradients_of_another_adapter_are_refused() {
        let (device, mut wide) = adapter();
        let mut optimizer = Optimizer::new(&device, &wide).unwrap();
        let mut model = variant("qwen3-tiny").unwrap().model_config().unwrap();
        (model.hidden_size, model.vocab_size) = (8, 16);
        let model = model.with_num_hidden_layers(1);
        let weights = init::dry::<f32>(&Device::dry(), &model).unwrap();
        let other = Adapter::<f32>::new(&device, wide.config(), &model, &weights, 1).unwrap();
        let error = optimizer.update(&device, &UPDATE, &mut wide, &other.zeros_like(&device).unwrap());
        assert!(error.unwrap_err().to_string().contains("grads"));
    }
}
