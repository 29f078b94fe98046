// The LM head with its loss: logits of the supervised rows, log-probabilities of their targets, and the gradient of the input.
//
// The logits of all rows do not fit into memory (512 rows of 151,936 tokens take 156 MB), so a call goes
// through the rows in chunks of up to four launches: _logits computes the product, and writes the largest
// logit and the sum of exponentials of every row in every tile, and the logits of the targets, all from the
// f32 sums; _score combines these and replaces the logits by their gradients in place; _dx multiplies the
// gradients with W; _reduce adds its parts. Without a gradient no logits are written. A chunk times the
// hidden size has too few tiles for a whole GPU, so _dx splits the vocabulary among blocks (split-k), whose
// f32 parts are added in order: two runs give the same bytes. logits and their gradients are bf16, rounded
// once; log-probabilities do not use the rounded logits. Rows beyond the live ones are neither read nor
// written. Source of the idea: Liger kernel's fused linear cross-entropy.
#include "common/gemm_tile.cuh"

// One row of x with its targets, which are contiguous.
struct CrossEntropyRow {
    int32_t first_target;  // index of its first target
    int32_t end_target;    // one past the last
    float weight;          // scale of the loss * sum of the targets' weights
    int32_t reserved;      // 0
};

// One token to predict.
struct CrossEntropyTarget {
    int32_t token;  // index into the vocabulary
    float weight;   // scale of the loss * weight in the loss
};

// Parameters of linear_cross_entropy_logits_*.
struct CrossEntropyLogitsParams {
    const bf16* x;                      // [rows, hidden_size]
    const bf16* weight;                 // [vocab_size, hidden_size]
    bf16* logits;                       // [chunk_rows, stride], overwritten; null: not needed
    float* partial;                     // [tiles_n, chunk_rows, 2]: largest logit, sum of exponentials; null without targets
    float* scores;                      // [targets, 2]: the logit goes first; read and written with partial only
    const CrossEntropyRow* row_table;   // [rows]
    const CrossEntropyTarget* targets;  // sorted by row
    const int32_t* live_rows;           // rows there are; null: all
    int32_t rows;                       // capacity of x, in rows
    int32_t first_row;                  // of x, where the chunk starts
    int32_t chunk_rows;                 // capacity of logits and partial, in rows
    int32_t hidden_size;                // columns of x
    int32_t vocab_size;                 // rows of weight
    int32_t stride;                     // columns of logits: vocab_size rounded up to 8
    int32_t tiles_m;                    // tile rows
    int32_t tiles_n;                    // tile columns
    int32_t group;                      // tile columns that are walked together
    int32_t reserved;                   // 0
};

// Parameters of linear_cross_entropy_score.
struct CrossEntropyScoreParams {
    bf16* logits;                       // [chunk_rows, stride], turned into gradients; null without gradient
    const float* partial;               // [tiles_n, chunk_rows, 2]
    float* scores;                      // [targets, 2]: log-probability, and 1 where no logit is larger, else 0
    const CrossEntropyRow* row_table;   // [rows]
    const CrossEntropyTarget* targets;  // sorted by row
    const int32_t* live_rows;           // rows there are; null: all
    int32_t rows;                       // capacity of row_table, in rows
    int32_t first_row;                  // where the chunk starts
    int32_t chunk_rows;                 // capacity of partial, in rows
    int32_t stride;                     // columns of logits, a multiple of 8
    int32_t tiles_n;                    // tile columns
    int32_t vocab_size;                 // columns of logits that are tokens; gradients of the others are 0
};

// Parameters of linear_cross_entropy_dx_* and linear_cross_entropy_reduce.
struct CrossEntropyDxParams {
    const bf16* dz;            // [chunk_rows, stride], the gradients of the logits, from _score
    const bf16* weight;        // [vocab_size, hidden_size]
    float* partial;            // [splits, chunk_rows, hidden_size], workspace
    bf16* dx;                  // [rows, hidden_size], the rows of the chunk are overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity of dx, in rows
    int32_t first_row;         // where the chunk starts
    int32_t chunk_rows;        // capacity of dz and partial, in rows
    int32_t hidden_size;       // columns of dx
    int32_t vocab_size;        // rows of weight
    int32_t stride;            // columns of dz
    int32_t tiles_m;           // tile rows
    int32_t tiles_n;           // tile columns
    int32_t group;             // tile columns that are walked together
    int32_t splits;            // parts of the vocabulary
    int32_t split_tokens;      // tokens of a part, a multiple of 32
    int32_t reserved;          // 0
};

constexpr float kMinusInfinity = -__builtin_huge_valf();

// Number of live rows of the chunk.
DEVICE int32_t cross_entropy_rows(const int32_t* live_rows, int32_t rows, int32_t first_row, int32_t chunk_rows) {
    const int32_t left = rows_there_are(live_rows, rows) - first_row;
    return left < chunk_rows ? left : chunk_rows;
}

// Sum of two sums of exponentials, each relative to its maximum; the larger maximum is `max`. Nothing is -inf and 0.
DEVICE float joined_sum(float max, float max_a, float sum_a, float max_b, float sum_b) {
    const float a = max_a == kMinusInfinity ? 0.0f : sum_a * fast_exp2((max_a - max) * kLog2E);
    const float b = max_b == kMinusInfinity ? 0.0f : sum_b * fast_exp2((max_b - max) * kLog2E);
    return a + b;
}

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages>
DEVICE void cross_entropy_logits(const CrossEntropyLogitsParams& p) {
    using Tile = WarpTile<kM, kN, kWarpsM, kWarpsN>;
    // After the tile that `store` stages in shared memory.
    constexpr int kSumsOffset = kM * (kN * 2 + 16);
    static_assert(kSumsOffset + kWarpsN * kM * 8 <= kStages * Tile::kStageBytes, "the sums of a row fit behind the tile");
    DYNAMIC_SMEM(smem);

    const int chunk_rows = cross_entropy_rows(p.live_rows, p.rows, p.first_row, p.chunk_rows);
    const TilePlace place = tile_place(blockIdx.x, p.tiles_m, p.tiles_n, p.group);
    const int row = place.m * kM, row_end = row + kM < chunk_rows ? row + kM : chunk_rows;
    const int column = place.n * kN;
    if (row >= chunk_rows) return;

    float acc[Tile::kMmaM][Tile::kMmaN][4] = {};
    RowsLoader<kM, Tile::kThreads> load_x;
    RowsLoader<kN, Tile::kThreads> load_w;
    load_x.start(p.x + static_cast<int64_t>(p.first_row) * p.hidden_size, p.hidden_size, row, row, row_end);
    load_w.start(p.weight, p.hidden_size, column, 0, p.vocab_size);
    Tile::template product<false, kStages>(acc, smem, load_x, load_w, p.hidden_size);
    if (p.logits != nullptr) {
        Tile::store(acc, smem, p.logits, p.stride, row, row_end, column, p.stride, nullptr);
    } else {
        __syncthreads();
    }
    if (p.partial == nullptr) return;

    const int lane = lane_id(), first_column = column + Tile::first_column() + (lane & 3) * 2;
    const int warp_column = static_cast<int>(threadIdx.x / 32) % kWarpsN;
    float* const sums = reinterpret_cast<float*>(smem + kSumsOffset);
    UNROLL for (int m = 0; m < Tile::kMmaM; m++) {
        UNROLL for (int half = 0; half < 2; half++) {
            const int at = Tile::first_row() + m * 16 + half * 8 + (lane >> 2);
            float max = kMinusInfinity, sum = 0;
            UNROLL for (int n = 0; n < Tile::kMmaN; n++) {
                UNROLL for (int i = 0; i < 2; i++) {
                    if (first_column + n * 8 + i < p.vocab_size) max = fmaxf(max, acc[m][n][2 * half + i]);
                }
            }
            max = quad_max(max);
            UNROLL for (int n = 0; n < Tile::kMmaN; n++) {
                UNROLL for (int i = 0; i < 2; i++) {
                    const float power = fast_exp2((acc[m][n][2 * half + i] - max) * kLog2E);
                    if (first_column + n * 8 + i < p.vocab_size) sum += power;
                }
            }
            sum = quad_sum(sum);
            if ((lane & 3) == 0) store8(sums + (warp_column * kM + at) * 2, max, sum);
            if (row + at >= row_end) continue;
            const CrossEntropyRow& targets = p.row_table[p.first_row + row + at];
            const int end_target = targets.end_target;
            NO_UNROLL for (int t = targets.first_target; t < end_target; t++) {
                const int from_here = p.targets[t].token - first_column;
                UNROLL for (int n = 0; n < Tile::kMmaN; n++) {
                    UNROLL for (int i = 0; i < 2; i++) {
                        if (from_here == n * 8 + i) p.scores[2 * static_cast<int64_t>(t)] = acc[m][n][2 * half + i];
                    }
                }
            }
        }
    }
    __syncthreads();
    const int at = threadIdx.x;
    if (at < kM && row + at < row_end) {
        float max = kMinusInfinity, sum = 0;
        UNROLL for (int w = 0; w < kWarpsN; w++) {
            const Vec8 part = load8(sums + (w * kM + at) * 2);
            const float part_max = bits_float(part.word[0]), larger = fmaxf(max, part_max);
            sum = joined_sum(larger, max, sum, part_max, bits_float(part.word[1]));
            max = larger;
        }
        store8(p.partial + (static_cast<int64_t>(place.n) * p.chunk_rows + row + at) * 2, max, sum);
    }
}

KERNEL(linear_cross_entropy_logits_128x128, CrossEntropyLogitsParams, 256, 2) {
    cross_entropy_logits<128, 128, 2, 4, 3>(p);
}

KERNEL(linear_cross_entropy_logits_128x256, CrossEntropyLogitsParams, 256, 1) {
    cross_entropy_logits<128, 256, 2, 4, 4>(p);
}

KERNEL(linear_cross_entropy_logits_64x64, CrossEntropyLogitsParams, 128, 4) { cross_entropy_logits<64, 64, 2, 2, 3>(p); }

// One block for every row of the chunk.
KERNEL(linear_cross_entropy_score, CrossEntropyScoreParams, 256, 4) {
    STATIC_SMEM(float, sums, 16);
    const int chunk_rows = cross_entropy_rows(p.live_rows, p.rows, p.first_row, p.chunk_rows);
    const int row = blockIdx.x, thread = threadIdx.x;
    if (row >= chunk_rows) return;

    // Every thread combines every 256th tile; then the lanes of a warp, and the warps, are combined in order.
    float max = kMinusInfinity, sum = 0;
    for (int tile = thread; tile < p.tiles_n; tile += 256) {
        const Vec8 part = load8(p.partial + (static_cast<int64_t>(tile) * p.chunk_rows + row) * 2);
        const float part_max = bits_float(part.word[0]), larger = fmaxf(max, part_max);
        sum = joined_sum(larger, max, sum, part_max, bits_float(part.word[1]));
        max = larger;
    }
    const float warp_largest = warp_max(max);
    sum = warp_sum(max == kMinusInfinity ? 0.0f : sum * fast_exp2((max - warp_largest) * kLog2E));
    if (lane_id() == 0) store8(sums + thread / 32 * 2, warp_largest, sum);
    __syncthreads();
    max = kMinusInfinity;
    UNROLL for (int w = 0; w < 8; w++) max = fmaxf(max, sums[2 * w]);
    sum = 0;
    UNROLL for (int w = 0; w < 8; w++) {
        if (sums[2 * w] != kMinusInfinity) sum += sums[2 * w + 1] * fast_exp2((sums[2 * w] - max) * kLog2E);
    }
    const float log_sum = logf(sum);

    const CrossEntropyRow& targets = p.row_table[p.first_row + row];
    const int first_target = targets.first_target, end_target = targets.end_target;
    const float row_weight = targets.weight;
    for (int t = first_target + thread; t < end_target; t += 256) {
        float* const score = p.scores + 2 * static_cast<int64_t>(t);
        const float logit = score[0];
        store8(score, (logit - max) - log_sum, logit >= max ? 1.0f : 0.0f);
    }
    if (p.logits == nullptr) return;

    bf16* const logits = p.logits + static_cast<int64_t>(row) * p.stride;
    const float shift = -(max + log_sum) * kLog2E;
    for (int column = thread * 8; column < p.stride; column += 256 * 8) {
        Vec16 z = load16(logits + column);
        UNROLL for (int i = 0; i < 4; i++) {
            const float low = fast_exp2(fmaf(low_bf16(z.word[i]), kLog2E, shift));
            const float high = fast_exp2(fmaf(high_bf16(z.word[i]), kLog2E, shift));
            z.word[i] = pack_bf16(row_weight * low, row_weight * high);
            // In the padding of a row this would be infinity times 0 if all logits are very negative.
            const int left = p.vocab_size - (column + 2 * i);
            if (left < 2) z.word[i] &= left == 1 ? 0x0000ffffu : 0u;
        }
        store16(logits + column, z);
    }
    __syncthreads();
    // The targets' own columns again, from the unrounded logit. The first target of a token does it for all of that token.
    for (int t = first_target + thread; t < end_target; t += 256) {
        const int token = p.targets[t].token;
        float weight = 0;
        bool is_first = true;
        for (int other = first_target; other < end_target; other++) {
            if (p.targets[other].token != token) continue;
            is_first = is_first && other >= t;
            weight += p.targets[other].weight;
        }
        const float probability = fast_exp2(p.scores[2 * static_cast<int64_t>(t)] * kLog2E);
        if (is_first) logits[token] = to_bf16(fmaf(row_weight, probability, -weight));
    }
}

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages>
DEVICE void cross_entropy_dx(const CrossEntropyDxParams& p) {
    using Tile = WarpTile<kM, kN, kWarpsM, kWarpsN>;
    DYNAMIC_SMEM(smem);

    const int chunk_rows = cross_entropy_rows(p.live_rows, p.rows, p.first_row, p.chunk_rows);
    const TilePlace place = tile_place(blockIdx.x, p.tiles_m, p.tiles_n, p.group);
    const int row = place.m * kM, row_end = row + kM < chunk_rows ? row + kM : chunk_rows;
    const int column = place.n * kN;
    const int token = blockIdx.y * p.split_tokens;
    if (row >= chunk_rows) return;

    float acc[Tile::kMmaM][Tile::kMmaN][4] = {};
    RowsLoader<kM, Tile::kThreads> load_dz;
    ColumnsLoader<kN, Tile::kThreads> load_w;
    load_dz.start(p.dz + token, p.stride, row, row, row_end);
    load_w.start(p.weight + static_cast<int64_t>(token) * p.hidden_size, p.hidden_size, column, p.hidden_size);
    const int tokens = p.vocab_size - token < p.split_tokens ? p.vocab_size - token : p.split_tokens;
    Tile::template product<true, kStages>(acc, smem, load_dz, load_w, tokens);

    const int lane = lane_id();
    const int64_t first = static_cast<int64_t>(blockIdx.y) * p.chunk_rows;
    UNROLL for (int m = 0; m < Tile::kMmaM; m++) {
        UNROLL for (int half = 0; half < 2; half++) {
            const int at = row + Tile::first_row() + m * 16 + half * 8 + (lane >> 2);
            UNROLL for (int n = 0; n < Tile::kMmaN; n++) {
                const int c = column + Tile::first_column() + n * 8 + (lane & 3) * 2;
                if (at < row_end && c < p.hidden_size) {
                    store8(p.partial + (first + at) * p.hidden_size + c, acc[m][n][2 * half], acc[m][n][2 * half + 1]);
                }
            }
        }
    }
}

KERNEL(linear_cross_entropy_dx_128x128, CrossEntropyDxParams, 256, 2) { cross_entropy_dx<128, 128, 2, 4, 3>(p); }

KERNEL(linear_cross_entropy_dx_128x256, CrossEntropyDxParams, 256, 1) { cross_entropy_dx<128, 256, 2, 4, 4>(p); }

KERNEL(linear_cross_entropy_dx_64x64, CrossEntropyDxParams, 128, 4) { cross_entropy_dx<64, 64, 2, 2, 3>(p); }

// dx = the parts of the vocabulary, added in their order. A thread has 4 columns of a row.
KERNEL(linear_cross_entropy_reduce, CrossEntropyDxParams, 256, 4) {
    const int chunk_rows = cross_entropy_rows(p.live_rows, p.rows, p.first_row, p.chunk_rows);
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (chunk_rows <= 0 || at >= static_cast<int64_t>(chunk_rows) * p.hidden_size) return;
    float sum[4] = {};
    for (int split = 0; split < p.splits; split++) {
        const Vec16 part = load16(p.partial + static_cast<int64_t>(split) * p.chunk_rows * p.hidden_size + at);
        UNROLL for (int i = 0; i < 4; i++) sum[i] += bits_float(part.word[i]);
    }
    // Eight bytes of any type.
    store8(reinterpret_cast<float*>(p.dx + static_cast<int64_t>(p.first_row) * p.hidden_size + at),
           bits_float(pack_bf16(sum[0], sum[1])), bits_float(pack_bf16(sum[2], sum[3])));
}
