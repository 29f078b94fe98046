// DoRA around the products of lora_matmul: the norms of its weights, the gains of its columns, and the gradient of its magnitudes.
//
// With c[j] = || (W + scaling B A)[j, :] ||, g = magnitude / c and z = x~ W^T + scaling (x~ A^T) B^T, the
// layer is y = (x - x~) W^T + g z + bias, which without dropout (x~ = x) is y = g z + bias. The products are
// separate launches; this file has the operations between them, one kernel each. So x~ is written to memory,
// and x - x~ too (both bf16; where a mask at most doubles, the difference of the two is exact). Numbers are
// bf16, c and sums f32, results rounded once, sums in a fixed order.
#include "lora_matmul.cuh"

// The magnitude of one adapter in one layer.
struct DoraFactor {
    const bf16* magnitude;  // [out_features]; null where the adapter has none: its gains are 1
    const float* norm;      // [out_features], c
    float* grad;            // [out_features], gradient of the magnitude, added to; null if it is not trained
};

// Parameters of dora_norm.
struct DoraNormParams {
    const bf16* weight;    // [out_features, in_features]
    const bf16* a;         // [r, in_features]
    const bf16* b_t;       // [r, out_features]
    float* norm;           // [out_features], overwritten
    int32_t in_features;   // columns of weight
    int32_t out_features;  // rows of weight, a multiple of 8
    int32_t r;             // rank
    float scaling;         // alpha / r, or alpha / sqrt(r)
};

// Parameters of dora_scale.
struct DoraScaleParams {
    const bf16* input;          // [rows, columns]
    bf16* output;               // [rows, columns], overwritten; may be the input or the addend
    const bf16* addend;         // [rows, columns], or null
    const bf16* bias;           // [columns], or null
    const DoraFactor* factors;  // by adapter
    const LoraRun* runs;        // rows in no run have gains of 1
    const int32_t* num_runs;    // entries of runs
    const int32_t* live_rows;   // rows there are; null: all
    int32_t rows;               // capacity, in rows
    int32_t columns;            // a multiple of 8
    float less;                 // taken off the gains
    int32_t reserved;           // 0
};

// Parameters of dora_magnitude_partial and dora_magnitude_total.
struct DoraMagnitudeParams {
    const bf16* dy;             // [rows, columns], gradient of the output
    const bf16* z;              // [rows, columns], the output before gains and bias
    float* partial;             // [adapters, num_slabs, columns], workspace
    const DoraFactor* factors;  // by adapter
    const LoraRun* runs;        // which rows belong to whom
    const int32_t* num_runs;    // entries of runs
    const int32_t* live_rows;   // rows there are; null: all
    int32_t rows;               // capacity, in rows
    int32_t columns;            // a multiple of 8
    int32_t slab_rows;          // rows of a slab
    int32_t num_slabs;          // slabs in the room
};

// Parameters of dropout_apply.
struct DropoutApplyParams {
    const bf16* input;         // [rows, columns]
    bf16* output;              // [rows, columns], overwritten; may be the input or the addend
    bf16* rest;                // [rows, columns], input - output; null: not needed
    const bf16* addend;        // [rows, columns], added before the result is rounded; null: nothing
    const DropoutKey* key;     // of this layer and step
    const int32_t* live_rows;  // rows there are; null: all
    LoraDropout dropout;       // rate and rows
    int32_t rows;              // capacity, in rows
    int32_t columns;           // a multiple of 8
};

// The factor of the adapter that a row goes through, or null.
DEVICE const DoraFactor* dora_of_row(const DoraFactor* factors, const LoraRun* runs, int num_runs, int row) {
    for (int i = 0; i < num_runs; i++) {
        if (row >= runs[i].row_start && row < runs[i].row_end) return &factors[runs[i].adapter];
    }
    return nullptr;
}

// Eight numbers of 16 bytes.
DEVICE void unpack(float (&numbers)[8], Vec16 v) {
    UNROLL for (int i = 0; i < 4; i++) {
        numbers[2 * i] = low_bf16(v.word[i]);
        numbers[2 * i + 1] = high_bf16(v.word[i]);
    }
}

DEVICE Vec16 packed(const float (&numbers)[8]) {
    Vec16 v;
    UNROLL for (int i = 0; i < 4; i++) v.word[i] = pack_bf16(numbers[2 * i], numbers[2 * i + 1]);
    return v;
}

// A warp has 4 rows of W, so that each number of A that it loads serves four products.
KERNEL(dora_norm, DoraNormParams, 128, 4) {
    const int row = static_cast<int>(blockIdx.x * 4 + threadIdx.x / 32) * 4;
    if (row >= p.out_features) return;
    float squares[4] = {};
    for (int column = lane_id() * 8; column < p.in_features; column += 256) {
        float delta[4][8] = {};
        NO_UNROLL for (int rank = 0; rank < p.r; rank++) {
            float a[8];
            unpack(a, load16_constant(p.a + static_cast<int64_t>(rank) * p.in_features + column));
            const Vec8 b = load8(p.b_t + static_cast<int64_t>(rank) * p.out_features + row);
            const float of_row[4] = {low_bf16(b.word[0]), high_bf16(b.word[0]), low_bf16(b.word[1]), high_bf16(b.word[1])};
            UNROLL for (int i = 0; i < 4; i++) {
                UNROLL for (int j = 0; j < 8; j++) delta[i][j] = fmaf(of_row[i], a[j], delta[i][j]);
            }
        }
        UNROLL for (int i = 0; i < 4; i++) {
            float w[8];
            unpack(w, load16_constant(p.weight + static_cast<int64_t>(row + i) * p.in_features + column));
            UNROLL for (int j = 0; j < 8; j++) {
                const float merged = fmaf(p.scaling, delta[i][j], w[j]);
                squares[i] = fmaf(merged, merged, squares[i]);
            }
        }
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const float sum = warp_sum(squares[i]);
        if (lane_id() == 0) p.norm[row + i] = sqrtf(sum);
    }
}

// output = (g - less) input + addend + bias. A block has 8 rows, so that gains are made once for several. Grid: (pieces of 8 rows,
// pieces of 1024 columns).
KERNEL(dora_scale, DoraScaleParams, 128, 8) {
    constexpr int kRows = 8;
    const int rows = rows_there_are(p.live_rows, p.rows);
    const int first_row = static_cast<int>(blockIdx.x) * kRows, column = static_cast<int>(blockIdx.y * 128 + threadIdx.x) * 8;
    if (column >= p.columns) return;
    const int end = first_row + kRows < rows ? first_row + kRows : rows, num_runs = *p.num_runs;
    const DoraFactor* before = nullptr;
    float gain[8];
    UNROLL for (int j = 0; j < 8; j++) gain[j] = 1.0f - p.less;
    NO_UNROLL for (int row = first_row; row < end; row++) {
        const DoraFactor* factor = dora_of_row(p.factors, p.runs, num_runs, row);
        if (factor != nullptr && factor->magnitude == nullptr) factor = nullptr;
        if (factor != before) {
            before = factor;
            UNROLL for (int j = 0; j < 8; j++) gain[j] = 1.0f - p.less;
            if (factor != nullptr) {
                unpack(gain, load16_constant(factor->magnitude + column));
                UNROLL for (int half = 0; half < 2; half++) {
                    const Vec16 norm = load16_constant(factor->norm + column + 4 * half);
                    UNROLL for (int j = 0; j < 4; j++) {
                        gain[4 * half + j] = gain[4 * half + j] / bits_float(norm.word[j]) - p.less;
                    }
                }
            }
        }
        const int64_t at = static_cast<int64_t>(row) * p.columns + column;
        float sum[8] = {}, numbers[8];
        if (p.addend != nullptr) unpack(sum, load16(p.addend + at));
        if (p.bias != nullptr) {
            unpack(numbers, load16_constant(p.bias + column));
            UNROLL for (int j = 0; j < 8; j++) sum[j] += numbers[j];
        }
        unpack(numbers, load16(p.input + at));
        UNROLL for (int j = 0; j < 8; j++) sum[j] = fmaf(gain[j], numbers[j], sum[j]);
        store16(p.output + at, packed(sum));
    }
}

// Sums of dy z over the rows of one adapter in one slab. Grid: (pieces of 256 columns, slabs, adapters); a warp takes every
// eighth row, and the warps are added in their order.
KERNEL(dora_magnitude_partial, DoraMagnitudeParams, 256, 4) {
    // Two planes of 128 numbers per warp, each followed by 16 numbers of padding, so that consecutive columns
    // are in different banks.
    constexpr int kPlane = 144;
    STATIC_SMEM(float, sums, 8 * 2 * kPlane);
    const int rows = rows_there_are(p.live_rows, p.rows);
    const int slab_start = blockIdx.y * p.slab_rows, adapter = blockIdx.z;
    const int slab_end = slab_start + p.slab_rows < rows ? slab_start + p.slab_rows : rows;
    const int warp = threadIdx.x / 32, lane = lane_id();
    const int column = blockIdx.x * 256 + lane * 8;
    if (slab_start >= rows || p.factors[adapter].grad == nullptr) return;

    float acc[8] = {};
    const int num_runs = *p.num_runs;
    for (int i = 0; i < num_runs; i++) {
        const LoraRun& run = p.runs[i];
        if (run.adapter != adapter) continue;
        const int start = run.row_start > slab_start ? run.row_start : slab_start;
        const int end = run.row_end < slab_end ? run.row_end : slab_end;
        for (int row = start + warp; row < end; row += 8) {
            if (column >= p.columns) break;
            const int64_t at = static_cast<int64_t>(row) * p.columns + column;
            float dy[8], z[8];
            unpack(dy, load16(p.dy + at));
            unpack(z, load16(p.z + at));
            UNROLL for (int j = 0; j < 8; j++) acc[j] = fmaf(dy[j], z[j], acc[j]);
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        Vec16 v;
        UNROLL for (int j = 0; j < 4; j++) v.word[j] = float_bits(acc[4 * half + j]);
        store16(sums + (2 * warp + half) * kPlane + lane * 4, v);
    }
    __syncthreads();
    const int c = threadIdx.x, place = c / 4 % 2 * kPlane + c / 8 * 4 + c % 4;
    float sum = 0;
    UNROLL for (int w = 0; w < 8; w++) sum += sums[2 * w * kPlane + place];
    const int at = static_cast<int>(blockIdx.x) * 256 + c;
    if (at < p.columns) {
        p.partial[(static_cast<int64_t>(adapter) * p.num_slabs + blockIdx.y) * p.columns + at] = sum;
    }
}

// grad += the slabs' sums in their order / c. Grid: (pieces of 256 columns, adapters).
KERNEL(dora_magnitude_total, DoraMagnitudeParams, 256, 4) {
    const int rows = rows_there_are(p.live_rows, p.rows);
    const int column = blockIdx.x * 256 + threadIdx.x, adapter = blockIdx.y;
    const DoraFactor& factor = p.factors[adapter];
    if (column >= p.columns || factor.grad == nullptr) return;
    float sum = 0;
    for (int slab = 0; slab < p.num_slabs && slab * p.slab_rows < rows; slab++) {
        sum += p.partial[(static_cast<int64_t>(adapter) * p.num_slabs + slab) * p.columns + column];
    }
    factor.grad[column] += sum / factor.norm[column];
}

// output = dropout(input) + addend. A thread has one row and half of the calls of a stretch of 128 columns: 8 consecutive columns
// out of every 16.
KERNEL(dropout_apply, DropoutApplyParams, 128, 4) {
    const int per_row = (p.columns + kMaskColumns - 1) / kMaskColumns * 2;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
    const int64_t row = index / per_row;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const int stretch = static_cast<int>(index % per_row) / 2, half = static_cast<int>(index % per_row) % 2;
    // Bit 8 j + i: column 16 i + 8 half + j of the stretch is kept.
    uint64_t kept = 0;
    NO_UNROLL for (int j = 0; j < 8; j++) {
        const uint32_t call = stretch * 16 + half * 8 + j;
        const uint64_t bits = dropout_kept(*p.key, call, p.dropout.row_keys + 2 * row, p.dropout.threshold);
        kept |= bits << (8 * j);
    }
    NO_UNROLL for (int i = 0; i < 8; i++) {
        const int column = stretch * kMaskColumns + i * 16 + half * 8;
        if (column >= p.columns) break;
        const int64_t at = row * p.columns + column;
        float x[8], sum[8] = {};
        unpack(x, load16(p.input + at));
        if (p.addend != nullptr) unpack(sum, load16(p.addend + at));
        UNROLL for (int j = 0; j < 8; j++) sum[j] = fmaf(x[j], (kept >> (8 * j + i)) & 1 ? p.dropout.keep : 0.0f, sum[j]);
        const Vec16 result = packed(sum);
        store16(p.output + at, result);
        if (p.rest != nullptr) {
            float rounded[8];
            unpack(rounded, result);
            UNROLL for (int j = 0; j < 8; j++) x[j] -= rounded[j];
            store16(p.rest + at, packed(x));
        }
    }
}
