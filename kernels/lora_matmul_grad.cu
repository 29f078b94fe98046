// The gradients of LoRA factors: grad += narrow^T wide, dA with (dxa, dropout(x)) and dB transposed with (xa, dy).
//
// wide is [rows, features], narrow [rows, r], the gradient [r, features]. The rows are the contraction, so they are split: a
// block sums one slab of rows of one adapter for 64 features into its own partial sum in f32, and lora_matmul_reduce adds the
// partial sums of an adapter in the order of the slabs. No atomics: two runs give the same bytes. All factors of one input
// or output group (up to 3 dB and 3 dA) go through one launch, and every wide matrix is read once (the three dA of q, k and v
// meet in the L2 cache). 4 warps side by side over the features; a ring of 4 stages of 32 rows. Dropout is applied to the rows of x in
// shared memory, where a Philox call serves four columns of a row.
#include "common/gemm_tile.cuh"
#include "lora_matmul.cuh"

// Rows of one adapter that one block sums.
struct LoraSlab {
    int32_t row_start;  // first row
    int32_t row_end;    // one past the last row; empty slabs give no partial sum
    int32_t adapter;    // index into the factor tables
    int32_t reserved;   // 0
};

// One gradient.
struct LoraGradJob {
    const bf16* wide;           // [rows, features]: x for dA, dy for dB
    const bf16* narrow;         // [rows, stride], the columns of the layer: dxa for dA, xa for dB
    float* partial;             // [num_slabs, rank_stride, features], workspace
    const LoraFactor* factors;  // [r, features] each, by adapter
    const DropoutKey* key;      // of the layer and step; null for dB and without dropout
    int32_t features;           // columns of wide
    int32_t first_block;        // blocks of 64 features of the jobs before
};

// Parameters of lora_matmul_grad_* and lora_matmul_reduce_f32.
struct LoraMatmulGradParams {
    LoraGradJob jobs[6];    // num_jobs of them
    const LoraSlab* slabs;  // [num_slabs]
    LoraDropout dropout;    // read by the _dropout kernels only
    int32_t num_jobs;       // 1 to 6
    int32_t num_slabs;      // entries of slabs
    int32_t stride;         // columns of narrow over all layers
    int32_t rank_stride;    // columns of narrow of one layer: the largest rank, rounded up to 16
};

constexpr int kGradFeatures = 64;
constexpr int kGradThreads = 128;
constexpr int kGradStages = 4;

// Sets the dropped elements of rows first_row.. of x in a tile to 0. Lanes take pairs of columns c, c + 1 with all c + 16 i, odd
// rows in another order of i: so the four rows of a warp lie in different places of the swizzle and no banks collide.
DEVICE void drop_tile(unsigned char* tile, const LoraMatmulGradParams& p, DropoutKey key, int first_row, int row_end, int column) {
    const int lane = lane_id(), warp = threadIdx.x / 32, c = lane % 8 * 2;
    UNROLL for (int half = 0; half < 2; half++) {
        const int k = warp * 8 + half * 4 + lane / 8;
        if (first_row + k >= row_end) continue;
        const uint32_t* row_key = p.dropout.row_keys + 2 * static_cast<int64_t>(first_row + k);
        const uint32_t call = column / kMaskColumns * 16 + c;
        const uint32_t low = dropout_kept(key, call, row_key, p.dropout.threshold);
        const uint32_t high = dropout_kept(key, call + 1, row_key, p.dropout.threshold);
        UNROLL for (int step = 0; step < kGradFeatures / 16; step++) {
            const int i = step ^ (k % 2 * 2);
            const int bit = column % kMaskColumns / 16 + i;
            const uint32_t mask = ((low >> bit) & 1 ? 0x0000ffffu : 0) | ((high >> bit) & 1 ? 0xffff0000u : 0);
            uint32_t* at = reinterpret_cast<uint32_t*>(tile + columns_offset<kGradFeatures>(k, 2 * i + c / 8) + c % 8 * 2);
            *at &= mask;
        }
    }
}

template <int kRank, bool kDropout>
DEVICE void lora_matmul_grad(const LoraMatmulGradParams& p) {
    constexpr int kMmaM = kRank / 16, kWideBytes = kStepK * kGradFeatures * 2, kStageBytes = kWideBytes + kStepK * kRank * 2;
    DYNAMIC_SMEM(smem);

    int number = 0;
    while (number + 1 < p.num_jobs && static_cast<int>(blockIdx.x) >= p.jobs[number + 1].first_block) number++;
    const LoraGradJob& job = p.jobs[number];
    const LoraSlab& slab = p.slabs[blockIdx.y];
    const LoraFactor& factor = job.factors[slab.adapter];
    const int column = (blockIdx.x - job.first_block) * kGradFeatures, first_rank = blockIdx.z * kRank;
    if (slab.row_start >= slab.row_end || factor.r <= first_rank || factor.grad == nullptr) return;

    ColumnsLoader<kGradFeatures, kGradThreads> load_wide;
    ColumnsLoader<kRank, kGradThreads> load_narrow;
    const int64_t above = slab.row_start;
    load_wide.start(job.wide + above * job.features, job.features, column, job.features);
    load_narrow.start(job.narrow + above * p.stride, p.stride, first_rank, p.rank_stride);

    float acc[kMmaM][2][4] = {};
    int left = slab.row_end - slab.row_start;
    StageRing<kGradStages, kStageBytes> ring = {smem};
    const auto issue = [&] {
        unsigned char* const stage = ring.fill();
        if (left > 0) {
            load_wide.load(stage, left);
            load_narrow.load(stage + kWideBytes, left);
            left -= kStepK;
        }
        cp_async_commit();
    };
    UNROLL for (int i = 0; i < kGradStages - 1; i++) issue();

    const int lane = lane_id(), warp = threadIdx.x / 32;
    NO_UNROLL for (int row = slab.row_start; row < slab.row_end; row += kStepK) {
        ring.landed();
        issue();
        unsigned char* const stage = ring.use();
        if constexpr (kDropout) {
            if (job.key != nullptr) {
                drop_tile(stage, p, *job.key, row, slab.row_end, column);
                __syncthreads();
            }
        }
        UNROLL for (int slice = 0; slice < 2; slice++) {
            uint32_t a[kMmaM][4], b[2][2], r[4];
            // Both operands have k down their rows. For a, matrices 0..3 are (k, rank) = (0, 0), (0, 8), (8, 0), (8, 8).
            const int k_a = slice * 16 + (lane >> 4) * 8 + (lane & 7), piece_a = (lane >> 3) & 1;
            UNROLL for (int m = 0; m < kMmaM; m++) {
                ldmatrix_x4_trans(a[m], stage + kWideBytes + columns_offset<kRank>(k_a, 2 * m + piece_a));
            }
            ldmatrix_x4_trans(r, stage + columns_offset<kGradFeatures>(slice * 16 + (lane & 15), warp * 2 + (lane >> 4)));
            b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
            mma_tile(acc, a, b);
        }
    }

    const float scale = kDropout && job.key != nullptr ? p.dropout.keep : 1.0f;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * p.rank_stride;
    UNROLL for (int m = 0; m < kMmaM; m++) {
        UNROLL for (int n = 0; n < 2; n++) {
            const int c = column + warp * 16 + n * 8 + (lane & 3) * 2;
            UNROLL for (int half = 0; half < 2; half++) {
                const int rank = first_rank + m * 16 + half * 8 + (lane >> 2);
                if (rank < factor.r && c < job.features) {
                    float* at = job.partial + (first + rank) * job.features + c;
                    store8(at, scale * acc[m][n][2 * half], scale * acc[m][n][2 * half + 1]);
                }
            }
        }
    }
}

KERNEL(lora_matmul_grad_bf16_r16, LoraMatmulGradParams, 128, 4) { lora_matmul_grad<16, false>(p); }

KERNEL(lora_matmul_grad_bf16_r32, LoraMatmulGradParams, 128, 4) { lora_matmul_grad<32, false>(p); }

KERNEL(lora_matmul_grad_bf16_r64, LoraMatmulGradParams, 128, 3) { lora_matmul_grad<64, false>(p); }

KERNEL(lora_matmul_grad_bf16_r16_dropout, LoraMatmulGradParams, 128, 4) { lora_matmul_grad<16, true>(p); }

KERNEL(lora_matmul_grad_bf16_r32_dropout, LoraMatmulGradParams, 128, 4) { lora_matmul_grad<32, true>(p); }

KERNEL(lora_matmul_grad_bf16_r64_dropout, LoraMatmulGradParams, 128, 3) { lora_matmul_grad<64, true>(p); }

// grad += the partial sums of the adapter's slabs, in their order. Grid: (pieces of 4 features, jobs, adapters).
KERNEL(lora_matmul_reduce_f32, LoraMatmulGradParams, 256, 4) {
    const LoraGradJob& job = p.jobs[blockIdx.y];
    const int adapter = blockIdx.z;
    const LoraFactor& factor = job.factors[adapter];
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (factor.grad == nullptr || at >= static_cast<int64_t>(factor.r) * job.features) return;
    Vec16 sum = {{0, 0, 0, 0}};
    for (int i = 0; i < p.num_slabs; i++) {
        const LoraSlab& slab = p.slabs[i];
        if (slab.adapter != adapter || slab.row_start >= slab.row_end) continue;
        const Vec16 part = load16(job.partial + static_cast<int64_t>(i) * p.rank_stride * job.features + at);
        UNROLL for (int j = 0; j < 4; j++) sum.word[j] = float_bits(bits_float(sum.word[j]) + bits_float(part.word[j]));
    }
    Vec16 grad = load16(factor.grad + at);
    UNROLL for (int j = 0; j < 4; j++) grad.word[j] = float_bits(bits_float(grad.word[j]) + bits_float(sum.word[j]));
    store16(factor.grad + at, grad);
}
