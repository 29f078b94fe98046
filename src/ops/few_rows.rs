//! Matrix products with at most [`MAX_ROWS`] rows on one side: bound by the bandwidth of reading the large
//! matrix once.
//!
//! A general product first copies both operands into the layout of its kernel. With few rows that copy is
//! most of the work (measured for 8 rows and a vocabulary of 151,936: 6 to 10 times the time of reading the
//! matrix), so here the rows of the matrix are read in place.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Write};
use crate::ops::simd::{self, LANES};
use crate::tensor::Real;

/// Most rows of the result.
const MAX_ROWS: usize = 16;
/// Elements below which the general product is used: copying a smaller matrix is cheap.
const MIN_ELEMENTS: usize = 1 << 16;
/// Columns of the result that one task computes.
const PIECE: usize = 512;
/// Rows of the matrix that are processed together.
const TOGETHER: usize = 4;

/// True for few rows times a large matrix whose rows or columns are contiguous.
pub(super) fn applies<T: Real>(rows: usize, a: &Mat<'_, T>, b: &Mat<'_, T>) -> bool {
    rows <= MAX_ROWS
        && a.col_stride == 1
        && (b.row_stride == 1 || b.col_stride == 1)
        && b.rows * b.cols >= MIN_ELEMENTS
}

/// `dst = [dst +] scale * a b` on the calling thread.
pub(super) fn multiply<T: Real>(
    mut dst: MatMut<'_, T>,
    write: Write,
    scale: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
) {
    for start in (0..dst.cols).step_by(PIECE) {
        let block = piece(start, a, b);
        put(&mut dst, write, scale, start, &block);
    }
}

/// `dst = [dst +] scale * a b` on all threads; the partition does not depend on the number of threads.
pub(super) fn par_multiply<T: Real>(
    mut dst: MatMut<'_, T>,
    write: Write,
    scale: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
) {
    let starts: Vec<usize> = (0..dst.cols).step_by(PIECE).collect();
    let blocks: Vec<Vec<T>> = starts.par_iter().map(|&start| piece(start, a, b)).collect();
    for (start, block) in starts.into_iter().zip(blocks) {
        put(&mut dst, write, scale, start, &block);
    }
}

/// Columns `start..` of `a b`, `[a.rows, at most PIECE]`.
fn piece<T: Real>(start: usize, a: Mat<'_, T>, b: Mat<'_, T>) -> Vec<T> {
    let cols = PIECE.min(b.cols - start);
    let mut block = vec![T::ZERO; a.rows * cols];
    let b = b.cols_range(start, start + cols);
    simd::run(
        #[inline(always)]
        || {
            if b.row_stride == 1 {
                dot_products(a, b.t(), &mut block);
            } else {
                add_rows(a, b, &mut block);
            }
        },
    );
    block
}

fn put<T: Real>(dst: &mut MatMut<'_, T>, write: Write, scale: T, start: usize, block: &[T]) {
    if dst.rows == 0 {
        return;
    }
    let cols = block.len() / dst.rows;
    for (row, block) in block.chunks_exact(cols).enumerate() {
        let at = row * dst.row_stride + start;
        for (dst, &x) in dst.data[at..at + cols].iter_mut().zip(block) {
            *dst = if write == Write::Add { *dst + scale * x } else { scale * x };
        }
    }
}

/// `block[i, j] = a[i] . b[j]` with contiguous rows of both.
#[inline(always)]
fn dot_products<T: Real>(a: Mat<'_, T>, b: Mat<'_, T>, block: &mut [T]) {
    let whole = b.rows - b.rows % TOGETHER;
    for j in (0..whole).step_by(TOGETHER) {
        let rows: [&[T]; TOGETHER] = std::array::from_fn(|r| b.row(j + r));
        for i in 0..a.rows {
            let sums = dot_several(a.row(i), rows);
            block[i * b.rows + j..i * b.rows + j + TOGETHER].copy_from_slice(&sums);
        }
    }
    for j in whole..b.rows {
        for i in 0..a.rows {
            block[i * b.rows + j] = simd::dot(a.row(i), b.row(j));
        }
    }
}

/// The dot products of `x` with several rows, in the order of sums of [`simd::dot`].
#[inline(always)]
fn dot_several<T: Real>(x: &[T], rows: [&[T]; TOGETHER]) -> [T; TOGETHER] {
    let mut lanes = [[T::ZERO; LANES]; TOGETHER];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let parts = rows.map(|row| row.as_chunks::<LANES>());
    for (at, x) in x.iter().enumerate() {
        for (lanes, (row, _)) in lanes.iter_mut().zip(&parts) {
            let row = &row[at];
            for lane in 0..LANES {
                lanes[lane] += x[lane] * row[lane];
            }
        }
    }
    for (lanes, (_, row_rest)) in lanes.iter_mut().zip(&parts) {
        for ((sum, &x), &row) in lanes.iter_mut().zip(x_rest).zip(*row_rest) {
            *sum += x * row;
        }
    }
    lanes.map(simd::fold_sum)
}

/// `block[i, :] = sum over p of a[i, p] * b[p, :]` with contiguous rows of `b`.
#[inline(always)]
fn add_rows<T: Real>(a: Mat<'_, T>, b: Mat<'_, T>, block: &mut [T]) {
    let cols = b.cols;
    let whole = b.rows - b.rows % TOGETHER;
    for p in (0..whole).step_by(TOGETHER) {
        let rows: [&[T]; TOGETHER] = std::array::from_fn(|r| &b.row(p + r)[..cols]);
        for (i, block) in block.chunks_exact_mut(cols).enumerate() {
            let factors = &a.row(i)[p..p + TOGETHER];
            for (j, sum) in block.iter_mut().enumerate() {
                let low = factors[0] * rows[0][j] + factors[1] * rows[1][j];
                let high = factors[2] * rows[2][j] + factors[3] * rows[3][j];
                *sum += low + high;
            }
        }
    }
    for p in whole..b.rows {
        for (i, block) in block.chunks_exact_mut(cols).enumerate() {
            let factor = a.row(i)[p];
            for (sum, &x) in block.iter_mut().zip(b.row(p)) {
                *sum += factor * x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpu, random, relative_rms};

    #[test]
    fn few_rows_agree_with_the_general_product() {
        let device = cpu();
        for (m, n, k) in [(1, 700, 129), (3, 1100, 67), (16, 513, 1030), (7, 66_000, 1)] {
            let a = random::<f64>(&device, m, k, 0);
            let (nt, nn) = (random::<f64>(&device, n, k, 1), random::<f64>(&device, k, n, 2));
            let a = Mat::new(a.data(), m, k);
            for b in [Mat::new(nt.data(), n, k).t(), Mat::new(nn.data(), k, n)] {
                assert!(applies(m, &a, &b), "{m} {n} {k}");
                let mut expected = vec![0.0; m * n];
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let b_at = |p: usize| b.data[p * b.row_stride + j * b.col_stride];
                    expected[i * n + j] = (0..k).map(|p| a.row(i)[p] * b_at(p)).sum();
                }
                let mut y = vec![f64::NAN; m * n];
                par_multiply(MatMut::new(&mut y, m, n), Write::Overwrite, 1.0, a, b);
                assert!(relative_rms(&y, &expected) < 1e-13, "{m} {n} {k}");
                multiply(MatMut::new(&mut y, m, n), Write::Add, -0.5, a, b);
                let half: Vec<f64> = expected.iter().map(|e| 0.5 * e).collect();
                assert!(relative_rms(&y, &half) < 1e-13, "{m} {n} {k}");
            }
        }
    }

    #[test]
    fn small_matrices_and_many_rows_take_the_general_path() {
        let data = vec![0.0f32; 1 << 17];
        let large = Mat::new(&data, 256, 512);
        assert!(applies(16, &Mat::new(&data, 16, 256), &large));
        assert!(!applies(17, &Mat::new(&data, 17, 256), &large));
        assert!(!applies(4, &Mat::new(&data, 256, 4).t(), &large));
        assert!(!applies(4, &Mat::new(&data, 4, 16), &Mat::new(&data, 16, 512)));
    }
}
