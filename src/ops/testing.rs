//! Helpers shared by the tests of all ops: random tensors, comparison, central differences.

use crate::device::{Device, Tensor};
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

/// A CPU device with two threads.
pub(crate) fn cpu() -> Device {
    Device::cpu(2).unwrap()
}

/// A random order of execution named by `seed`; `TANREN_TEST_SEED=N` gives all tests other ones.
#[cfg(feature = "emulated")]
fn schedule(seed: u64) -> crate::device::Schedule {
    let shift = std::env::var("TANREN_TEST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0u64);
    crate::device::Schedule::Random(seed.wrapping_add(shift.wrapping_mul(1 << 20)))
}

/// Whether kernel tests run on the first GPU (`TANREN_TEST_DEVICE=cuda`) and not on the emulator.
#[cfg(feature = "emulated")]
pub(crate) fn on_card() -> bool {
    std::env::var("TANREN_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// The shape for a test at real sizes: `real` on a GPU, `reduced` on the emulator, which needs seconds for
/// the work that a GPU does in a microsecond.
#[cfg(feature = "emulated")]
pub(crate) fn at_scale<X>(real: X, reduced: X) -> X {
    if on_card() { real } else { reduced }
}

/// The emulator options of kernel tests. With `TANREN_TEST_MMA=truncate` all emulators truncate the sums of
/// matrix products.
#[cfg(feature = "emulated")]
fn options() -> crate::device::EmulatorOptions {
    let truncates_mma = std::env::var("TANREN_TEST_MMA").is_ok_and(|sums| sums == "truncate");
    crate::device::EmulatorOptions { truncates_mma, ..Default::default() }
}

/// The device of kernel tests: the emulator with its checks and a random order of execution named by `seed`. With
/// `TANREN_TEST_DEVICE=cuda` it is the first GPU, where the same tests run against the same references.
#[cfg(feature = "emulated")]
pub(crate) fn kernel_device(seed: u64) -> Device {
    use crate::device::EmulatorOptions;
    if on_card() {
        return Device::cuda(0).unwrap();
    }
    Device::emulated(EmulatorOptions { check: true, schedule: schedule(seed), ..options() }).unwrap()
}

/// The same for long runs: an emulator checks nothing, and takes all processors.
#[cfg(feature = "emulated")]
pub(crate) fn unchecked_kernel_device() -> Device {
    if on_card() { Device::cuda(0).unwrap() } else { Device::emulated(options()).unwrap() }
}

/// An emulator that truncates the sums of matrix products, as the tensor cores of GPUs do.
#[cfg(feature = "emulated")]
pub(crate) fn truncating_emulator() -> Device {
    use crate::device::EmulatorOptions;
    Device::emulated(EmulatorOptions { truncates_mma: true, ..EmulatorOptions::default() }).unwrap()
}

/// The error that truncation in tensor cores adds to a sum of `terms` products whose partial sums stay below
/// `largest`.
///
/// Eight products at a time are added to the running sum. Bits below 2^-24 of the largest of the nine are
/// lost, and the result is truncated to f32, which loses up to 2^-23 of it, always toward 0. (Fasi et al.,
/// "Numerical behavior of NVIDIA tensor cores", 2021.) With the worst signs a step loses 5.5 * 2^-23. The
/// losses of products have either sign, and the sum so far loses half a unit on average while it grows:
/// together about a third of 2^-23 a step. One is allowed.
#[cfg(feature = "emulated")]
pub(crate) fn cut_off(terms: usize, largest: f64) -> f64 {
    terms.div_ceil(8) as f64 * largest / 8_388_608.0
}

/// Asserts that `run` gives the same bits under `schedules` execution orders of the emulator; with
/// `TANREN_TEST_DEVICE=cuda`, in `TANREN_TEST_REPEATS` runs (default 250) on the first GPU.
#[cfg(feature = "emulated")]
pub(crate) fn assert_repeats<R: PartialEq + std::fmt::Debug>(schedules: u64, run: impl Fn(&Device) -> R) {
    use crate::device::EmulatorOptions;
    if on_card() {
        let device = kernel_device(0);
        let repeats = std::env::var("TANREN_TEST_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(250);
        let first = run(&device);
        (1..repeats).for_each(|repeat| assert!(run(&device) == first, "run {repeat}"));
        return;
    }
    let emulator =
        |seed| Device::emulated(EmulatorOptions { schedule: schedule(seed), ..options() }).unwrap();
    let first = run(&emulator(0));
    for seed in 1..schedules {
        assert!(run(&emulator(seed)) == first, "schedule {seed}");
    }
}

/// Standard normal numbers; the stream is named by `index`.
pub(crate) fn random<T: Real>(device: &Device, rows: usize, cols: usize, index: u32) -> Tensor<T> {
    let mut stream = Stream::new(99, Purpose::ModelInit, index);
    let values: Vec<T> = (0..rows * cols).map(|_| T::from_f32(stream.normal())).collect();
    device.tensor(rows, cols, &values).unwrap()
}

/// The same numbers in another precision.
pub(crate) fn cast<A: Real, B: Real>(device: &Device, tensor: &Tensor<A>) -> Tensor<B> {
    let values: Vec<B> = tensor.data().iter().map(|x| B::from_f64(x.to_f64())).collect();
    device.tensor(tensor.rows(), tensor.cols(), &values).unwrap()
}

/// `sum(a * b)` in f64: a scalar loss with gradient `b`.
pub(crate) fn inner<T: Real>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}

/// Root mean square difference relative to the root mean square of `expected`.
pub(crate) fn relative_rms<A: Real, B: Real>(got: &[A], expected: &[B]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()), "not finite");
    let squares = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut got.iter().zip(expected).map(|(g, e)| g.to_f64() - e.to_f64()));
    (difference / squares(&mut expected.iter().map(|e| e.to_f64())).max(1e-300)).sqrt()
}

/// Sizes that end inside a block, a warp and a 16-byte piece.
#[cfg(feature = "emulated")]
pub(crate) const RAGGED_ROWS: [usize; 7] = [1, 17, 127, 128, 129, 300, 507];

/// Standard normal numbers times `size` that bf16 can hold.
#[cfg(feature = "emulated")]
pub(crate) fn bf16_numbers(len: usize, size: f32, index: u32) -> Vec<f64> {
    drawn(Stream::new(98, Purpose::ModelInit, index), len, size)
}

/// Numbers of a stream, as in [`bf16_numbers`]. They repeat with a period of 1,048,573, because drawing them
/// is slow; since the period is prime, no two rows of a matrix begin at the same place of it.
#[cfg(feature = "emulated")]
pub(crate) fn drawn(mut stream: Stream, len: usize, size: f32) -> Vec<f64> {
    const PERIOD: usize = 1_048_573;
    let mut number = || half::bf16::from_f32(size * stream.normal()).to_f64();
    let period: Vec<f64> = (0..len.min(PERIOD)).map(|_| number()).collect();
    let mut numbers = Vec::with_capacity(len);
    while numbers.len() < len {
        numbers.extend_from_slice(&period[..PERIOD.min(len - numbers.len())]);
    }
    numbers
}

/// A bf16 tensor with `capacity` rows, of which `values` are the first and the others hold 7.
#[cfg(feature = "emulated")]
pub(crate) fn with_room(device: &Device, capacity: usize, cols: usize, values: &[f64]) -> Tensor<half::bf16> {
    use rayon::prelude::*;
    let mut all = vec![half::bf16::from_f32(7.0); capacity * cols];
    all.par_iter_mut().zip(values).for_each(|(to, &from)| *to = half::bf16::from_f64(from));
    device.tensor(capacity, cols, &all).unwrap()
}

/// The first `rows` rows of a tensor of [`with_room`]; the others must hold what they held.
#[cfg(feature = "emulated")]
pub(crate) fn live(device: &Device, tensor: &Tensor<half::bf16>, rows: usize) -> Vec<f64> {
    let values: Vec<f64> = device.read(tensor).unwrap().into_iter().map(|x| x.to_f64()).collect();
    let (live, rest) = values.split_at(rows * tensor.cols());
    assert!(rest.iter().all(|&x| x == 7.0), "rows beyond the live ones were written");
    live.to_vec()
}

/// A number of live rows in the memory of the device.
#[cfg(feature = "emulated")]
pub(crate) fn live_count(device: &Device, rows: usize) -> Tensor<u32> {
    device.tensor(1, 1, &[rows as u32]).unwrap()
}

/// Values rounded to bf16, as f64.
#[cfg(feature = "emulated")]
pub(crate) fn rounded(values: &[f64]) -> Vec<f64> {
    use rayon::prelude::*;
    values.par_iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect()
}

/// The rule for kernels that compute with bf16: their error, largest and root mean square, is at most `k` times that of
/// `reference`, the same formula rounded wherever PyTorch would round, plus one unit in the last place of the largest number.
#[cfg(feature = "emulated")]
pub(crate) fn assert_as_good(name: &str, got: &[f64], exact: &[f64], reference: &[f64], k: f64) {
    assert_eq!((got.len(), reference.len()), (exact.len(), exact.len()), "{name}");
    let worst = |of: &[f64]| {
        let at = (0..of.len()).map(|i| ((of[i] - exact[i]).abs(), i));
        at.fold((0.0, 0), |worst, next| if next.0 > worst.0 || next.0.is_nan() { next } else { worst })
    };
    let rms = |of: &[f64]| {
        let sum: f64 = of.iter().zip(exact).map(|(x, e)| (x - e) * (x - e)).sum();
        (sum / of.len().max(1) as f64).sqrt()
    };
    let largest = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let unit = largest * f64::from(half::bf16::EPSILON);
    let (error, at) = worst(got);
    let limit = k * worst(reference).0 + unit;
    assert!(
        error <= limit,
        "{name}: element {at} is {}, exactly {}: off by {error:e}, allowed {limit:e}",
        got[at],
        exact[at]
    );
    let (error, limit) = (rms(got), k * rms(reference) + unit / 16.0);
    assert!(error <= limit, "{name}: root mean square error {error:e}, allowed {limit:e}");
}

/// Checks `gradient` of `loss` with respect to `at` by central differences in f64, in a sample of places.
///
/// `loss` gets a changed copy of `at`. Both errors of the difference (rounding, third derivative) stay below 1e-6 for
/// functions and inputs of size about 1.
pub(crate) fn check_gradient(
    device: &Device,
    name: &str,
    at: &Tensor<f64>,
    gradient: &[f64],
    loss: impl Fn(&Tensor<f64>) -> f64,
) {
    const STEP: f64 = 1e-4;
    assert_eq!(gradient.len(), at.len(), "{name}");
    let mut picks = Stream::new(5, Purpose::Split, at.len() as u32);
    let sample: Vec<usize> = if at.len() <= 24 {
        (0..at.len()).collect()
    } else {
        (0..24).map(|_| picks.below(at.len() as u32) as usize).collect()
    };
    for i in sample {
        let moved = |delta: f64| {
            let mut values = at.data().to_vec();
            values[i] += delta;
            loss(&device.tensor(at.rows(), at.cols(), &values).unwrap())
        };
        let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let scale = numeric.abs().max(1.0);
        assert!(
            (numeric - gradient[i]).abs() < 1e-5 * scale,
            "d{name}[{}, {}]: analytic {}, numeric {numeric}",
            i / at.cols(),
            i % at.cols(),
            gradient[i]
        );
    }
}
