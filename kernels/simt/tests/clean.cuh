// The correct kernels of the emulator's own tests. They are compiled into the emulated library only.
#pragma once

#include "common/simt.cuh"

#include "gemm.cuh"
#include "small.cuh"

KERNEL(test_gemm, TestGemmParams, 256, 1) { gemm<kNone>(p); }
KERNEL(test_add, TestAddParams, 256, 1) { add<kNone>(p); }
KERNEL(test_norm, TestNormParams, 128, 1) { norm<kNone>(p); }
KERNEL(test_transpose, TestTransposeParams, 128, 1) { transpose<kNone>(p); }
KERNEL(test_last_row, TestRowsParams, 256, 1) { last_row<kNone>(p); }
KERNEL(test_sum, TestSumParams, 128, 1) { sum<kNone>(p); }
