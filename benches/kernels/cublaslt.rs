//! cuBLASLt as the bar: the same products by NVIDIA's library, if the machine has it.
#![allow(
    unsafe_code,
    reason = "products of cuBLASLt take raw leading dimensions; the shapes are checked here"
)]

use std::sync::Arc;

use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;

use super::harness::{Cost, numbers};

/// A product of matrices in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// `y[rows, outputs] = x[rows, inputs] W[outputs, inputs]^T`.
    Forward { rows: usize, inputs: usize, outputs: usize },
    /// `dx[rows, inputs] += dy[rows, outputs] W[outputs, inputs]`.
    Input { rows: usize, inputs: usize, outputs: usize },
}

impl Product {
    /// Numbers of the wide operand, the weight and the result.
    fn lengths(self) -> [usize; 3] {
        match self {
            Self::Forward { rows, inputs, outputs } => [rows * inputs, outputs * inputs, rows * outputs],
            Self::Input { rows, inputs, outputs } => [rows * outputs, outputs * inputs, rows * inputs],
        }
    }
}

/// Operand, weight and result of a product.
type Operands = (Product, CudaSlice<bf16>, CudaSlice<bf16>, CudaSlice<bf16>);

/// The library, on a stream of its own.
pub(crate) struct Blas {
    stream: Arc<CudaStream>,
    blas: CudaBlasLT,
}

/// Whether the loader finds the library.
pub(crate) fn is_there() -> bool {
    // SAFETY: only looks for the library; nothing of it runs but its initialisers.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

impl Blas {
    /// The library on the first GPU, or why it cannot be had.
    pub(crate) fn open() -> Result<Self, String> {
        if !is_there() {
            return Err("libcublasLt is not installed".into());
        }
        let open = || -> Result<Self, Box<dyn std::error::Error>> {
            let stream = CudaContext::new(0)?.new_stream()?;
            Ok(Self { blas: CudaBlasLT::new(stream.clone())?, stream })
        };
        open().map_err(|error| error.to_string())
    }

    /// Median seconds of the products one after another, on operands that no cache of less than `rotation` bytes holds.
    pub(crate) fn seconds(&self, products: &[Product], rotation: u64) -> Result<f64, String> {
        self.try_seconds(products, rotation).map_err(|error| error.to_string())
    }

    fn try_seconds(&self, products: &[Product], rotation: u64) -> Result<f64, Box<dyn std::error::Error>> {
        let length: usize = products.iter().flat_map(|product| product.lengths()).sum();
        let sets = Cost { flops: 0, bytes: (length * size_of::<bf16>()) as u64 }.sets(rotation);
        let random = |len: usize, index: u32| self.stream.clone_htod(&numbers(len, 0.02, index));
        let mut operands: Vec<Operands> = Vec::new();
        for product in (0..sets).flat_map(|_| products) {
            let [wide, weight, result] = product.lengths();
            let result = self.stream.alloc_zeros(result)?;
            operands.push((*product, random(wide, 1)?, random(weight, 2)?, result));
        }
        let mut samples = Vec::new();
        // The first one finds algorithms and is left out.
        for _ in 0..8 {
            let start = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            for (product, wide, weight, result) in &mut operands {
                self.product(*product, wide, weight, result)?;
            }
            let end = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            samples.push(f64::from(start.elapsed_ms(&end)?) / 1e3 / sets as f64);
        }
        samples.remove(0);
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }

    /// All row-major. The library thinks in columns, so it computes `y^T = W x^T` and `dx^T = W^T dy^T`.
    fn product(
        &self,
        product: Product,
        wide: &CudaSlice<bf16>,
        weight: &CudaSlice<bf16>,
        result: &mut CudaSlice<bf16>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let [wide_len, weight_len, result_len] = product.lengths();
        assert!(wide.len() >= wide_len && weight.len() >= weight_len && result.len() >= result_len);
        let (rows, m, k, is_forward) = match product {
            Product::Forward { rows, inputs, outputs } => (rows, outputs, inputs, true),
            Product::Input { rows, inputs, outputs } => (rows, inputs, outputs, false),
        };
        let config = MatmulConfig {
            // A row of the weight is a column of the library: of k numbers forward, of m backward.
            transa: is_forward,
            transb: false,
            transc: false,
            m: m as u64,
            n: rows as u64,
            k: k as u64,
            alpha: 1.0,
            lda: if is_forward { k } else { m } as i64,
            ldb: k as i64,
            beta: if is_forward { 0.0 } else { 1.0 },
            ldc: m as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the shapes and leading dimensions lie within the slices, which the assertion above has checked.
        unsafe { self.blas.matmul(config, weight, wide, result, None, None) }?;
        Ok(())
    }
}
