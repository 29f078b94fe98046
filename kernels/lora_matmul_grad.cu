// The gradients of LoRA factors: grad += narrow^T wide, dA with (dxa, dropout(x)) and dB transposed with (xa, dy).
//
// wide is [rows, features], narrow [rows, r], the gradient [r, features]. All factors of a decoder block (up
// to 7 dB and 7 dA) go through one launch: with 64 features a block that is 352 blocks for Qwen3-0.6B, so the
// rows need not be split to fill the GPU. A block walks the runs of rows, and at the end of each run adds its
// sum to the gradient of the run's adapter. No other block writes these features, so there are no partial
// sums and no atomics, and two runs of a program give the same bytes. Wide matrices are read once (the dA of
// q, k and v share the L2 cache). 4 warps side by side over the features; a ring of 4 stages of 32 rows: 15
// KB are under way in every block. Dropout is applied to the rows of x in shared memory, where a Philox call
// serves four columns of a row.
#include "common/gemm_tile.cuh"
#include "lora_matmul.cuh"

// One gradient.
struct LoraGradJob {
    const bf16* wide;           // [rows, features]: x for dA, dy for dB
    const bf16* narrow;         // [rows, stride], the columns of the layer: dxa for dA, xa for dB
    const LoraFactor* factors;  // [r, features] each, by adapter
    const LoraRun* runs;        // [*num_runs]
    const int32_t* num_runs;    // entries of runs
    const DropoutKey* key;      // of the layer and step; null for dB and without dropout
    const uint32_t* row_keys;   // [rows, 2]: sample, position; null without dropout
    int32_t features;           // columns of wide
    int32_t stride;             // columns of narrow
    int32_t first_block;        // blocks of 64 features of the jobs before
    int32_t reserved;           // 0
};

// Parameters of lora_matmul_grad_*.
struct LoraMatmulGradParams {
    LoraGradJob jobs[14];  // num_jobs of them
    uint32_t threshold;   // drop probability in units of 1/65536; read by the _dropout kernels only
    float keep;           // 1 / (1 - p)
    int32_t num_jobs;     // 1 to 14
    int32_t reserved;     // 0
};

constexpr int kGradFeatures = 64;
constexpr int kGradThreads = 128;
constexpr int kGradStages = 4;

// Sets the dropped elements of rows first_row.. of x in a tile to 0. Lanes take pairs of columns c, c + 1 with all c + 16 i, odd
// rows in another order of i: so the four rows of a warp lie in different places of the swizzle and no banks collide.
DEVICE void drop_tile(unsigned char* tile, const LoraGradJob& job, uint32_t threshold, int first_row, int row_end, int column) {
    const DropoutKey key = *job.key;
    const int lane = lane_id(), warp = threadIdx.x / 32, c = lane % 8 * 2;
    UNROLL for (int half = 0; half < 2; half++) {
        const int k = warp * 8 + half * 4 + lane / 8;
        if (first_row + k >= row_end) continue;
        const uint32_t* row_key = job.row_keys + 2 * static_cast<int64_t>(first_row + k);
        const uint32_t call = column / kMaskColumns * 16 + c;
        const uint32_t low = dropout_kept(key, call, row_key, threshold);
        const uint32_t high = dropout_kept(key, call + 1, row_key, threshold);
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
    const int column = (blockIdx.x - job.first_block) * kGradFeatures, first_rank = blockIdx.y * kRank;
    const int lane = lane_id(), warp = threadIdx.x / 32, num_runs = *job.num_runs;

    NO_UNROLL for (int i = 0; i < num_runs; i++) {
        const LoraRun& run = job.runs[i];
        const LoraFactor& factor = job.factors[run.adapter];
        if (run.row_start >= run.row_end || factor.r <= first_rank || factor.grad == nullptr) continue;

        ColumnsLoader<kGradFeatures, kGradThreads> load_wide;
        ColumnsLoader<kRank, kGradThreads> load_narrow;
        const int64_t above = run.row_start;
        load_wide.start(job.wide + above * job.features, job.features, column, job.features);
        load_narrow.start(job.narrow + above * job.stride, job.stride, first_rank, (factor.r + 15) & ~15);

        float acc[kMmaM][2][4] = {};
        int left = run.row_end - run.row_start;
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
        UNROLL for (int stage = 0; stage < kGradStages - 1; stage++) issue();

        NO_UNROLL for (int row = run.row_start; row < run.row_end; row += kStepK) {
            ring.landed();
            issue();
            unsigned char* const stage = ring.use();
            if constexpr (kDropout) {
                if (job.key != nullptr) {
                    drop_tile(stage, job, p.threshold, row, run.row_end, column);
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
        // The next run fills the ring from its start.
        cp_async_wait<0>();
        __syncthreads();

        const float scale = kDropout && job.key != nullptr ? p.keep : 1.0f;
        UNROLL for (int m = 0; m < kMmaM; m++) {
            UNROLL for (int n = 0; n < 2; n++) {
                const int c = column + warp * 16 + n * 8 + (lane & 3) * 2;
                UNROLL for (int half = 0; half < 2; half++) {
                    const int rank = first_rank + m * 16 + half * 8 + (lane >> 2);
                    if (rank < factor.r && c < job.features) {
                        float* const at = factor.grad + static_cast<int64_t>(rank) * job.features + c;
                        const Vec8 before = load8(at);
                        store8(at, fmaf(scale, acc[m][n][2 * half], bits_float(before.word[0])),
                               fmaf(scale, acc[m][n][2 * half + 1], bits_float(before.word[1])));
                    }
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
