//! A check of the kernels on a device that is not trusted yet: one group of layers against the CPU's f64.

use half::bf16;

use super::{FactorGrads, Factors, LayerAdapters};
use crate::batch::AdapterRows;
use crate::device::self_test::{Finding, Outcome};
use crate::device::{Device, Machine, Tensor};
use crate::error::Result;
use crate::ops::lora_matmul::{
    Backward, Forward, Group, Layer, LayerBackward, Lora, LoraGrad, Rows, backward, forward,
};
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

const ROWS: usize = 300;
const IN_FEATURES: usize = 264;
const OUT_FEATURES: usize = 200;
const RANK: usize = 8;

/// Maximum root mean square error relative to the result: results are rounded to bf16 (1.7e-3), and gradients
/// are computed from rounded numbers.
const LIMIT: f64 = 4e-3;

/// Runs a layer with an adapter forward and backward, on `device` and in f64 on the CPU.
///
/// # Errors
/// Errors of the device. Wrong results are returned as findings, not as errors.
pub fn self_test(device: &Device) -> Result<Vec<Finding>> {
    let check = "LoRA matmul against f64";
    if device.machine() == Machine::Cpu {
        let detail = "the CPU runs no kernels".into();
        return Ok(vec![Finding { check, detail, outcome: Outcome::Skipped }]);
    }
    let operands = Operands::new();
    let (got, expected) = (operands.on_gpu(device)?, operands.on_cpu()?);
    let names = ["y", "dx", "dA", "dB"];
    let errors = got.iter().zip(&expected).map(|(got, expected)| relative_error(got, expected));
    let (mut wrong, mut detail) = (false, Vec::new());
    for (name, error) in names.into_iter().zip(errors) {
        wrong |= !is_good(error);
        detail.push(format!("{name} {error:.1e}"));
    }
    let detail = format!("relative error of {}, at most {LIMIT:.0e}", detail.join(", "));
    let outcome = if wrong { Outcome::Failed } else { Outcome::Passed };
    Ok(vec![Finding { check, detail, outcome }])
}

/// The operands, all exactly representable in bf16: x, W, A, B transposed, dy.
struct Operands {
    x: Vec<bf16>,
    weight: Vec<bf16>,
    a: Vec<bf16>,
    b_t: Vec<bf16>,
    dy: Vec<bf16>,
}

impl Operands {
    fn new() -> Self {
        let numbers = |index: u32, len: usize, size: f32| {
            let mut stream = Stream::new(3, Purpose::ModelInit, index);
            (0..len).map(|_| bf16::from_f32(size * stream.normal())).collect::<Vec<_>>()
        };
        Self {
            x: numbers(0, ROWS * IN_FEATURES, 1.0),
            weight: numbers(1, OUT_FEATURES * IN_FEATURES, 0.06),
            a: numbers(2, RANK * IN_FEATURES, 0.06),
            b_t: numbers(3, RANK * OUT_FEATURES, 0.2),
            dy: numbers(4, ROWS * OUT_FEATURES, 1.0),
        }
    }

    /// y, dx, dA and dB transposed.
    fn on_gpu(&self, device: &Device) -> Result<[Vec<f64>; 4]> {
        let a = device.tensor(RANK, IN_FEATURES, &self.a)?;
        let b = device.tensor(RANK, OUT_FEATURES, &self.b_t)?;
        let da: Tensor<f32> = device.zeros(RANK, IN_FEATURES)?;
        let db: Tensor<f32> = device.zeros(RANK, OUT_FEATURES)?;
        let factors = Factors { a: &a, b_t: &b, grads: Some(FactorGrads { a: &da, b_t: &db }), scaling: 0.5 };
        let adapters = LayerAdapters::new(device, [OUT_FEATURES, IN_FEATURES], &[Some(factors)])?;
        let lora = Lora { a: &a, b: &b, scaling: 0.5, dora: None };
        let weight = device.tensor(OUT_FEATURES, IN_FEATURES, &self.weight)?;
        let (x, dy) =
            (device.tensor(ROWS, IN_FEATURES, &self.x)?, device.tensor(ROWS, OUT_FEATURES, &self.dy)?);
        let one = One { x: &x, dy: &dy, weight: &weight, lora, adapters: Some(&adapters) };
        one.run(device, [da, db])
    }

    /// The reference results, in f64.
    fn on_cpu(&self) -> Result<[Vec<f64>; 4]> {
        let cpu = Device::cpu(0)?;
        let a = cpu.tensor(RANK, IN_FEATURES, &as_f64(&self.a))?;
        let b = cpu.tensor(OUT_FEATURES, RANK, &transposed(&as_f64(&self.b_t), OUT_FEATURES))?;
        let lora = Lora { a: &a, b: &b, scaling: 0.5, dora: None };
        let weight = cpu.tensor(OUT_FEATURES, IN_FEATURES, &as_f64(&self.weight))?;
        let x = cpu.tensor(ROWS, IN_FEATURES, &as_f64(&self.x))?;
        let dy = cpu.tensor(ROWS, OUT_FEATURES, &as_f64(&self.dy))?;
        let one = One { x: &x, dy: &dy, weight: &weight, lora, adapters: None };
        let [y, dx, da, db] =
            one.run(&cpu, [cpu.zeros(RANK, IN_FEATURES)?, cpu.zeros(OUT_FEATURES, RANK)?])?;
        Ok([y, dx, da, transposed(&db, RANK)])
    }
}

/// One layer with one adapter on a device.
struct One<'a, T: Real> {
    x: &'a Tensor<T>,
    dy: &'a Tensor<T>,
    weight: &'a Tensor<T>,
    lora: Lora<'a, T>,
    adapters: Option<&'a LayerAdapters>,
}

impl<T: Real> One<'_, T> {
    /// y, dx, dA and dB as the device computes them; `grads` holds the last two. Outputs that must be
    /// overwritten start as NaN.
    fn run(self, device: &Device, grads: [Tensor<T::Stat>; 2]) -> Result<[Vec<f64>; 4]> {
        let rows = Rows::new(device, ROWS, &[AdapterRows { adapter: 0, rows: 0..ROWS }], None)?;
        let Self { x, dy, weight, lora, adapters } = self;
        let loras = [Some(lora)];
        let layer = Layer { weight, bias: None, loras: &loras, adapters, magnitudes: None, dropout: None };
        let layers = [layer];
        let group = Group::new(&layers, &rows);
        let nan = |cols: usize| device.tensor(ROWS, cols, &vec![T::from_f64(f64::NAN); ROWS * cols]);
        let (mut y, mut dx, mut xa) = (nan(OUT_FEATURES)?, nan(IN_FEATURES)?, nan(group.xa_cols(0))?);
        forward(device, &group, x, &mut [Forward { y: &mut y, xa: &mut xa }])?;
        let [mut da, mut db] = grads;
        let mut grads = [Some(LoraGrad { a: &mut da, b: &mut db, magnitude: None })];
        let layers = &mut [LayerBackward { dy, xa: &xa, grads: &mut grads }];
        backward(device, &group, Backward { x, dx: Some(&mut dx), layers })?;
        let wide = |values: Vec<T>| values.into_iter().map(Real::to_f64).collect();
        let wide_stat = |values: Vec<T::Stat>| values.into_iter().map(Real::to_f64).collect();
        Ok([
            wide(device.read(&y)?),
            wide(device.read(&dx)?),
            wide_stat(device.read(&da)?),
            wide_stat(device.read(&db)?),
        ])
    }
}

/// False for NaN.
fn is_good(error: f64) -> bool {
    error <= LIMIT
}

fn as_f64(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// The transpose of a matrix with `cols` columns.
fn transposed(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
    let squares: f64 = got.iter().zip(expected).map(|(g, e)| (g - e) * (g - e)).sum();
    (squares / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "emulated")]
    #[test]
    fn the_kernels_pass() {
        let device = crate::ops::testing::kernel_device(0);
        let findings = self_test(&device).unwrap();
        assert!(findings.iter().all(|f| f.outcome == Outcome::Passed), "{findings:?}");
    }

    #[test]
    fn the_cpu_has_nothing_to_check() {
        let findings = self_test(&Device::cpu(1).unwrap()).unwrap();
        assert!(findings.iter().all(|f| f.outcome == Outcome::Skipped), "{findings:?}");
    }

    #[test]
    fn wrong_results_fail() {
        let expected = [1.0, 2.0];
        assert!(is_good(relative_error(&expected, &expected)));
        assert!(!is_good(relative_error(&[1.0, 2.1], &expected)));
        assert!(!is_good(relative_error(&[f64::NAN, 2.0], &expected)));
    }
}
