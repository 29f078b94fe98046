//! Loops over slices, compiled for the widest vectors of the machine that runs them.
//!
//! [`run`] compiles its closure for several instruction sets and picks one at run time. No operation is
//! reordered and none is fused, so the result is the same on all of them; sums go through [`LANES`] partial
//! sums in a fixed assignment.

use crate::tensor::Real;

/// Partial sums of a reduction: one vector of 16 f32.
pub const LANES: usize = 16;

/// Runs `work` compiled for the best instruction set of this machine. Mark the closure `#[inline(always)]`.
#[inline(always)]
pub fn run<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Work<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// `sum(f(a[i]))` in [`LANES`] partial sums.
#[inline(always)]
pub fn sum<A: Real, T: Real>(a: &[A], f: impl Fn(A) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    // Arrays of a known length, so that the compiler can drop bounds checks.
    let (chunks, rest) = a.as_chunks::<LANES>();
    for a in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane]);
        }
    }
    for (sum, &a) in lanes.iter_mut().zip(rest) {
        *sum += f(a);
    }
    fold_sum(lanes)
}

/// `sum(a[i] * b[i])` in [`LANES`] partial sums; the slices are of one length.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for ((sum, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    fold_sum(lanes)
}

/// `sum(a[i] * b[i] * c[i])` in [`LANES`] partial sums; the slices are of one length.
#[inline(always)]
pub fn dot3<T: Real>(a: &[T], b: &[T], c: &[T]) -> T {
    sum3(a, b, c, |a, b, c| a * b * c)
}

/// `sum(f(a[i], b[i], c[i]))` in [`LANES`] partial sums; the slices are of one length.
#[inline(always)]
pub fn sum3<T: Real>(a: &[T], b: &[T], c: &[T], f: impl Fn(T, T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane], c[lane]);
        }
    }
    for (((sum, &a), &b), &c) in lanes.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *sum += f(a, b, c);
    }
    fold_sum(lanes)
}

/// The largest of `values`; minus infinity if there are none. NaN values are ignored.
#[inline(always)]
pub fn max<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    fold(lanes, |a, b| if b > a { b } else { a })
}

/// The sum of partial sums, in the order of [`sum`].
#[inline(always)]
pub fn fold_sum<T: Real>(lanes: [T; LANES]) -> T {
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_cover_every_length() {
        for len in 0..70 {
            let values: Vec<f64> = (0..len).map(|i| f64::from(i % 7) - 3.0).collect();
            assert_eq!(sum(&values, |x| x), values.iter().sum::<f64>());
            assert_eq!(dot(&values, &values), values.iter().map(|x| x * x).sum::<f64>());
            assert_eq!(dot3(&values, &values, &values), values.iter().map(|x| x * x * x).sum::<f64>());
            assert_eq!(max(&values), values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let plain = sum(&values, Real::exp);
        let wide = run(
            #[inline(always)]
            || sum(&values, Real::exp),
        );
        assert_eq!(plain.to_bits(), wide.to_bits());
    }
}
