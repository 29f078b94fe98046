// out = scaling * dropout(in) factor^T: the narrow products of LoRA, for up to three layers in one launch.
//
// With the input x and the factor A this is xa, with dy and B (transposed) it is dxa (without dropout, which acts on x alone):
// in is [rows, features], the factor [r, features], out [rows, r]. Both have their contraction along rows of memory, so mma fragments
// are loaded straight from global memory, without shared memory: the product does not care in which order k is summed, so lane
// q of a quad takes 8 consecutive numbers (16 bytes) instead of the two pairs that the layout of mma names, the same in both operands.
// A block has 32 rows and 8 warps that split k in stretches of 128; their sums are added in a fixed order. So `in` is read once
// from DRAM (the layers of a launch and the rank chunks of 64 are neighbours in the grid and meet in the L2 cache), and rows /
// 32 blocks fill 68 SMs at 2,176 rows. Numbers are bf16, sums f32, out is rounded once; its columns from r up to rank_stride are 0,
// and so are rows without adapter. Shared memory: static, 4 warps' sums.
#include "common/simt.cuh"
#include "lora_matmul.cuh"

// One layer of the launch.
struct LoraDownLayer {
    const bf16* input;          // [rows, features]
    bf16* output;               // [rows, stride], rank_stride columns of this layer, overwritten
    const LoraFactor* factors;  // [r, features] each, by adapter
    const DropoutKey* key;      // of this layer and step; null without dropout
    int64_t features;           // columns of input
};

// Parameters of lora_matmul_down_*.
struct LoraMatmulDownParams {
    LoraDownLayer layers[3];  // as many as the grid has
    const LoraRun* runs;        // [*num_runs]
    const int32_t* num_runs;    // entries of runs
    const int32_t* live_rows;   // rows there are; null: all
    LoraDropout dropout;      // read by the _dropout kernels only
    int32_t rows;             // rows that input and output have room for
    int32_t stride;           // columns of output over all layers
    int32_t rank_stride;      // columns of output of one layer: the largest rank, rounded up to 16
    int32_t rank_chunks;      // blocks along the rank of a layer
};

constexpr int kDownRows = 32;
constexpr int kDownWarps = 8;

// Bit 8 * i + j of the result: column 32 * i + 8 * quad + j of the stretch is kept. These are the columns of one lane.
DEVICE uint32_t kept_columns(DropoutKey key, int stretch, int quad, const uint32_t* row_key, uint32_t threshold) {
    uint32_t kept = 0;
    NO_UNROLL for (int j = 0; j < 8; j++) {
        const uint32_t bits = dropout_kept(key, stretch * 16 + (quad % 2) * 8 + j, row_key, threshold) >> (quad / 2);
        UNROLL for (int i = 0; i < 4; i++) kept |= ((bits >> (2 * i)) & 1u) << (8 * i + j);
    }
    return kept;
}

// Sets dropped elements to 0: two bits of `kept` a word.
DEVICE void drop(Vec16& x, uint32_t kept) {
    UNROLL for (int i = 0; i < 4; i++) {
        const uint32_t low = (kept >> (2 * i)) & 1 ? 0x0000ffffu : 0, high = (kept >> (2 * i + 1)) & 1 ? 0xffff0000u : 0;
        x.word[i] &= low | high;
    }
}

template <int kRank, bool kDropout>
DEVICE void lora_matmul_down(const LoraMatmulDownParams& p) {
    constexpr int kMmaN = kRank / 8, kPieces = kRank / 8;
    constexpr int kRowNumbers = kRank + 8;  // 16 bytes of padding a row
    STATIC_SMEM(float, sums, kDownWarps / 2 * kDownRows * kRank);
    static_assert(kDownRows * kRowNumbers * 2 <= kDownWarps / 2 * kDownRows * kRank * 4, "the result fits over the sums");
    bf16* const result = reinterpret_cast<bf16*>(sums);

    const LoraDownLayer& layer = p.layers[blockIdx.x / p.rank_chunks];
    const int first_rank = static_cast<int>(blockIdx.x % p.rank_chunks) * kRank;
    const int rows = rows_there_are(p.live_rows, p.rows), num_runs = *p.num_runs;
    const int row = blockIdx.y * kDownRows, row_end = row + kDownRows < rows ? row + kDownRows : rows;
    if (row >= rows) return;
    const int warp = threadIdx.x / 32, lane = lane_id(), group = lane >> 2, quad = lane & 3;
    bf16* const output = layer.output + first_rank;
    const int columns = p.rank_stride - first_rank < kRank ? p.rank_stride - first_rank : kRank;

    NO_UNROLL for (int run = 0; run < num_runs; run++) {
        const LoraRun& range = p.runs[run];
        const LoraFactor& factor = layer.factors[range.adapter];
        const int start = range.row_start > row ? range.row_start : row, end = range.row_end < row_end ? range.row_end : row_end;
        if (start >= end || factor.r <= 0) continue;

        float acc[2][kMmaN][4] = {};
        NO_UNROLL for (int64_t stretch = warp * kMaskColumns; stretch < layer.features; stretch += kDownWarps * kMaskColumns) {
            uint32_t kept[4];
            if constexpr (kDropout) {
                UNROLL for (int i = 0; i < 4; i++) {
                    int at = row + group + 8 * i;
                    at = at < rows ? at : rows - 1;
                    kept[i] = kept_columns(*layer.key, static_cast<int>(stretch / kMaskColumns), quad,
                                           p.dropout.row_keys + 2 * static_cast<int64_t>(at), p.dropout.threshold);
                }
            }
            UNROLL_2 for (int part = 0; part < 4; part++) {
                const int64_t column = stretch + part * 32 + quad * 8;
                const bool inside = column < layer.features;
                Vec16 x[4], f[kMmaN];
                UNROLL for (int i = 0; i < 4; i++) {
                    const int at = row + group + 8 * i;
                    x[i] = Vec16{{0, 0, 0, 0}};
                    if (inside && at >= start && at < end) x[i] = load16_constant(layer.input + at * layer.features + column);
                    if constexpr (kDropout) drop(x[i], kept[i] >> (8 * part));
                }
                UNROLL for (int n = 0; n < kMmaN; n++) {
                    const int rank = first_rank + n * 8 + group;
                    f[n] = Vec16{{0, 0, 0, 0}};
                    if (inside && rank < factor.r) f[n] = load16_constant(factor.value + rank * layer.features + column);
                }
                UNROLL for (int slice = 0; slice < 2; slice++) {
                    uint32_t a[2][4], b[kMmaN][2];
                    UNROLL for (int m = 0; m < 2; m++) {
                        a[m][0] = x[2 * m].word[2 * slice], a[m][1] = x[2 * m + 1].word[2 * slice];
                        a[m][2] = x[2 * m].word[2 * slice + 1], a[m][3] = x[2 * m + 1].word[2 * slice + 1];
                    }
                    UNROLL for (int n = 0; n < kMmaN; n++) {
                        b[n][0] = f[n].word[2 * slice], b[n][1] = f[n].word[2 * slice + 1];
                    }
                    mma_tile(acc, a, b);
                }
            }
        }

        // Warps 4-7 hand their sums to 0-3, then 2-3 to 0-1, then 1 to 0; in fragment order, so without bank conflicts.
        NO_UNROLL for (int half = kDownWarps / 2; half > 0; half /= 2) {
            if (warp >= half && warp < 2 * half) {
                UNROLL for (int i = 0; i < 2 * kMmaN; i++) {
                    const float(&from)[4] = acc[i / kMmaN][i % kMmaN];
                    Vec16 v;
                    UNROLL for (int j = 0; j < 4; j++) v.word[j] = float_bits(from[j]);
                    store16(sums + (((warp - half) * 2 * kMmaN + i) * 32 + lane) * 4, v);
                }
            }
            __syncthreads();
            if (warp < half) {
                UNROLL for (int i = 0; i < 2 * kMmaN; i++) {
                    const Vec16 v = load16(sums + ((warp * 2 * kMmaN + i) * 32 + lane) * 4);
                    UNROLL for (int j = 0; j < 4; j++) acc[i / kMmaN][i % kMmaN][j] += bits_float(v.word[j]);
                }
            }
            __syncthreads();
        }
        if (warp == 0) {
            const float scale = kDropout ? factor.scaling * p.dropout.keep : factor.scaling;
            UNROLL for (int i = 0; i < 2 * kMmaN; i++) {
                const float(&from)[4] = acc[i / kMmaN][i % kMmaN];
                bf16* const at = result + (i / kMmaN * 16 + group) * kRowNumbers + i % kMmaN * 8 + quad * 2;
                *reinterpret_cast<uint32_t*>(at) = pack_bf16(scale * from[0], scale * from[1]);
                *reinterpret_cast<uint32_t*>(at + 8 * kRowNumbers) = pack_bf16(scale * from[2], scale * from[3]);
            }
        }
        __syncthreads();
        // Eight lanes read one piece of eight rows, whose padding puts them into different banks.
        for (int i = threadIdx.x; i < kDownRows * kPieces; i += kDownWarps * 32) {
            const int r = i / (8 * kPieces) * 8 + i % 8, at = row + r, c = i / 8 % kPieces * 8;
            if (at >= start && at < end && c < columns) {
                store16(output + at * static_cast<int64_t>(p.stride) + c, load16(result + r * kRowNumbers + c));
            }
        }
        // The next run writes `sums` again.
        __syncthreads();
    }

    for (int i = threadIdx.x; i < kDownRows * kPieces; i += kDownWarps * 32) {
        const int at = row + i / kPieces, c = i % kPieces * 8;
        if (at < row_end && c < columns && factor_of_row(p.runs, num_runs, layer.factors, at) == nullptr) {
            store16(output + at * static_cast<int64_t>(p.stride) + c, Vec16{{0, 0, 0, 0}});
        }
    }
}

KERNEL(lora_matmul_down_bf16_r16, LoraMatmulDownParams, 256, 2) { lora_matmul_down<16, false>(p); }

KERNEL(lora_matmul_down_bf16_r32, LoraMatmulDownParams, 256, 1) { lora_matmul_down<32, false>(p); }

KERNEL(lora_matmul_down_bf16_r64, LoraMatmulDownParams, 256, 1) { lora_matmul_down<64, false>(p); }

KERNEL(lora_matmul_down_bf16_r16_dropout, LoraMatmulDownParams, 256, 2) { lora_matmul_down<16, true>(p); }

KERNEL(lora_matmul_down_bf16_r32_dropout, LoraMatmulDownParams, 256, 1) { lora_matmul_down<32, true>(p); }

KERNEL(lora_matmul_down_bf16_r64_dropout, LoraMatmulDownParams, 256, 1) { lora_matmul_down<64, true>(p); }
