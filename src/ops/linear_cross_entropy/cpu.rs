//! LM head and cross-entropy on the CPU.
//!
//! The vocabulary is cut into blocks, independent of the number of threads. Each block computes its logits
//! and later its part of `dx`, and packs its weights once for each of the two. Sums over blocks run in block
//! order.

use std::ops::Range;

use rayon::prelude::*;

use super::{TargetScore, Targets, chunk_rows};
use crate::batch::TokenTarget;
use crate::device::{Class, Device, Tensor};
use crate::error::Result;
use crate::ops::gemm::{Mat, MatMut, Write, axpy, gemm, par_gemm};
use crate::ops::simd;
use crate::tensor::Real;

/// Maximum number of blocks of the vocabulary: enough for 16 threads.
const MAX_BLOCKS: usize = 16;
/// Minimum number of tokens per block.
const MIN_BLOCK: usize = 256;

/// Where the gradient goes, and the scale of the loss.
struct Gradient<'a, T: Real> {
    dx: &'a mut Tensor<T>,
    scale: f64,
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    targets: &Targets,
    dx: Option<&mut Tensor<T>>,
) -> Result<Vec<TargetScore>> {
    let mut gradient = dx.map(|dx| Gradient { dx, scale: targets.scale() });
    let (targets, num_rows) = (targets.list(), targets.num_rows());
    let mut scores = vec![TargetScore { logprob: 0.0, is_argmax: false }; targets.len()];
    let chunk = chunk_rows::<T>(device.machine(), weight.rows()).min(num_rows);
    if chunk == 0 {
        return Ok(scores);
    }
    let blocks = blocks(weight.rows());
    let place = device.class(Class::Logits);
    let mut logits: Vec<Tensor<T>> =
        blocks.iter().map(|b| place.empty(chunk, b.len())).collect::<Result<_>>()?;
    let mut partial: Vec<Tensor<T>> = match gradient {
        Some(_) => blocks.iter().map(|_| device.empty(chunk, x.cols())).collect::<Result<_>>()?,
        None => Vec::new(),
    };
    if device.is_dry() {
        return Ok(scores);
    }
    for start in (0..num_rows).step_by(chunk) {
        let rows = start..num_rows.min(start + chunk);
        let of_chunk =
            targets.partition_point(|t| t.row < rows.start)..targets.partition_point(|t| t.row < rows.end);
        let head = Chunk { x, weight, blocks: &blocks, rows, targets: &targets[of_chunk.clone()] };
        let lse = head.logits(&mut logits);
        head.score(&logits, &lse, &mut scores[of_chunk]);
        if let Some(gradient) = &mut gradient {
            head.gradient(&mut logits, &lse, gradient, &mut partial);
        }
    }
    Ok(scores)
}

/// See [`super::logits`].
pub(super) fn logits<T: Real>(x: &Tensor<T>, weight: &Tensor<T>, z: &mut Tensor<T>) {
    let [rows, cols] = z.shape();
    let x = Mat::new(x.data(), rows, x.cols());
    let weight = Mat::new(weight.data(), cols, weight.cols());
    par_gemm(MatMut::new(z.data_mut(), rows, cols), Write::Overwrite, T::ONE, x, weight.t());
}

/// Some rows of `x` with their targets.
struct Chunk<'a, T: Real> {
    x: &'a Tensor<T>,
    weight: &'a Tensor<T>,
    blocks: &'a [Range<usize>],
    rows: Range<usize>,
    targets: &'a [TokenTarget],
}

/// Per row: the largest logit, and the log of the sum of exponentials.
struct LogSumExp<T> {
    max: Vec<T>,
    lse: Vec<T>,
}

impl<T: Real> Chunk<'_, T> {
    fn x(&self) -> Mat<'_, T> {
        let cols = self.x.cols();
        Mat::new(&self.x.data()[self.rows.start * cols..self.rows.end * cols], self.rows.len(), cols)
    }

    fn weight(&self, block: &Range<usize>) -> Mat<'_, T> {
        let cols = self.weight.cols();
        Mat::new(&self.weight.data()[block.start * cols..block.end * cols], block.len(), cols)
    }

    /// Fills the logits of every block.
    fn logits(&self, logits: &mut [Tensor<T>]) -> LogSumExp<T> {
        let rows = self.rows.len();
        let parts: Vec<Vec<(T, T)>> = logits
            .par_iter_mut()
            .zip(self.blocks)
            .map(|(z, block)| {
                let n = block.len();
                let dst = MatMut::new(z.data_mut(), rows, n);
                gemm(dst, Write::Overwrite, T::ONE, self.x(), self.weight(block).t());
                z.data()[..rows * n]
                    .chunks_exact(n)
                    .map(|z| {
                        simd::run(
                            #[inline(always)]
                            || {
                                let max = simd::max(z);
                                (max, simd::sum(z, |z| (z - max).exp()))
                            },
                        )
                    })
                    .collect()
            })
            .collect();
        let mut all = LogSumExp { max: Vec::with_capacity(rows), lse: Vec::with_capacity(rows) };
        for row in 0..rows {
            let max = parts.iter().fold(T::NEG_INFINITY, |max, part| max.max(part[row].0));
            let mut total = T::ZERO;
            for part in &parts {
                let (part_max, sum) = part[row];
                total += sum * (part_max - max).exp();
            }
            all.max.push(max);
            all.lse.push(max + total.ln());
        }
        all
    }

    fn score(&self, logits: &[Tensor<T>], lse: &LogSumExp<T>, scores: &mut [TargetScore]) {
        for (target, score) in self.targets.iter().zip(scores) {
            let (row, token) = (target.row - self.rows.start, target.token as usize);
            let block = self.blocks.partition_point(|b| b.end <= token);
            let logit = logits[block].row(row)[token - self.blocks[block].start];
            score.logprob = logit.to_f64() - lse.lse[row].to_f64();
            score.is_argmax = logit >= lse.max[row];
        }
    }

    /// Replaces the logits by their gradients, and computes `dx` from these.
    fn gradient(
        &self,
        logits: &mut [Tensor<T>],
        lse: &LogSumExp<T>,
        gradient: &mut Gradient<'_, T>,
        partial: &mut [Tensor<T>],
    ) {
        let (rows, cols) = (self.rows.len(), self.x.cols());
        let mut weights = vec![0.0f64; rows];
        for target in self.targets {
            weights[target.row - self.rows.start] += f64::from(target.weight);
        }
        let scale = gradient.scale;
        logits.par_iter_mut().zip(self.blocks).zip(partial.par_iter_mut()).for_each(
            |((z, block), partial)| {
                let n = block.len();
                for (row, z) in z.data_mut()[..rows * n].chunks_exact_mut(n).enumerate() {
                    let (lse, weight) = (lse.lse[row], T::from_f64(scale * weights[row]));
                    simd::run(
                        #[inline(always)]
                        || {
                            for z in z.iter_mut() {
                                *z = weight * (*z - lse).exp();
                            }
                        },
                    );
                }
                for target in self.targets.iter().filter(|t| block.contains(&(t.token as usize))) {
                    let at = (target.row - self.rows.start) * n + target.token as usize - block.start;
                    z.data_mut()[at] -= T::from_f64(scale * f64::from(target.weight));
                }
                let dst = MatMut::new(partial.data_mut(), rows, cols);
                let dz = Mat::new(z.data(), rows, n);
                gemm(dst, Write::Overwrite, T::ONE, dz, self.weight(block));
            },
        );
        let dx = &mut gradient.dx.data_mut()[self.rows.start * cols..self.rows.end * cols];
        dx.par_chunks_mut(cols).enumerate().for_each(|(row, dx)| {
            dx.fill(T::ZERO);
            for partial in partial.iter() {
                axpy(dx, T::ONE, partial.row(row));
            }
        });
    }
}

/// The blocks of a vocabulary.
fn blocks(vocab_size: usize) -> Vec<Range<usize>> {
    let size = vocab_size.div_ceil(MAX_BLOCKS).max(MIN_BLOCK).div_ceil(64) * 64;
    (0..vocab_size.div_ceil(size)).map(|i| i * size..vocab_size.min((i + 1) * size)).collect()
}
