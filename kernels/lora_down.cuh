// out = scaling * dropout(in) factor^T with the rows of `in` from memory or registers: the core of the LoRA
// down-projections.
//
// A block has 32 rows and 8 warps that split the features in stretches of 128. Lane q of a quad holds 8
// consecutive columns of rows g, g + 8, g + 16 and g + 24: 16 bytes that are mma fragments as they are,
// because k may be summed in any order as long as both operands agree. The sums of the warps are added in a
// fixed order. A Source delivers the columns: it loads them, or computes them from loaded inputs and stores
// them. So an op whose output is the input of adapters multiplies while it has the rows in registers, and
// they are not read again; the results are the same bits in both cases.
#pragma once

#include "common/rows.cuh"
#include "lora_matmul.cuh"

// One layer of a down-projection.
struct LoraDownLayer {
    const bf16* input;          // [rows, features]; not read if a kernel produces its input
    bf16* output;               // [rows, stride], rank_stride columns of this layer, overwritten
    const LoraFactor* factors;  // [r, features] each, by adapter; null: the layer has none
    const DropoutKey* key;      // of this layer and step; null without dropout
    int64_t features;           // columns of input
};

// The down-projections fused into a kernel.
struct LoraProject {
    LoraDownLayer layers[3];  // those that share the output, or one for each output
    const LoraRun* runs;      // [*num_runs]
    const int32_t* num_runs;  // entries of runs
    LoraDropout dropout;      // read by the _dropout kernels only
    int32_t num_layers;       // entries of layers
    int32_t stride;           // columns of the layers' output
    int32_t rank_stride;      // columns of one layer: the largest rank, rounded up to 16
    int32_t reserved;         // 0
};

constexpr int kDownRows = 32;
constexpr int kDownWarps = 8;
constexpr int kDownThreads = 32 * kDownWarps;
// Bytes of shared memory that the sums of kGroups groups of 16 columns take.
template <int kGroups>
constexpr int kDownSumsBytes = kDownWarps / 2 * kDownRows * kGroups * 16 * 4;

// Bit 8 * i + j of the result: column 32 * i + 8 * quad + j of the stretch is kept. These are the columns of one lane. Lanes quad and
// quad ^ 2 need the same eight calls, and make four of them each; the whole warp calls this.
DEVICE uint32_t kept_columns(DropoutKey key, int stretch, int quad, const uint32_t* row_key, uint32_t threshold) {
    uint32_t own = 0;
    NO_UNROLL for (int j = 0; j < 4; j++) {
        own |= dropout_kept(key, stretch * 16 + (quad % 2) * 8 + (quad / 2) * 4 + j, row_key, threshold) << (8 * j);
    }
    const uint32_t other = shfl_xor(own, 2);
    const uint32_t first = (quad < 2 ? own : other) >> (quad / 2), last = (quad < 2 ? other : own) >> (quad / 2);
    uint32_t kept = 0;
    UNROLL for (int j = 0; j < 4; j++) {
        UNROLL for (int i = 0; i < 4; i++) {
            kept |= ((first >> (8 * j + 2 * i)) & 1u) << (8 * i + j);
            kept |= ((last >> (8 * j + 2 * i)) & 1u) << (8 * i + j + 4);
        }
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

// The rows of a block: first..end.
struct DownRows {
    int first;
    int end;

    DEVICE DownRows(int block, int live_rows) {
        first = block * kDownRows;
        end = first + kDownRows < live_rows ? first + kDownRows : live_rows;
    }
    // Row `i` (0..3) of this lane; it may be beyond the end.
    DEVICE int at(int i) const { return first + static_cast<int>(lane_id() >> 2) + 8 * i; }
};

// The rows of a block that go through one adapter; empty if start equals end.
struct DownRange {
    int start;
    int end;
    int adapter;
};

// The columns of the output that a pass computes, in groups of 16. If layers share the input, the columns of
// all of them form one row, first..end; otherwise every input has its share of the groups, and these are
// columns of its own layer.
struct DownColumns {
    const LoraDownLayer* layers;
    int first;
    int end;
    int rank_stride;

    template <int kPerInput>
    DEVICE int column(int group) const {
        return first + group % kPerInput * 16;
    }
    // The layer of a group; null if there is none or it has no adapters.
    template <int kPerInput>
    DEVICE const LoraDownLayer* layer(int group) const {
        const int c = column<kPerInput>(group);
        if (c >= end) return nullptr;
        const LoraDownLayer* const of_group = layers + group / kPerInput + c / rank_stride;
        return of_group->factors != nullptr ? of_group : nullptr;
    }
    template <int kPerInput>
    DEVICE int rank(int group) const {
        return column<kPerInput>(group) % rank_stride;
    }
};

// One part of a stretch: 32 columns.
template <int kGroups, int kInputs, bool kDropout, class Source>
DEVICE void down_part(float (&acc)[kGroups][2][2][4], const bf16* const (&value)[kGroups], const int (&left)[kGroups],
                      const uint32_t (&kept)[4], const DownRows& rows, const DownRange& range, int64_t features,
                      int64_t stretch, int part, Source& source) {
    constexpr int kPerInput = kGroups / kInputs;
    const int lane = lane_id();
    const int64_t column = stretch + part * 32 + (lane & 3) * 8;
    const bool inside = column < features;
    Vec16 f[kGroups][2], x[kInputs][4];
    UNROLL for (int g = 0; g < kGroups; g++) {
        UNROLL for (int n = 0; n < 2; n++) {
            const int rank = n * 8 + (lane >> 2);
            f[g][n] = zero16();
            if (inside && rank < left[g]) f[g][n] = load16_constant(value[g] + rank * features + column);
        }
    }
    source.part(x, range, stretch, part);
    UNROLL for (int input = 0; input < kInputs; input++) {
        UNROLL for (int i = 0; i < 4; i++) {
            if constexpr (Source::kDeliversAllRows) {
                if (rows.at(i) < range.start || rows.at(i) >= range.end) x[input][i] = zero16();
            }
            if constexpr (kDropout) drop(x[input][i], kept[i] >> (8 * part));
        }
    }
    UNROLL for (int g = 0; g < kGroups; g++) {
        if (left[g] <= 0) continue;
        const Vec16(&from)[4] = x[g / kPerInput];
        UNROLL for (int slice = 0; slice < 2; slice++) {
            uint32_t a[2][4], b[2][2];
            UNROLL for (int m = 0; m < 2; m++) {
                a[m][0] = from[2 * m].word[2 * slice], a[m][1] = from[2 * m + 1].word[2 * slice];
                a[m][2] = from[2 * m].word[2 * slice + 1], a[m][3] = from[2 * m + 1].word[2 * slice + 1];
            }
            UNROLL for (int n = 0; n < 2; n++) b[n][0] = f[g][n].word[2 * slice], b[n][1] = f[g][n].word[2 * slice + 1];
            mma_tile(acc[g], a, b);
        }
    }
}

// Multiplies the rows of `range` and stores the columns; lets the source deliver all rows of the block on the way.
template <int kGroups, int kInputs, bool kDropout, class Source>
DEVICE void down_pass(const DownColumns& columns, const LoraDropout& dropout, const DownRows& rows, const DownRange& range,
                      int64_t features, int stride, Source& source, float* sums) {
    constexpr int kPerInput = kGroups / kInputs, kPieces = kGroups * 2;
    constexpr int kRowNumbers = kGroups * 16 + 8;  // 16 bytes of padding a row
    static_assert(kDownRows * kRowNumbers * 2 <= kDownSumsBytes<kGroups>, "the result fits over the sums");
    bf16* const result = reinterpret_cast<bf16*>(sums);
    const int warp = threadIdx.x / 32, lane = lane_id(), quad = lane & 3;

    const bf16* value[kGroups];
    int left[kGroups];
    UNROLL for (int g = 0; g < kGroups; g++) {
        value[g] = nullptr, left[g] = 0;
        const LoraDownLayer* const layer = columns.template layer<kPerInput>(g);
        if (range.start >= range.end || layer == nullptr) continue;
        const LoraFactor& factor = layer->factors[range.adapter];
        const int rank = columns.template rank<kPerInput>(g);
        value[g] = factor.value + rank * features;
        left[g] = factor.r - rank;
    }

    float acc[kGroups][2][2][4] = {};
    NO_UNROLL for (int64_t stretch = warp * kStretchColumns; stretch < features; stretch += kDownWarps * kStretchColumns) {
        uint32_t kept[4] = {};
        if constexpr (kDropout) {
            if (left[0] > 0) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const int64_t at = rows.at(i) < rows.end ? rows.at(i) : rows.end - 1;
                    kept[i] = kept_columns(*columns.layers->key, static_cast<int>(stretch / kMaskColumns), quad,
                                           dropout.row_keys + 2 * at, dropout.threshold);
                }
            }
        }
        if constexpr (Source::kDeliversStretches) {
            source.stretch(stretch);
            UNROLL for (int part = 0; part < 4; part++) {
                down_part<kGroups, kInputs, kDropout>(acc, value, left, kept, rows, range, features, stretch, part, source);
            }
        } else {
            UNROLL_2 for (int part = 0; part < 4; part++) {
                down_part<kGroups, kInputs, kDropout>(acc, value, left, kept, rows, range, features, stretch, part, source);
            }
        }
    }
    if (range.start >= range.end) return;
    // The sums overwrite the memory in which the source may have kept rows.
    if constexpr (Source::kKeepsRows) __syncthreads();

    // Warps 4-7 hand their sums to 0-3, then 2-3 to 0-1, then 1 to 0; in fragment order, so without bank conflicts.
    NO_UNROLL for (int half = kDownWarps / 2; half > 0; half /= 2) {
        if (warp >= half && warp < 2 * half) {
            UNROLL for (int i = 0; i < 4 * kGroups; i++) {
                const float(&from)[4] = acc[i / 4][i / 2 % 2][i % 2];
                Vec16 v;
                UNROLL for (int j = 0; j < 4; j++) v.word[j] = float_bits(from[j]);
                store16(sums + (((warp - half) * 4 * kGroups + i) * 32 + lane) * 4, v);
            }
        }
        __syncthreads();
        if (warp < half) {
            UNROLL for (int i = 0; i < 4 * kGroups; i++) {
                const Vec16 v = load16(sums + ((warp * 4 * kGroups + i) * 32 + lane) * 4);
                UNROLL for (int j = 0; j < 4; j++) acc[i / 4][i / 2 % 2][i % 2][j] += bits_float(v.word[j]);
            }
        }
        __syncthreads();
    }
    if (warp == 0) {
        UNROLL for (int g = 0; g < kGroups; g++) {
            const LoraDownLayer* const layer = columns.template layer<kPerInput>(g);
            float scale = layer != nullptr ? layer->factors[range.adapter].scaling : 0.0f;
            if constexpr (kDropout) scale *= dropout.keep;
            UNROLL for (int i = 0; i < 4; i++) {
                const float(&from)[4] = acc[g][i / 2][i % 2];
                bf16* const at = result + (i / 2 * 16 + (lane >> 2)) * kRowNumbers + g * 16 + i % 2 * 8 + quad * 2;
                *reinterpret_cast<uint32_t*>(at) = pack_bf16(scale * from[0], scale * from[1]);
                *reinterpret_cast<uint32_t*>(at + 8 * kRowNumbers) = pack_bf16(scale * from[2], scale * from[3]);
            }
        }
    }
    __syncthreads();
    // Eight lanes read one piece of eight rows, whose padding puts them into different banks.
    for (int i = threadIdx.x; i < kDownRows * kPieces; i += kDownThreads) {
        const int r = i / (8 * kPieces) * 8 + i % 8, at = rows.first + r, piece = i / 8 % kPieces;
        const LoraDownLayer* const layer = columns.template layer<kPerInput>(piece / 2);
        if (at < range.start || at >= range.end || layer == nullptr) continue;
        const int column = columns.template rank<kPerInput>(piece / 2) + piece % 2 * 8;
        store16(layer->output + at * static_cast<int64_t>(stride) + column, load16(result + r * kRowNumbers + piece * 8));
    }
    // The next pass writes `sums` again.
    __syncthreads();
}

// All rows of a block for some columns: run by run, then zeros for rows without adapter. A source that
// computes its rows does so in the first pass, which runs even if no row has an adapter; in later passes it
// reads the stored rows.
template <int kGroups, int kInputs, bool kDropout, class Source>
DEVICE void down_runs(const DownColumns& columns, const LoraRun* runs, int num_runs, const LoraDropout& dropout,
                      const DownRows& rows, int64_t features, int stride, Source& source, float* sums) {
    constexpr int kPerInput = kGroups / kInputs, kPieces = kGroups * 2;
    NO_UNROLL for (int run = 0; run <= num_runs; run++) {
        DownRange range{rows.first, rows.first, 0};
        if (run < num_runs) {
            const LoraRun& of_run = runs[run];
            range.start = of_run.row_start > rows.first ? of_run.row_start : rows.first;
            range.end = of_run.row_end < rows.end ? of_run.row_end : rows.end;
            range.adapter = of_run.adapter;
            bool any = false;
            UNROLL for (int g = 0; g < kGroups; g++) {
                const LoraDownLayer* const layer = columns.template layer<kPerInput>(g);
                any = any || (layer != nullptr && layer->factors[range.adapter].r > 0);
            }
            if (range.start >= range.end || !any) continue;
        } else if (source.is_stored) {
            break;
        }
        down_pass<kGroups, kInputs, kDropout>(columns, dropout, rows, range, features, stride, source, sums);
        source.is_stored = true;
    }
    for (int i = threadIdx.x; i < kDownRows * kPieces; i += kDownThreads) {
        const int at = rows.first + i / kPieces, piece = i % kPieces;
        const LoraDownLayer* const layer = columns.template layer<kPerInput>(piece / 2);
        if (at >= rows.end || layer == nullptr) continue;
        if (factor_of_row(runs, num_runs, layer->factors, at) == nullptr) {
            const int column = columns.template rank<kPerInput>(piece / 2) + piece % 2 * 8;
            store16(layer->output + at * static_cast<int64_t>(stride) + column, zero16());
        }
    }
}

// All products of `p` with the rows of `source`. With dropout every layer has another input, so it takes
// separate passes.
template <int kGroups, int kInputs, bool kDropout, class Source>
DEVICE void down_all(const LoraProject& p, const DownRows& rows, int64_t features, Source& source, float* sums) {
    constexpr int kColumns = kGroups / kInputs * 16;
    const int per_layer = (p.rank_stride + kColumns - 1) / kColumns;
    const int columns = kInputs > 1 ? p.rank_stride : p.num_layers * p.rank_stride;
    const int passes = kDropout ? p.num_layers * per_layer : (columns + kColumns - 1) / kColumns;
    NO_UNROLL for (int pass = 0; pass < passes || !source.is_stored; pass++) {
        DownColumns of_pass{p.layers, pass * kColumns, columns, p.rank_stride};
        if constexpr (kDropout) {
            of_pass = DownColumns{p.layers + pass / per_layer, pass % per_layer * kColumns, p.rank_stride, p.rank_stride};
        }
        down_runs<kGroups, kInputs, kDropout>(of_pass, p.runs, *p.num_runs, p.dropout, rows, features, p.stride, source, sums);
    }
}

// Rows in memory.
struct StoredRows {
    static constexpr bool kDeliversAllRows = false, kDeliversStretches = false, kKeepsRows = false;
    const bf16* input;
    int64_t features;
    DownRows rows;
    bool is_stored = true;

    DEVICE void part(Vec16 (&x)[1][4], const DownRange& range, int64_t stretch, int part) const {
        const int64_t column = stretch + part * 32 + (lane_id() & 3) * 8;
        UNROLL for (int i = 0; i < 4; i++) {
            const int at = rows.at(i);
            x[0][i] = zero16();
            if (column < features && at >= range.start && at < range.end) {
                x[0][i] = load16_constant(input + at * features + column);
            }
        }
    }
};

// Sums over the four rows of this lane from the sums of its columns, in the order of RowTeam::sum; `of_quads` is [8 *
// 32].
DEVICE void sums_of_rows(float (&sum)[4], float* of_quads) {
    const int warp = threadIdx.x / 32, lane = lane_id();
    UNROLL for (int i = 0; i < 4; i++) {
        const float of_quad = quad_sum(sum[i]);
        if ((lane & 3) == 0) of_quads[warp * 32 + i * 8 + (lane >> 2)] = of_quad;
    }
    __syncthreads();
    UNROLL for (int i = 0; i < 4; i++) {
        const float* const s = of_quads + i * 8 + (lane >> 2);
        sum[i] = ((s[0] + s[32]) + (s[64] + s[96])) + ((s[128] + s[160]) + (s[192] + s[224]));
    }
}
