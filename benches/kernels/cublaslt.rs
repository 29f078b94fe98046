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

use crate::harness::numbers;

/// `y[rows, outputs] = x[rows, inputs] W[outputs, inputs]^T`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// The library, on a stream of its own.
pub(crate) struct Blas {
    stream: Arc<CudaStream>,
    blas: CudaBlasLT,
}

impl Blas {
    /// The library on the first GPU, or why it cannot be had.
    pub(crate) fn open() -> Result<Self, String> {
        // SAFETY: only looks for the library; nothing of it runs but its initialisers.
        if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
            return Err("libcublasLt is not installed".into());
        }
        let open = || -> Result<Self, Box<dyn std::error::Error>> {
            let stream = CudaContext::new(0)?.new_stream()?;
            Ok(Self { blas: CudaBlasLT::new(stream.clone())?, stream })
        };
        open().map_err(|error| error.to_string())
    }

    /// Median seconds of the products one after another; with a rank, each followed by `xa = x A^T` and `y += xa B^T`.
    pub(crate) fn seconds(&self, products: &[Product], rank: usize) -> Result<f64, String> {
        self.try_seconds(products, rank).map_err(|error| error.to_string())
    }

    fn try_seconds(&self, products: &[Product], rank: usize) -> Result<f64, Box<dyn std::error::Error>> {
        let random = |len: usize, index: u32| self.stream.clone_htod(&numbers(len.max(8), 0.02, index));
        let mut operands = Vec::new();
        for p in products {
            let x = random(p.rows * p.inputs, 1)?;
            let weight = random(p.outputs * p.inputs, 2)?;
            let (a, b) = (random(rank * p.inputs, 3)?, random(p.outputs * rank, 4)?);
            let y: CudaSlice<bf16> = self.stream.alloc_zeros(p.rows * p.outputs)?;
            let xa: CudaSlice<bf16> = self.stream.alloc_zeros((p.rows * rank).max(8))?;
            operands.push((*p, x, weight, a, b, y, xa));
        }
        let mut samples = Vec::new();
        for _ in 0..21 {
            let start = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            for _ in 0..5 {
                for (p, x, weight, a, b, y, xa) in &mut operands {
                    self.product([p.rows, p.inputs, p.outputs], x, weight, y, 0.0)?;
                    if rank > 0 {
                        self.product([p.rows, p.inputs, rank], x, a, xa, 0.0)?;
                        self.product([p.rows, rank, p.outputs], xa, b, y, 1.0)?;
                    }
                }
            }
            let end = self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            samples.push(f64::from(start.elapsed_ms(&end)?) / 5e3);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }

    /// `y = x w^T + beta y`, all row-major. The library thinks in columns, so it computes `y^T = w x^T`.
    fn product(
        &self,
        [rows, inputs, outputs]: [usize; 3],
        x: &CudaSlice<bf16>,
        w: &CudaSlice<bf16>,
        y: &mut CudaSlice<bf16>,
        beta: f32,
    ) -> Result<(), Box<dyn std::error::Error>> {
        assert!(x.len() >= rows * inputs && w.len() >= outputs * inputs && y.len() >= rows * outputs);
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: outputs as u64,
            n: rows as u64,
            k: inputs as u64,
            alpha: 1.0,
            lda: inputs as i64,
            ldb: inputs as i64,
            beta,
            ldc: outputs as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the shapes and leading dimensions lie within the slices, which the assertion above has checked.
        unsafe { self.blas.matmul(config, w, x, y, None, None) }?;
        Ok(())
    }
}
