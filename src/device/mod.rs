//! Where numbers live and who computes: the device, its buffers, and the ledger of what a step costs.
//!
//! Two devices exist: `cpu` computes, and `dry` does everything but compute: its buffers have sizes and no memory, and every
//! op is recorded instead of run. So the memory plan and the operation counts of a step come from the code that runs it.

pub mod card;
mod class;
mod host;
mod ledger;
mod pool;
mod tensor;

pub use card::Card;
pub use class::{ByClass, Class};
pub use host::available_memory;
pub use ledger::{Ledger, Work};
pub use pool::MemoryUse;
pub use tensor::{HostData, Tensor};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::tensor::Element;
use pool::Pool;

/// What a device does with an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Computes on the threads of this process.
    Cpu,
    /// Records, and computes nothing.
    Dry,
}

/// Whose memory and work are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// The processor: buffers of any size, no launches.
    Cpu,
    /// A GPU: buffers in multiples of 256 bytes, and ops that keep their intermediate values on the chip.
    Gpu,
}

impl Machine {
    /// Bytes that the size of a buffer is a multiple of.
    pub fn granularity(self) -> u64 {
        match self {
            Self::Cpu => 1,
            Self::Gpu => 256,
        }
    }
}

/// A device: who computes, the memory its tensors come from, and the ledger. Clones are handles of the same device.
#[derive(Debug, Clone)]
pub struct Device {
    kind: Kind,
    machine: Machine,
    class: Class,
    pool: Arc<Pool>,
    ledger: Arc<Mutex<Ledger>>,
    threads: Option<Arc<rayon::ThreadPool>>,
}

impl Device {
    /// The CPU with `threads` threads; 0 means all of them. Results do not depend on the number.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no threads.
    pub fn cpu(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("tanren-{i}"))
            .build()
            .map_err(|e| Error::Device {
                what: format!("cannot start {threads} threads: {e}"),
                fix: "pass a smaller --threads".into(),
            })?;
        Ok(Self::new(Kind::Cpu, Machine::Cpu, Some(Arc::new(pool))))
    }

    /// A device that records what the CPU would do, and computes nothing.
    pub fn dry() -> Self {
        Self::dry_for(Machine::Cpu)
    }

    /// A device that records what `machine` would do, and computes nothing.
    pub fn dry_for(machine: Machine) -> Self {
        Self::new(Kind::Dry, machine, None)
    }

    fn new(kind: Kind, machine: Machine, threads: Option<Arc<rayon::ThreadPool>>) -> Self {
        let pool = Arc::new(Pool::new(machine.granularity()));
        Self { kind, machine, class: Class::Temporary, pool, ledger: Arc::default(), threads }
    }

    /// A handle of this device whose buffers are for `class`.
    pub fn class(&self, class: Class) -> Self {
        Self { class, ..self.clone() }
    }

    /// Whose memory and work are counted.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// What this device does with an op.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// True where ops are recorded but not run.
    pub fn is_dry(&self) -> bool {
        self.kind == Kind::Dry
    }

    /// Number of threads that compute.
    pub fn num_threads(&self) -> usize {
        self.threads.as_ref().map_or(0, |t| t.current_num_threads())
    }

    /// Runs `work` on the device's threads: every parallel loop inside uses them and no others.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }

    /// A tensor `[rows, cols]` with unspecified content (all bits set, which is NaN for real numbers, in builds with debug
    /// assertions), to be overwritten whole.
    pub fn empty<T: Element>(&self, rows: usize, cols: usize) -> Tensor<T> {
        let mut tensor = Tensor::pooled(&self.pool, self.class, rows, cols, self.is_dry());
        if cfg!(debug_assertions) && !self.is_dry() {
            bytemuck::cast_slice_mut::<T, u8>(tensor.data_mut()).fill(0xff);
        }
        tensor
    }

    /// A tensor `[rows, cols]` of zeros.
    pub fn zeros<T: Element>(&self, rows: usize, cols: usize) -> Tensor<T> {
        let mut tensor = Tensor::pooled(&self.pool, self.class, rows, cols, self.is_dry());
        if !self.is_dry() {
            tensor.data_mut().fill(T::zeroed());
        }
        tensor
    }

    /// A tensor `[rows, cols]` with the content of `values`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values is not rows times cols.
    pub fn tensor<T: Element>(&self, rows: usize, cols: usize, values: &[T]) -> Result<Tensor<T>> {
        if values.len() != rows * cols {
            return Err(Error::shape("device.tensor", "values", rows * cols, values.len()));
        }
        let mut tensor = Tensor::pooled(&self.pool, self.class, rows, cols, self.is_dry());
        if !self.is_dry() {
            tensor.data_mut().copy_from_slice(values);
        }
        Ok(tensor)
    }

    /// A read-only tensor over memory that somebody else keeps (a mapped file).
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values is not rows times cols.
    pub fn borrowed<T: Element>(&self, rows: usize, cols: usize, data: HostData<T>) -> Result<Tensor<T>> {
        if data.as_ref().as_ref().len() != rows * cols {
            return Err(Error::shape("device.borrowed", "data", rows * cols, data.as_ref().as_ref().len()));
        }
        Ok(Tensor::borrowed(&self.pool, rows, cols, data))
    }

    /// Bytes in use now and at most since [`Device::reset_peak`].
    pub fn memory(&self) -> MemoryUse {
        self.pool.memory()
    }

    /// What was in use by class when the most was in use.
    pub fn peak_by_class(&self) -> ByClass {
        self.pool.peak_by_class()
    }

    /// Starts a new maximum from what is in use now.
    pub fn reset_peak(&self) {
        self.pool.reset_peak();
    }

    /// Notes that `op` ran with this cost. Launches count on a GPU only.
    pub fn record(&self, op: &'static str, work: Work) {
        let launches = if self.machine == Machine::Gpu { work.launches } else { 0 };
        self.lock().add(op, Work { launches, ..work });
    }

    /// The ledger so far, and an empty one from here on.
    pub fn take_ledger(&self) -> Ledger {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_tensor_counts_and_has_no_memory() {
        let dry = Device::dry();
        let huge = dry.zeros::<f32>(1 << 30, 1 << 10);
        assert_eq!(dry.memory().live_bytes, 1 << 42);
        drop(huge);
        assert_eq!(dry.memory(), MemoryUse { live_bytes: 0, peak_bytes: 1 << 42, borrowed_bytes: 0 });
    }

    #[test]
    fn the_peak_is_known_by_class_and_a_gpu_rounds_up() {
        let dry = Device::dry_for(Machine::Gpu);
        let weights = dry.class(Class::Weights).empty::<half::bf16>(3, 50);
        let first = dry.zeros::<u32>(1, 64);
        let more = dry.class(Class::Qkv).empty::<u8>(1, 257);
        drop((first, more));
        let later = dry.class(Class::Logits).empty::<u8>(1, 256);
        let peak = dry.peak_by_class();
        assert_eq!(
            peak.iter().collect::<Vec<_>>(),
            [(Class::Weights, 512), (Class::Qkv, 512), (Class::Temporary, 256)]
        );
        assert_eq!((peak.total(), dry.memory().live_bytes), (dry.memory().peak_bytes, 512 + 256));
        drop((weights, later));
        assert_eq!(dry.memory().live_bytes, 0);
    }

    #[test]
    fn launches_count_on_a_gpu_only() {
        let work = Work::new(8, 2);
        for (device, launches) in [(Device::dry(), 0), (Device::dry_for(Machine::Gpu), 2)] {
            device.record("a", work);
            device.record("a", work);
            assert_eq!(device.take_ledger().total(), Work { flops: 16, bytes: 4, launches });
        }
    }

    #[test]
    fn freed_memory_serves_the_next_tensor_of_about_its_size() {
        let cpu = Device::cpu(1).unwrap();
        let first = cpu.zeros::<f32>(100, 100);
        let address = first.data().as_ptr();
        drop(first);
        let second = cpu.zeros::<f32>(99, 100);
        assert_eq!(second.data().as_ptr(), address);
        assert_eq!(cpu.memory().live_bytes, 4 * 9900);
    }

    #[test]
    fn fresh_tensors_are_poisoned_in_debug_builds() {
        let cpu = Device::cpu(1).unwrap();
        if cfg!(debug_assertions) {
            assert!(cpu.empty::<f32>(2, 2).data().iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn borrowed_tensors_are_copied_before_they_change() {
        let cpu = Device::cpu(1).unwrap();
        let data: HostData<f32> = Arc::new(vec![1.0, 2.0]);
        let mut tensor = cpu.borrowed(1, 2, data.clone()).unwrap();
        tensor.data_mut()[0] = 5.0;
        assert_eq!(tensor.data(), [5.0, 2.0]);
        assert_eq!(data.as_ref().as_ref(), [1.0, 2.0]);
    }
}
