//! The measured matrix-product rate of the processor, against which the rate of a training step is reported.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::gemm::{Mat, MatMut, Write, gemm};

/// Rows and columns of the product: its three matrices take 432 KiB, which fit the L2 cache of a core.
const SIDE: usize = 192;

/// Floating-point operations of one product.
const PRODUCT_FLOPS: f64 = 2.0 * (SIDE * SIDE * SIDE) as f64;

/// Duration of a round: long compared with the time to wake the threads.
const ROUND: Duration = Duration::from_millis(1);

/// Number of measured rounds; the fastest counts.
const ROUNDS: usize = 3;

/// Floating-point operations per second of f32 products on all threads of the current pool at once, each with
/// operands in its own cache: the best of a few rounds of about a millisecond. The measurement uses no device
/// memory and no random numbers.
pub fn measured_gemm_rate() -> f64 {
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 13) as f32 / 13.0 - 0.4).collect();
    let operand = || Mat::new(&values, SIDE, SIDE);
    let threads = rayon::current_num_threads();
    let results: Vec<Mutex<Vec<f32>>> = (0..threads).map(|_| Mutex::new(vec![0.0; SIDE * SIDE])).collect();
    let round = |products: usize| -> Duration {
        let begin = Instant::now();
        rayon::broadcast(|thread| {
            // Every thread has its own operands, so no thread waits for another.
            let Ok(mut result) = results[thread.index()].lock() else { return };
            for _ in 0..products {
                let into = MatMut::new(&mut result[..], SIDE, SIDE);
                gemm(into, Write::Overwrite, 1.0, operand(), operand());
            }
        });
        begin.elapsed().max(Duration::from_nanos(1))
    };
    // The first product is a warm-up; the second one measures the time of a product.
    round(1);
    let one = round(1);
    let products = (ROUND.as_secs_f64() / one.as_secs_f64()).clamp(1.0, 64.0) as usize;
    let best = (0..ROUNDS).map(|_| round(products)).min().unwrap_or(one);
    (threads * products) as f64 * PRODUCT_FLOPS / best.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn the_rate_is_that_of_a_processor() {
        for threads in [1, 2] {
            let rate = Device::cpu(threads).unwrap().run(measured_gemm_rate);
            // From a fraction of an old core to more than the threads of this test can do.
            assert!((1e7..1e13).contains(&rate), "{threads} threads: {rate:e}");
        }
    }
}
