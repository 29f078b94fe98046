//! Dropout masks as a pure function: nothing is stored, and the same element gets the same mask in both directions.

use rayon::prelude::*;

use crate::batch::Segment;
use crate::device::kernels::DevicePtr;
use crate::ops::gemm::Write;
use crate::ops::simd;
use crate::rng::{Purpose, philox};
use crate::tensor::Real;

/// The identity of a row, independent of its place in a batch: sample and position, one pair per row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowKeys {
    keys: Vec<[u32; 2]>,
}

impl RowKeys {
    /// The keys of all rows of a packed batch.
    pub fn new(segments: &[Segment]) -> Self {
        let keys = segments.iter().flat_map(|s| {
            (s.position_offset..s.position_offset + s.len).map(|position| [s.sample, position as u32])
        });
        Self { keys: keys.collect() }
    }

    /// The keys of some of the rows.
    pub fn gather(&self, rows: &[usize]) -> Self {
        Self { keys: rows.iter().map(|&row| self.keys[row]).collect() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Sample and position of every row.
    pub fn as_slice(&self) -> &[[u32; 2]] {
        &self.keys
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Dropout of one layer in one step. [`Rows`](super::Rows) has the keys of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropout {
    /// Probability to drop an element, in units of 1/65536.
    threshold: u16,
    key: [u32; 2],
    key_ptr: DevicePtr,
}

impl Dropout {
    /// Dropout with probability `p` for layer number `layer` at optimizer step `step`; none if `p` rounds to 0.
    pub fn new(p: f64, seed: u64, step: u64, layer: u32) -> Option<Self> {
        Self::with_purpose(p, (seed, Purpose::Dropout), step, layer)
    }

    /// The same for place number `place` of the frozen model; the masks have nothing in common with those of layers.
    pub fn of_base(p: f64, seed: u64, step: u64, place: u32) -> Option<Self> {
        Self::with_purpose(p, (seed, Purpose::BaseDropout), step, place)
    }

    fn with_purpose(p: f64, (seed, purpose): (u64, Purpose), step: u64, number: u32) -> Option<Self> {
        let threshold = (p * 65536.0).round().clamp(0.0, 65535.0) as u16;
        let seed = [seed as u32, (seed >> 32) as u32];
        let words = philox(seed, [step as u32, (step >> 32) as u32, number, purpose as u32]);
        (threshold > 0).then_some(Self { threshold, key: [words[0], words[1]], key_ptr: DevicePtr(0) })
    }

    /// The same dropout for kernels, which read the key at this address
    /// ([`gpu::dropout_keys`](super::gpu::dropout_keys)), where it is rewritten for every step.
    pub fn with_key_at(self, key_ptr: DevicePtr) -> Self {
        Self { key_ptr, ..self }
    }

    /// Drop probability in units of 1/65536.
    pub fn threshold(&self) -> u16 {
        self.threshold
    }

    /// The Philox key of this layer and step.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Address of the key for kernels; null on a CPU.
    pub(super) fn key_ptr(&self) -> DevicePtr {
        self.key_ptr
    }

    /// `1 / (1 - p)`.
    pub(super) fn keep(&self) -> f64 {
        1.0 / (1.0 - f64::from(self.threshold) / 65536.0)
    }

    /// `out[i, :] (+)= mask[i, :] * x[i, :] / (1 - p)` for rows with these keys.
    pub(super) fn apply<T: Real>(&self, keys: &[[u32; 2]], x: &[T], out: &mut [T], write: Write) {
        let (keep, cols) = (T::from_f64(self.keep()), out.len() / keys.len().max(1));
        let rows = out.par_chunks_mut(cols.max(1)).zip(x.par_chunks(cols.max(1))).zip(keys);
        rows.for_each(|((out, x), &key)| {
            simd::run(
                #[inline(always)]
                || self.apply_row(key, keep, x, out, write),
            );
        });
    }

    /// `x[i, :] *= mask[i, :] / (1 - p)` for rows with these keys.
    pub(super) fn apply_in_place<T: Real>(&self, keys: &[[u32; 2]], x: &mut [T]) {
        let (keep, cols) = (T::from_f64(self.keep()), x.len() / keys.len().max(1));
        x.par_chunks_mut(cols.max(1)).zip(keys).for_each_init(
            || vec![T::ZERO; cols],
            |before, (row, &key)| {
                before.copy_from_slice(row);
                simd::run(
                    #[inline(always)]
                    || self.apply_row(key, keep, before, row, Write::Overwrite),
                );
            },
        );
    }

    /// One row. A Philox call gives 8 masks of 16 bits; 16 calls side by side fill the vectors.
    #[inline(always)]
    fn apply_row<T: Real>(&self, row: [u32; 2], keep: T, x: &[T], out: &mut [T], write: Write) {
        const CALLS: usize = 16;
        let mut block = 0u32;
        for (out, x) in out.chunks_mut(8 * CALLS).zip(x.chunks(8 * CALLS)) {
            let mut words = [[0u32; CALLS]; 4];
            let [first, second, third, fourth] = &mut words;
            let lanes = first.iter_mut().zip(second).zip(third).zip(fourth);
            for (call, (((a, b), c), d)) in (block..).zip(lanes) {
                [*a, *b, *c, *d] = philox(self.key, [call, row[1], row[0], 0]);
            }
            block += CALLS as u32;
            let mut factors = [T::ZERO; 8 * CALLS];
            for (word, factors) in words.iter().zip(factors.chunks_exact_mut(2 * CALLS)) {
                let (low, high) = factors.split_at_mut(CALLS);
                for ((word, low), high) in word.iter().zip(low).zip(high) {
                    *low = if *word as u16 >= self.threshold { keep } else { T::ZERO };
                    *high = if (*word >> 16) as u16 >= self.threshold { keep } else { T::ZERO };
                }
            }
            for ((out, &x), &factor) in out.iter_mut().zip(x).zip(&factors) {
                *out = if write == Write::Add { *out + x * factor } else { x * factor };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    fn keys(lengths: &[usize]) -> RowKeys {
        let mut batch = Batch::default();
        for &len in lengths {
            batch.push_segment(&vec![0; len], None, 0);
        }
        RowKeys::new(&batch.segments)
    }

    fn mask(p: f64, step: u64, layer: u32, keys: &RowKeys, cols: usize) -> Vec<f32> {
        let (x, mut out) = (vec![1.0; keys.len() * cols], vec![f32::NAN; keys.len() * cols]);
        let dropout = Dropout::new(p, 42, step, layer).unwrap();
        dropout.apply(keys.as_slice(), &x, &mut out, Write::Overwrite);
        out
    }

    #[test]
    fn the_share_of_dropped_elements_and_the_mean_are_right() {
        for p in [0.05, 0.5, 0.9] {
            let mask = mask(p, 0, 0, &keys(&[400]), 1001);
            let dropped = mask.iter().filter(|&&m| m == 0.0).count() as f64 / mask.len() as f64;
            let mean = mask.iter().map(|&m| f64::from(m)).sum::<f64>() / mask.len() as f64;
            assert!((dropped - p).abs() < 0.005 && (mean - 1.0).abs() < 0.02, "{p}: {dropped} {mean}");
        }
    }

    #[test]
    fn steps_layers_rows_and_columns_have_masks_of_their_own() {
        let keys = keys(&[2]);
        let base = mask(0.5, 0, 0, &keys, 512);
        assert_eq!(base, mask(0.5, 0, 0, &keys, 512));
        for other in [mask(0.5, 1, 0, &keys, 512), mask(0.5, 0, 1, &keys, 512)] {
            let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((400..624).contains(&equal), "{equal} of 1024");
        }
        assert_ne!(base[..512], base[512..]);
        assert_ne!(base[..128], base[128..256]);
    }

    #[test]
    fn a_row_keeps_its_mask_wherever_it_lies() {
        let packed = keys(&[3, 2]);
        let all = mask(0.3, 7, 1, &packed, 40);
        let some = mask(0.3, 7, 1, &packed.gather(&[4, 1]), 40);
        assert_eq!(some[..40], all[160..]);
        assert_eq!(some[40..], all[40..80]);
    }

    #[test]
    fn no_dropout_is_none() {
        assert!(Dropout::new(0.0, 1, 1, 1).is_none());
    }
}
