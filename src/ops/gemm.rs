//! Matrix products: the one wrapper around the `gemm` crate.
//!
//! The partition of the work depends on the shapes alone, never on the number of threads, and every piece is
//! computed by one thread in a fixed order. So results are bit-identical for any number of threads.

#![allow(
    unsafe_code,
    reason = "the gemm crate takes raw pointers; the bounds are checked here, once for all callers"
)]

use rayon::prelude::*;

use super::{few_rows, simd};
use crate::tensor::{DType, Real};

/// A read-only matrix view with strides in elements.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    pub(super) data: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a, T: Real> Mat<'a, T> {
    /// `[rows, cols]`, row-major and dense.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `[rows, cols]`, row-major, `row_stride` elements from row to row.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Rows `start..end` of the view.
    fn rows_range(self, start: usize, end: usize) -> Self {
        let offset = if start == end { 0 } else { start * self.row_stride };
        Self { data: &self.data[offset..], rows: end - start, ..self }
    }

    /// Columns `start..end` of the view.
    pub(super) fn cols_range(self, start: usize, end: usize) -> Self {
        self.t().rows_range(start, end).t()
    }

    /// Row `row`, where rows are contiguous.
    pub(super) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.row_stride..row * self.row_stride + self.cols]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element in row `row` and column `col`.
    pub fn at(&self, row: usize, col: usize) -> T {
        self.data[row * self.row_stride + col * self.col_stride]
    }

    /// True if every element lies within the slice.
    fn fits(&self) -> bool {
        fits(self.data.len(), self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// A matrix view to write to, row-major.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    pub(super) data: &'a mut [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a, T: Real> MatMut<'a, T> {
    /// `[rows, cols]`, row-major and dense.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `[rows, cols]`, row-major, `row_stride` elements from row to row.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride }
    }
}

/// Whether the result is overwritten or added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// `dst = scale * a b`.
    Overwrite,
    /// `dst += scale * a b`.
    Add,
}

/// `dst = [dst +] scale * a b` on the calling thread. The product of no columns with no rows is 0.
///
/// # Panics
/// If the shapes do not fit each other or a view reaches beyond its slice.
pub fn gemm<T: Real>(dst: MatMut<'_, T>, write: Write, scale: T, a: Mat<'_, T>, b: Mat<'_, T>) {
    assert_fits(&dst, &a, &b);
    if !is_fast::<T>() {
        return plain(dst, write, scale, a, b);
    }
    if few_rows::applies(dst.rows, &a, &b) {
        return few_rows::multiply(dst, write, scale, a, b);
    }
    let raw = RawDst { data: dst.data.as_mut_ptr(), row_stride: dst.row_stride };
    // SAFETY: the view fits its slice (checked above), and the exclusive borrow of `dst` lasts until the call returns.
    unsafe { raw.multiply((0, 0), write, scale, a, b) }
}

/// `dst = [dst +] scale * a b` on all threads of the current pool, with the same bytes for any number of them.
///
/// # Panics
/// If the shapes do not fit each other or a view reaches beyond its slice.
pub fn par_gemm<T: Real>(dst: MatMut<'_, T>, write: Write, scale: T, a: Mat<'_, T>, b: Mat<'_, T>) {
    assert_fits(&dst, &a, &b);
    if is_fast::<T>() && few_rows::applies(dst.rows, &a, &b) {
        return few_rows::par_multiply(dst, write, scale, a, b);
    }
    let (m, n, k) = (dst.rows, dst.cols, a.cols);
    if m * n * k < PIECE_WORK || !is_fast::<T>() {
        return gemm(dst, write, scale, a, b);
    }
    let raw = RawDst { data: dst.data.as_mut_ptr(), row_stride: dst.row_stride };
    let (rows, cols) = pieces(m, n);
    let across = n.div_ceil(cols);
    (0..m.div_ceil(rows) * across).into_par_iter().for_each(|i| {
        let (top, left) = (i / across * rows, i % across * cols);
        let a = a.rows_range(top, m.min(top + rows));
        let b = b.cols_range(left, n.min(left + cols));
        // SAFETY: the whole view fits its slice (checked above), every piece lies within it and no two pieces share an
        // element, and the exclusive borrow of `dst` lasts until the loop has ended.
        unsafe { raw.multiply((top, left), write, scale, a, b) }
    });
}

/// True for the types that the gemm crate multiplies.
fn is_fast<T: Real>() -> bool {
    matches!(T::DTYPE, DType::F32 | DType::F64)
}

/// The product by its definition, summed in the statistics type and rounded once.
fn plain<T: Real>(dst: MatMut<'_, T>, write: Write, scale: T, a: Mat<'_, T>, b: Mat<'_, T>) {
    for (row, col) in (0..dst.rows).flat_map(|row| (0..dst.cols).map(move |col| (row, col))) {
        let product = |p| a.at(row, p).to_stat() * b.at(p, col).to_stat();
        let sum = scale.to_stat() * (0..a.cols).map(product).sum();
        let dst = &mut dst.data[row * dst.row_stride + col];
        *dst = T::from_stat(if write == Write::Add { dst.to_stat() + sum } else { sum });
    }
}

/// Below this many multiply-adds a product stays on one thread.
const PIECE_WORK: usize = 1 << 18;

/// Rows and columns of the pieces of a result `[m, n]`.
///
/// Every piece copies its rows of `a` and its columns of `b` into the layout of the kernel, so pieces are wide; where that would
/// leave few of them, they are cut once more. Sizes are multiples of the register tiles (16 columns, 48 rows), so that only the
/// last piece has a ragged edge.
fn pieces(m: usize, n: usize) -> (usize, usize) {
    const ENOUGH: usize = 8;
    let choices = [(1536, 512), (768, 256), (768, 128), (384, 64), (192, 64), (96, 64)];
    let count = |(rows, cols): (usize, usize)| m.div_ceil(rows) * n.div_ceil(cols);
    choices.into_iter().find(|&piece| count(piece) >= ENOUGH).unwrap_or((96, 64))
}

/// Base pointer of a result that several threads write disjoint parts of.
#[derive(Clone, Copy)]
struct RawDst<T> {
    data: *mut T,
    row_stride: usize,
}

// SAFETY: the pointer is only used inside `multiply`, whose callers guarantee disjoint elements; T is plain data.
unsafe impl<T: Send> Send for RawDst<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for RawDst<T> {}

impl<T: Real> RawDst<T> {
    /// Writes `[dst +] scale * a b` to the `[a.rows, b.cols]` elements that start at row and column `at`.
    ///
    /// # Safety
    /// These elements must lie in memory that is valid for writes and that no other thread touches during the call.
    unsafe fn multiply(self, at: (usize, usize), write: Write, scale: T, a: Mat<'_, T>, b: Mat<'_, T>) {
        let (m, n, k) = (a.rows, b.cols, a.cols);
        if m == 0 || n == 0 {
            return;
        }
        // SAFETY: `at` is within the result by the contract of this function.
        let dst = unsafe { self.data.add(at.0 * self.row_stride + at.1) };
        // SAFETY: `dst` covers m rows of n elements by the contract of this function; `a` and `b` fit their slices (checked
        // by the callers, and kept by taking ranges); strides are element counts that fit isize since slices do.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                dst,
                1,
                self.row_stride as isize,
                write == Write::Add,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                T::ONE,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    if rows == 0 || cols == 0 {
        return true;
    }
    let down = (rows - 1).checked_mul(row_stride);
    let across = (cols - 1).checked_mul(col_stride);
    down.zip(across).and_then(|(d, a)| d.checked_add(a)).is_some_and(|last| last < len)
}

fn assert_fits<T: Real>(dst: &MatMut<'_, T>, a: &Mat<'_, T>, b: &Mat<'_, T>) {
    assert!(
        a.rows == dst.rows && b.cols == dst.cols && a.cols == b.rows,
        "[{}, {}] = [{}, {}] [{}, {}]",
        dst.rows,
        dst.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
    assert!(a.fits() && b.fits(), "an operand reaches beyond its slice");
    assert!(
        fits(dst.data.len(), dst.rows, dst.cols, dst.row_stride, 1),
        "the result reaches beyond its slice"
    );
    // A row stride below the number of columns would let rows overlap.
    assert!(dst.rows <= 1 || dst.row_stride >= dst.cols, "rows of the result overlap");
}

/// `dst[i] += scale * x[i]`.
pub fn axpy<T: Real>(dst: &mut [T], scale: T, x: &[T]) {
    simd::run(
        #[inline(always)]
        || {
            for (d, &x) in dst.iter_mut().zip(x) {
                *d += scale * x;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(len: usize, index: u32) -> Vec<f64> {
        let mut stream = Stream::new(1, Purpose::ModelInit, index);
        (0..len).map(|_| f64::from(stream.normal())).collect()
    }

    fn naive(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                for p in 0..k {
                    y[i * n + j] += a[i * k + p] * b[p * n + j];
                }
            }
        }
        y
    }

    #[test]
    fn products_agree_with_the_definition_in_every_orientation() {
        for (m, n, k) in
            [(1, 1, 1), (3, 5, 7), (70, 300, 33), (300, 70, 129), (2, 400, 500), (1, 9, 0), (1000, 20, 40)]
        {
            let (a, b) = (random(m * k, 0), random(k * n, 1));
            let expected = naive(m, n, k, &a, &b);
            let transpose = |x: &[f64], rows: usize, cols: usize| -> Vec<f64> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            for (a, b) in
                [(Mat::new(&a, m, k), Mat::new(&b, k, n)), (Mat::new(&at, k, m).t(), Mat::new(&bt, n, k).t())]
            {
                let mut y = vec![f64::NAN; m * n];
                par_gemm(MatMut::new(&mut y, m, n), Write::Overwrite, 1.0, a, b);
                par_gemm(MatMut::new(&mut y, m, n), Write::Add, -0.5, a, b);
                for (y, e) in y.iter().zip(&expected) {
                    assert!((y - 0.5 * e).abs() < 1e-12, "{m} {n} {k}: {y} {e}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, n, k) = (333, 517, 129);
        let a: Vec<f32> = random(m * k, 0).iter().map(|&x| x as f32).collect();
        let b: Vec<f32> = random(n * k, 1).iter().map(|&x| x as f32).collect();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut y = vec![0.0f32; m * n];
            pool.install(|| {
                let b = Mat::new(&b, n, k).t();
                par_gemm(MatMut::new(&mut y, m, n), Write::Overwrite, 1.0, Mat::new(&a, m, k), b)
            });
            y.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert_eq!(one, with(threads), "{threads} threads");
        }
    }

    #[test]
    fn bf16_products_are_rounded_once() {
        use half::bf16;
        let (m, n, k) = (3, 4, 200);
        let narrow =
            |index| -> Vec<bf16> { random(m.max(n) * k, index).into_iter().map(bf16::from_f64).collect() };
        let (a, b) = (narrow(0), narrow(1));
        let wide = |x: &[bf16]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
        let b_columns: Vec<f64> = (0..k * n).map(|i| b[i % n * k + i / n].to_f64()).collect();
        let mut y = vec![bf16::ONE; m * n];
        par_gemm(
            MatMut::new(&mut y, m, n),
            Write::Add,
            bf16::ONE,
            Mat::new(&a, m, k),
            Mat::new(&b, n, k).t(),
        );
        for (y, e) in y.iter().zip(naive(m, n, k, &wide(&a), &b_columns)) {
            assert!((y.to_f64() - 1.0 - e).abs() <= (1.0 + e).abs() / 256.0, "{y} {e}");
        }
    }

    #[test]
    fn strided_results_leave_their_neighbours_alone() {
        let (a, b) = (vec![1.0f32; 6], vec![1.0f32; 6]);
        let mut y = vec![7.0f32; 12];
        let dst = MatMut::strided(&mut y[1..], 2, 2, 6);
        gemm(dst, Write::Overwrite, 1.0, Mat::new(&a, 2, 3), Mat::new(&b, 3, 2));
        assert_eq!(y, [7.0, 3.0, 3.0, 7.0, 7.0, 7.0, 7.0, 3.0, 3.0, 7.0, 7.0, 7.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_view_beyond_its_slice_is_refused() {
        let mut y = vec![0.0f32; 3];
        gemm(
            MatMut::new(&mut y, 2, 2),
            Write::Overwrite,
            1.0,
            Mat::new(&[1.0; 2], 2, 1),
            Mat::new(&[1.0; 2], 1, 2),
        );
    }
}
