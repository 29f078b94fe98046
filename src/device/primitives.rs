//! Check of the primitives of kernels: one kernel on raw bits, compared with stored results.
//!
//! The stored results are the same for GPUs and for the emulator, so an error that the emulator and the
//! kernels share about the instruction set is found as soon as a GPU runs this: `tanren inspect device
//! --self-test` does.

use half::bf16;

use super::kernels::Kernel;
use super::kernels::params::PrimitivesParams;
use super::self_test::{Finding, Outcome};
use super::{Device, Launch};
use crate::error::Result;
use crate::rng::philox;

/// The stored results: a line for each case and primitive, 32 lanes in hexadecimal.
const STORED: &str = include_str!("../../tests/golden/primitives/results.txt");

const LANES: usize = 32;

/// The cases, named by their kind of numbers.
const CASES: [&str; 4] = ["integers", "fractions", "wide", "special"];

/// Elements of `a` and of the matrices of `ldmatrix` in one case, and of `b`.
const SQUARE: usize = 256;
const NARROW: usize = 128;

/// Tolerance of a result against the stored one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Agreement {
    /// The same bits.
    Bits,
    /// The same f32, or any NaN for a NaN: processors differ in the NaN they produce.
    Float,
    /// An f32 with at most this relative error.
    Relative(f32),
    /// An f32 with at most this error relative to the sum of the products' magnitudes. Tensor cores align the
    /// products of a sum to the largest one and truncate the bits below its last bit, in an undocumented
    /// order.
    OfProducts(f32),
}

/// The outputs of the kernel, in its order.
const PRIMITIVES: [(&str, Agreement); 32] = {
    use Agreement::{Bits, Float, OfProducts, Relative};
    // 17 terms, each truncated below 2^-23 of the largest.
    const TENSOR: Agreement = OfProducts(1.0 / 262_144.0);
    // The hardware's error is 2 units in the last place.
    const FAST: Agreement = Relative(1.0 / 2_097_152.0);
    [
        ("shfl", Bits),
        ("shfl_xor", Bits),
        ("shfl_down", Bits),
        ("ballot", Bits),
        ("warp_sum", Float),
        ("warp_max", Float),
        ("quad_sum", Float),
        ("quad_max", Float),
        ("ldmatrix_0", Bits),
        ("ldmatrix_1", Bits),
        ("ldmatrix_2", Bits),
        ("ldmatrix_3", Bits),
        ("ldmatrix_trans_0", Bits),
        ("ldmatrix_trans_1", Bits),
        ("ldmatrix_trans_2", Bits),
        ("ldmatrix_trans_3", Bits),
        ("mma_0", TENSOR),
        ("mma_1", TENSOR),
        ("mma_2", TENSOR),
        ("mma_3", TENSOR),
        ("cp_async_0", Bits),
        ("cp_async_1", Bits),
        ("cp_async_2", Bits),
        ("cp_async_3", Bits),
        ("to_bf16", Bits),
        ("pack_bf16", Bits),
        ("mul_hi", Bits),
        ("fmaf", Float),
        ("sqrtf", Float),
        ("reciprocal", Float),
        ("rsqrtf", FAST),
        ("exp2", FAST),
    ]
};

/// The first row of `mma` in [`PRIMITIVES`].
const MMA: usize = 16;

/// Edge cases of rounding and of f32. No number is the negative of another one in its group of four lanes.
const SPECIAL: [u32; LANES] = [
    0x0000_0000, // 0
    0x3f80_0000, // 1
    0x8000_0000, // -0
    0x4000_0000, // 2
    0x7f80_0000, // inf
    0x4040_0000, // 3
    0x40a0_0000, // 5
    0x7fc0_0000, // NaN
    0xff80_0000, // -inf
    0x3f80_8000, // between two bf16, the lower one even
    0x3f81_8000, // between two bf16, the upper one even
    0x7f7f_ffff, // the largest f32: infinite as bf16
    0x0080_0000, // the smallest normal f32
    0x0000_0001, // the smallest f32
    0x007f_ffff, // the largest subnormal f32
    0xff7f_ffff, // the largest f32, negative
    0x3f80_8001, // a little above the middle
    0x3f80_7fff, // a little below the middle
    0x7f7f_8000, // between the largest bf16 and infinity
    0x7f7f_7fff, // a little below
    0x42fe_0000, // 127
    0x4300_0000, // 128: 2^x is infinite
    0xc2fc_0000, // -126: 2^x is the smallest normal number
    0xc2fe_0000, // -127: 2^x is subnormal, and given as 0
    0xc315_0000, // -149
    0x3f00_0000, // 0.5
    0xbf00_0000, // -0.5
    0x0da2_4260, // 1e-30
    0x7149_f2ca, // 1e30
    0x8da2_4260, // -1e-30
    0x42c8_8000, // 100.25
    0xc2c8_8000, // -100.25
];

/// What the kernel reads, all cases one after another.
struct Inputs {
    words: Vec<u32>,
    numbers: Vec<f32>,
    matrices: Vec<bf16>,
    a: Vec<bf16>,
    b: Vec<bf16>,
}

impl Inputs {
    /// Made from random bits by exact operations only, so they are the same on every machine.
    fn new() -> Self {
        let mut inputs = Self {
            words: Vec::new(),
            numbers: Vec::new(),
            matrices: Vec::new(),
            a: Vec::new(),
            b: Vec::new(),
        };
        for (case, name) in (0_u32..).zip(CASES) {
            let number = |bits: u32| match name {
                "integers" => (bits >> 8) as f32 % 129.0 - 64.0,
                "fractions" => bits as i32 as f32 / 2_147_483_648.0,
                // Scaled by 2^-16 to 2^15.
                _ => bits as i32 as f32 / 2_147_483_648.0 * f32::from_bits((111 + (bits & 31)) << 23),
            };
            let draw = |stream: u32, len: usize| random(1000 + 10 * case + stream, len);
            let halves = |stream: u32, len: usize| -> Vec<bf16> {
                draw(stream, len).into_iter().map(|bits| bf16::from_f32(number(bits))).collect()
            };
            inputs.words.extend(draw(0, LANES));
            inputs.a.extend(halves(1, SQUARE));
            inputs.b.extend(halves(2, NARROW));
            if name == "special" {
                inputs.numbers.extend(SPECIAL.map(f32::from_bits));
                inputs.matrices.extend(draw(4, SQUARE).into_iter().map(|bits| bf16::from_bits(bits as u16)));
            } else {
                inputs.numbers.extend(draw(3, LANES).into_iter().map(number));
                inputs.matrices.extend(halves(4, SQUARE));
            }
        }
        inputs
    }

    /// The sum of the magnitudes of the terms of one `mma` result.
    fn magnitude(&self, case: usize, part: usize, lane: usize) -> f64 {
        let (row, column) = (lane / 4 + part / 2 * 8, 2 * (lane % 4) + part % 2);
        let a = &self.a[case * SQUARE + row * 16..][..16];
        let b = &self.b[case * NARROW..][..NARROW];
        let products = (0..16).map(|k| (a[k].to_f64() * b[k * 8 + column].to_f64()).abs());
        (part + 1) as f64 + products.sum::<f64>()
    }

    /// The results of `device`, by case, primitive and lane.
    fn run(&self, device: &Device) -> Result<Vec<u32>> {
        let words = device.tensor(CASES.len(), LANES, &self.words)?;
        let numbers = device.tensor(CASES.len(), LANES, &self.numbers)?;
        let matrices = device.tensor(CASES.len(), SQUARE, &self.matrices)?;
        let a = device.tensor(CASES.len(), SQUARE, &self.a)?;
        let b = device.tensor(CASES.len(), NARROW, &self.b)?;
        let out = device.empty::<u32>(CASES.len() * PRIMITIVES.len(), LANES)?;
        let params = PrimitivesParams {
            words: words.ptr(),
            numbers: numbers.ptr(),
            matrices: matrices.ptr(),
            a: a.ptr(),
            b: b.ptr(),
            out: out.ptr(),
        };
        let grid = [CASES.len() as u32, 1, 1];
        device.launch(&Launch { kernel: Kernel::Primitives, grid, dynamic_smem: 0 }, &params)?;
        device.read(&out)
    }

    /// The differences between `got` and the stored results, a line for each case and primitive.
    fn faults(&self, got: &[u32], stored: &[u32]) -> Vec<String> {
        let number = CASES.len() * PRIMITIVES.len() * LANES;
        if (got.len(), stored.len()) != (number, number) {
            return vec![format!("{} results, {} stored, expected {number}", got.len(), stored.len())];
        }
        let mut faults = Vec::new();
        for (row, (got, stored)) in got.chunks_exact(LANES).zip(stored.chunks_exact(LANES)).enumerate() {
            let (case, primitive) = (row / PRIMITIVES.len(), row % PRIMITIVES.len());
            let (name, agreement) = PRIMITIVES[primitive];
            let good = |lane: usize| {
                let magnitude = || self.magnitude(case, primitive.saturating_sub(MMA), lane);
                agree(agreement, got[lane], stored[lane], magnitude)
            };
            let Some(lane) = (0..LANES).find(|&lane| !good(lane)) else { continue };
            faults.push(format!(
                "{name} of {}, lane {lane}: got {:#010x}, stored {:#010x}",
                CASES[case], got[lane], stored[lane]
            ));
        }
        faults
    }
}

/// `len` random words, the same for the same `stream`.
fn random(stream: u32, len: usize) -> Vec<u32> {
    let blocks = u32::try_from(len.div_ceil(4)).unwrap_or(u32::MAX);
    let mut words: Vec<u32> = (0..blocks).flat_map(|block| philox([stream, 1], [block, 0, 0, 0])).collect();
    words.truncate(len);
    words
}

fn agree(agreement: Agreement, got: u32, stored: u32, magnitude: impl Fn() -> f64) -> bool {
    let (x, y) = (f64::from(f32::from_bits(got)), f64::from(f32::from_bits(stored)));
    let near = |limit: f64| got == stored || x.is_nan() && y.is_nan() || (x - y).abs() <= limit;
    match agreement {
        Agreement::Bits => got == stored,
        Agreement::Float => near(-1.0),
        Agreement::Relative(part) => near(f64::from(part) * y.abs()),
        Agreement::OfProducts(part) => near(f64::from(part) * magnitude()),
    }
}

/// The stored results; fewer than expected if the file is damaged.
fn stored() -> Vec<u32> {
    let lines = STORED.lines().filter(|line| !line.starts_with('#'));
    lines
        .flat_map(|line| line.split(' ').skip(2))
        .filter_map(|word| u32::from_str_radix(word, 16).ok())
        .collect()
}

/// Runs every primitive on `device` and compares the bits with those stored.
///
/// # Errors
/// Errors of the device. Wrong results are returned as findings, not as errors.
pub fn self_test(device: &Device) -> Result<Vec<Finding>> {
    let inputs = Inputs::new();
    let faults = inputs.faults(&inputs.run(device)?, &stored());
    let (detail, outcome) = match faults.first() {
        None => (format!("{} primitives give what is stored", PRIMITIVES.len()), Outcome::Passed),
        Some(first) => (format!("{} differ; {first}", faults.len()), Outcome::Failed),
    };
    Ok(vec![Finding { check: "primitives", detail, outcome }])
}

#[cfg(test)]
#[path = "primitives_tests.rs"]
mod tests;
