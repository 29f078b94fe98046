// The kernels with planted bugs, one each.
#pragma once

#include "common/simt.cuh"

#include "gemm.cuh"
#include "small.cuh"

KERNEL(bug_no_loop_barrier, TestGemmParams, 256, 1) { gemm<kNoLoopBarrier>(p); }
KERNEL(bug_wait_off_by_one, TestGemmParams, 256, 1) { gemm<kWaitOffByOne>(p); }
KERNEL(bug_no_commit, TestGemmParams, 256, 1) { gemm<kNoCommit>(p); }
KERNEL(bug_prefetch_into_read, TestGemmParams, 256, 1) { gemm<kPrefetchIntoRead>(p); }
KERNEL(bug_prefetch_before_barrier, TestGemmParams, 256, 1) { gemm<kPrefetchBeforeBarrier>(p); }
KERNEL(bug_no_reuse_barrier, TestGemmParams, 256, 1) { gemm<kNoReuseBarrier>(p); }
KERNEL(bug_no_result_barrier, TestGemmParams, 256, 1) { gemm<kNoResultBarrier>(p); }
KERNEL(bug_wrong_swizzle, TestGemmParams, 256, 1) { gemm<kWrongSwizzle>(p); }
KERNEL(bug_swapped_fragments, TestGemmParams, 256, 1) { gemm<kSwappedFragments>(p); }
KERNEL(bug_transposed_fragment, TestGemmParams, 256, 1) { gemm<kTransposedFragment>(p); }
KERNEL(bug_no_swizzle, TestGemmParams, 256, 1) { gemm<kNoSwizzle>(p); }
KERNEL(bug_direct_stores, TestGemmParams, 256, 1) { gemm<kDirectStores>(p); }
KERNEL(bug_no_row_bound, TestGemmParams, 256, 1) { gemm<kNoRowBound>(p); }
KERNEL(bug_no_result_bound, TestGemmParams, 256, 1) { gemm<kNoResultBound>(p); }
KERNEL(bug_stage_beyond_end, TestGemmParams, 256, 1) { gemm<kStageBeyondEnd>(p); }
KERNEL(bug_divergent_ldmatrix, TestGemmParams, 256, 1) { gemm<kDivergentLdmatrix>(p); }
KERNEL(bug_divergent_mma, TestGemmParams, 256, 1) { gemm<kDivergentMma>(p); }
KERNEL(bug_misaligned_copy, TestGemmParams, 256, 1) { gemm<kMisalignedCopy>(p); }

KERNEL(bug_one_past, TestAddParams, 256, 1) { add<kOnePast>(p); }
KERNEL(bug_no_bound, TestAddParams, 256, 1) { add<kNoBound>(p); }
KERNEL(bug_one_before, TestAddParams, 256, 1) { add<kOneBefore>(p); }
KERNEL(bug_far_write, TestAddParams, 256, 1) { add<kFarWrite>(p); }
KERNEL(bug_same_element, TestAddParams, 256, 1) { add<kSameElement>(p); }
KERNEL(bug_same_element_across_blocks, TestAddParams, 256, 1) { add<kSameElementAcrossBlocks>(p); }
KERNEL(bug_in_place, TestAddParams, 256, 1) { add<kInPlace>(p); }
KERNEL(bug_for_ever, TestAddParams, 256, 1) { add<kForEver>(p); }
KERNEL(bug_waits_for_a_block, TestAddParams, 256, 1) { add<kWaitsForABlock>(p); }
KERNEL(bug_division_by_zero, TestAddParams, 256, 1) { add<kDivisionByZero>(p); }
KERNEL(bug_deep_stack, TestAddParams, 256, 1) { add<kDeepStack>(p); }
KERNEL(bug_misaligned_word, TestAddParams, 256, 1) { add<kMisalignedWord>(p); }

KERNEL(bug_overflow, TestRowsParams, 256, 1) { last_row<kOverflow>(p); }

KERNEL(bug_no_barrier, TestNormParams, 128, 1) { norm<kNoBarrier>(p); }
KERNEL(bug_unwritten_slot, TestNormParams, 128, 1) { norm<kUnwrittenSlot>(p); }
KERNEL(bug_reads_output, TestNormParams, 128, 1) { norm<kReadsOutput>(p); }
KERNEL(bug_divergent_barrier, TestNormParams, 128, 1) { norm<kDivergentBarrier>(p); }
KERNEL(bug_barrier_per_trip, TestNormParams, 128, 1) { norm<kBarrierPerTrip>(p); }
KERNEL(bug_two_barriers, TestNormParams, 128, 1) { norm<kTwoBarriers>(p); }
KERNEL(bug_early_return, TestNormParams, 128, 1) { norm<kEarlyReturn>(p); }
KERNEL(bug_divergent_shuffle, TestNormParams, 128, 1) { norm<kDivergentShuffle>(p); }
KERNEL(bug_misaligned_vector, TestNormParams, 128, 1) { norm<kMisalignedVector>(p); }
KERNEL(bug_loop_one_past, TestNormParams, 128, 1) { norm<kLoopOnePast>(p); }
KERNEL(bug_shared_one_past, TestNormParams, 128, 1) { norm<kSharedOnePast>(p); }
KERNEL(bug_shared_far, TestNormParams, 128, 1) { norm<kSharedFar>(p); }

KERNEL(bug_no_syncwarp, TestTransposeParams, 128, 1) { transpose<kNoSyncwarp>(p); }
KERNEL(bug_no_syncwarp_in_loop, TestTransposeParams, 128, 1) { transpose<kNoSyncwarpInLoop>(p); }
KERNEL(bug_unpadded, TestTransposeParams, 128, 1) { transpose<kUnpadded>(p); }
KERNEL(bug_no_tile, TestTransposeParams, 128, 1) { transpose<kNoTile>(p); }

KERNEL(bug_no_release_fence, TestSumParams, 128, 1) { sum<kNoReleaseFence>(p); }
KERNEL(bug_no_acquire_fence, TestSumParams, 128, 1) { sum<kNoAcquireFence>(p); }
KERNEL(bug_no_ticket_barrier, TestSumParams, 128, 1) { sum<kNoTicketBarrier>(p); }
KERNEL(bug_plain_ticket, TestSumParams, 128, 1) { sum<kPlainTicket>(p); }
KERNEL(bug_plain_total, TestSumParams, 128, 1) { sum<kPlainTotal>(p); }
KERNEL(bug_plain_total_in_block, TestSumParams, 128, 1) { sum<kPlainTotalInBlock>(p); }
KERNEL(bug_plain_shared_total, TestSumParams, 128, 1) { sum<kPlainSharedTotal>(p); }
