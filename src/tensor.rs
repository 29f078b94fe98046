//! Element types: what numbers are called in files ([`DType`]), what a buffer holds ([`Element`]), what ops compute with ([`Real`]).
//!
//! No memory lives here; buffers are in [`crate::device`].

use std::fmt;

use half::{bf16, f16};

/// Element types of model and adapter files, and of buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 double.
    F64,
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned byte.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::U8 => "U8",
        })
    }
}

/// What a buffer may hold: plain bytes with a name.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug {
    /// Name in files.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty: $dtype:ident),+) => { $(impl Element for $type { const DTYPE: DType = DType::$dtype; })+ };
}

elements!(f64: F64, f32: F32, f16: F16, bf16: Bf16, i64: I64, i32: I32, u32: U32, u8: U8);

/// A real number that ops compute with: `f32` runs on the CPU, `bf16` on GPUs, `f64` is the oracle of tests.
///
/// The functions are the few that the ops need; `exp` of f32 is [`exp_f32`], which the compiler can vectorise and which
/// gives the same bits on every machine. Arithmetic of `bf16` is that of f32, rounded after every operation: it is there so that
/// one model code serves all types, and far slower than f32 on a processor.
pub trait Real:
    Element
    + Default
    + PartialOrd
    + fmt::Display
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
{
    /// Type of what is summed over many numbers or many steps: statistics of norms, `lse`, gradients and moments of adapters,
    /// and what an optimizer adds small updates to.
    type Stat: Real<Stat = Self::Stat>;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// The same value as f64.
    fn to_f64(self) -> f64;
    /// The nearest value of this type.
    fn from_f32(value: f32) -> Self;
    /// The nearest value of this type.
    fn from_stat(value: Self::Stat) -> Self;
    /// The same value as a statistic.
    fn to_stat(self) -> Self::Stat;
    /// e to the power of self.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// The error function, `2 / sqrt(pi)` times the integral of `exp(-t^2)` from 0 to self.
    fn erf(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// The larger of two numbers; the other one where one is NaN.
    fn max(self, other: Self) -> Self;
}

/// Implements [`Real`] for a type of the language, which is its own statistics type; `$exp` is its exponential, `$erf` its error function.
macro_rules! real {
    ($type:ty, $exp:expr, $erf:expr) => {
        impl Real for $type {
            type Stat = Self;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$type>::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                <$type>::from(value)
            }
            #[inline(always)]
            fn from_stat(value: Self) -> Self {
                value
            }
            #[inline(always)]
            fn to_stat(self) -> Self {
                self
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$type>::ln(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                <$type>::max(self, other)
            }
        }
    };
}

real!(f32, exp_f32, erf_f32);
real!(f64, f64::exp, libm::erf);

impl Real for bf16 {
    type Stat = f32;
    const ZERO: Self = Self::ZERO;
    const ONE: Self = Self::ONE;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    fn from_stat(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    fn to_stat(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn exp(self) -> Self {
        Self::from_f32(exp_f32(self.to_f32()))
    }
    #[inline(always)]
    fn ln(self) -> Self {
        Self::from_f32(self.to_f32().ln())
    }
    #[inline(always)]
    fn erf(self) -> Self {
        Self::from_f32(erf_f32(self.to_f32()))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self::from_f32(self.to_f32().sqrt())
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        Self::is_finite(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self::from_f32(self.to_f32().max(other.to_f32()))
    }
}

/// e to the power of `x` in f32, within 2 units in the last place, without a branch.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of degree 7 (remainder below 6e-9), then the exponent
/// is added to the bits. Below -87.3 the result is 0 and above 88.3 infinity; NaN stays NaN.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // n is -126..=127, so 2^n is a normal number. For NaN the bits mean nothing, and `p` is NaN.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let y = p * f32::from_bits(exponent << 23);
    let y = if x < LOWEST { 0.0 } else { y };
    if x > HIGHEST { f32::INFINITY } else { y }
}

/// The error function in f32, within 4 units in the last place of 1, without a branch.
///
/// `x P(x^2) / Q(x^2)` with polynomials of degree 6 and 4 on -4 to 4, where the result has reached 1. Source of the
/// coefficients: the float version of `erf` in Eigen and XLA.
#[inline(always)]
pub fn erf_f32(x: f32) -> f32 {
    let clamped = if x < -4.0 { -4.0 } else { x };
    let clamped = if clamped > 4.0 { 4.0 } else { clamped };
    let square = clamped * clamped;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * square + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
        q = q * square + c;
    }
    clamped * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_f64() {
        let mut worst = 0.0f64;
        let mut x = -6.0f32;
        while x < 6.0 {
            worst = worst.max((f64::from(erf_f32(x)) - libm::erf(f64::from(x))).abs());
            x += 0.000_37;
        }
        assert!(worst < 4.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!((erf_f32(0.0), erf_f32(f32::INFINITY).round()), (0.0, 1.0));
        assert!(erf_f32(f32::NAN).is_nan());
    }

    #[test]
    fn exp_agrees_with_f64_over_its_whole_range() {
        let mut worst = 0.0f64;
        let mut x = -87.0f32;
        while x < 88.3 {
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_f32(x)) - exact).abs() / exact);
            x += 0.000_37;
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    }

    #[test]
    fn bf16_rounds_after_every_operation() {
        let [one, small] = [1.0, 0.003].map(bf16::from_f32);
        // Half a unit in the last place of 1 is 0.0039: three small steps are lost, their sum is not.
        assert_eq!(one + small + small + small, one);
        assert_eq!((one.to_stat() + 3.0 * small.to_stat()) as f64, 1.0 + 3.0 * small.to_f64());
        assert!(<bf16 as Real>::from_stat(1.009) > one);
        assert_eq!(<bf16 as Real>::max(bf16::NAN, one), one);
        assert_eq!(<bf16 as Real>::exp(bf16::ZERO), one);
    }

    #[test]
    fn exp_has_the_right_edges() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-1e30), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(100.0), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
    }
}
