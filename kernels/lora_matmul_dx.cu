// dx = sum over layers of dy W + dropout_mask(dxa A), for up to three layers that share their input, in one launch.
//
// dxa = scaling * dy B comes from lora_matmul_down. The layers follow each other along k: dx =
// [dxa_q | dxa_k | dxa_v | dy_q | dy_k | dy_v] [A_q; A_k; A_v; W_q; W_k; W_v], so the input gradient of q, k and v is written once
// and never read back. As in lora_matmul_fwd the adapters come first, once for every adapter with rows in the tile; with dropout
// their products are masked when they enter the accumulators, before any unmasked term. dy, dxa, W, A and dx are bf16, sums are f32,
// and dx is rounded once. Shared memory: a ring of kStages tiles, reused for the result; with dropout also 16 bytes per row and 128
// columns for the mask of a layer. That leaves space for three stages of 128 x 256: two k-steps ahead are 2,048 cycles of tensor
// cores even on sm_80.
#include "common/gemm_tile.cuh"
#include "lora_matmul.cuh"

// One layer of the launch.
struct LoraDxLayer {
    const bf16* dy;             // [rows, out_features]
    const bf16* weight;         // [out_features, in_features]
    const bf16* dxa;            // [rows, xa_stride], the columns of this layer
    const LoraFactor* factors;  // A, by adapter; null if the layer has no adapter
    const DropoutKey* key;      // of this layer and step; null without dropout
    int64_t out_features;       // columns of dy
};

// Parameters of lora_matmul_dx_*.
struct LoraMatmulDxParams {
    LoraDxLayer layers[3];     // num_layers of them
    bf16* dx;                  // [rows, in_features], overwritten
    const LoraRun* runs;       // [*num_runs]
    const int32_t* num_runs;   // entries of runs; null without adapters
    const int32_t* live_rows;  // rows there are; null: all
    LoraDropout dropout;       // read by the _dropout kernels only
    int32_t num_layers;        // 1 to 3
    int32_t rows;              // capacity of dx, in rows
    int32_t in_features;       // columns of dx
    int32_t xa_stride;         // columns of dxa over all layers
    int32_t tiles_m;           // tile rows
    int32_t tiles_n;           // tile columns
    int32_t group;             // tile columns that are walked together
    int32_t reserved;          // 0
};

// Walks the extension of a tile: every layer, every run with rows in it, 32 ranks at a time.
struct DxExtension {
    int num_runs;
    int layer = 0;
    int run = 0;
    int rank = 0;

    // Moves to the next place with work, which may be the current one; false at the end.
    DEVICE bool settle(const LoraMatmulDxParams& p, int row_start, int row_end) {
        for (; layer < p.num_layers; layer++, run = 0, rank = 0) {
            const LoraFactor* factors = p.layers[layer].factors;
            for (; factors != nullptr && run < num_runs; run++, rank = 0) {
                const LoraRun& r = p.runs[run];
                if (r.row_start < row_end && r.row_end > row_start && r.row_start < r.row_end &&
                    rank < factors[r.adapter].r) {
                    return true;
                }
            }
        }
        return false;
    }
};

// Stretches of kMaskColumns that a tile of kN columns has parts of.
template <int kN>
constexpr int kMaskStretches = (kN + kMaskColumns - 1) / kMaskColumns;

// The dropout mask of kM rows and the columns around `column`. A Philox call covers 8 columns of the tile,
// which belong to several threads: the block makes every call once, a byte each in `calls` (16 * kM of them
// for every stretch of kMaskColumns). Between the reads of one layer's bytes and this for the next layer
// there has to be a barrier.
template <typename Tile, int kM, int kN>
DEVICE void make_calls(const LoraMatmulDxParams& p, DropoutKey key, unsigned char* calls, int row, int rows, int column) {
    const int first_call = column / kMaskColumns * 16;
    NO_UNROLL for (int i = threadIdx.x; i < kM * 16 * kMaskStretches<kN>; i += Tile::kThreads) {
        const int stretch = i / (kM * 16), of_row = i / 16 % kM;
        const int at = row + of_row < rows ? row + of_row : rows - 1;
        const uint32_t* const row_key = p.dropout.row_keys + 2 * static_cast<int64_t>(at);
        calls[i] =
            static_cast<unsigned char>(dropout_kept(key, first_call + stretch * 16 + i % 16, row_key, p.dropout.threshold));
    }
    __syncthreads();
}

// Which of a thread's accumulators acc[m] dropout keeps, of the kCount fragments from `first` on: bit n * 4 + i for acc[m][first + n][i].
template <typename Tile, int kM, int kCount>
DEVICE uint32_t kept_accumulators(const unsigned char* calls, int column, int m, int first) {
    static_assert(kCount * 4 <= 32, "a bit for every accumulator");
    static_assert(kMaskColumns % (Tile::kMmaN * 8) == 0, "the columns of a warp lie in one stretch");
    const int lane = lane_id(), group = lane >> 2, pair = (lane & 3) * 2;
    // Of a row, a thread has two columns of every n: one call for even and one for odd n each.
    const int of_warp = column % kMaskColumns + Tile::first_column();
    const int stretch = of_warp / kMaskColumns, warp_bit = of_warp % kMaskColumns / 16;
    uint32_t kept = 0;
    UNROLL for (int half = 0; half < 2; half++) {
        UNROLL for (int odd = 0; odd < 2; odd++) {
            const int at = (stretch * kM + Tile::first_row() + m * 16 + half * 8 + group) * 16 + odd * 8 + pair;
            const uint32_t both = *reinterpret_cast<const uint16_t*>(calls + at);
            UNROLL for (int n = 0; n < kCount; n += 2) {
                const uint32_t low = both >> (warp_bit + (first + n) / 2), high = low >> 8;
                kept |= ((low & 1u) | (high & 1u) << 1) << ((n + odd) * 4 + half * 2);
            }
        }
    }
    return kept;
}

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages, bool kDropout>
DEVICE void lora_matmul_dx(const LoraMatmulDxParams& p) {
    using Tile = WarpTile<kM, kN, kWarpsM, kWarpsN>;
    constexpr int kBytesA = Tile::kBytesA;
    DYNAMIC_SMEM(smem);

    const TilePlace place = tile_place(blockIdx.x, p.tiles_m, p.tiles_n, p.group);
    const int rows = rows_there_are(p.live_rows, p.rows);
    const int row = place.m * kM, row_end = row + kM < rows ? row + kM : rows;
    if (row >= rows) return;
    const int column = place.n * kN;

    float acc[Tile::kMmaM][Tile::kMmaN][4] = {};

    RowsLoader<kM, Tile::kThreads> load_dy;
    ColumnsLoader<kN, Tile::kThreads> load_w;
    int layer_ahead = 0, left = 0;
    const auto start_layer = [&] {
        const LoraDxLayer& layer = p.layers[layer_ahead];
        left = static_cast<int>(layer.out_features);
        load_dy.start(layer.dy, layer.out_features, row, row, row_end);
        load_w.start(layer.weight, p.in_features, column, p.in_features);
    };
    start_layer();

    // Issues run ahead of the arithmetic by kStages - 1 tiles: first those of the extension, then k of every layer.
    const int num_runs = p.num_runs == nullptr ? 0 : *p.num_runs;
    DxExtension ahead = {num_runs}, here = {num_runs};
    bool extending = ahead.settle(p, row, row_end);
    StageRing<kStages, Tile::kStageBytes> ring = {smem};
    const auto issue_main = [&] {
        unsigned char* stage = ring.fill();
        if (left > 0) {
            load_dy.load(stage, left);
            load_w.load(stage + kBytesA, left);
            left -= kStepK;
            if (left <= 0 && ++layer_ahead < p.num_layers) start_layer();
        }
        cp_async_commit();
    };
    const auto issue = [&] {
        if (extending) {
            unsigned char* stage = ring.fill();
            const LoraRun& run = p.runs[ahead.run];
            const LoraDxLayer& layer = p.layers[ahead.layer];
            const LoraFactor& factor = layer.factors[run.adapter];
            RowsLoader<kM, Tile::kThreads> load_dxa;
            ColumnsLoader<kN, Tile::kThreads> load_a;
            const int64_t above = static_cast<int64_t>(ahead.rank) * p.in_features;
            load_dxa.start(layer.dxa + ahead.rank, p.xa_stride, row, run.row_start, run.row_end < row_end ? run.row_end : row_end);
            load_a.start(factor.value + above, p.in_features, column, p.in_features);
            load_dxa.load(stage, ((factor.r + 15) & ~15) - ahead.rank);
            load_a.load(stage + kBytesA, factor.r - ahead.rank);
            ahead.rank += kStepK;
            extending = ahead.settle(p, row, row_end);
            cp_async_commit();
        } else {
            issue_main();
        }
    };

    UNROLL for (int i = 0; i < kStages - 1; i++) issue();
    while (here.settle(p, row, row_end)) {
        ring.landed();
        issue();
        const unsigned char* stage = ring.use();
        const LoraDxLayer& layer = p.layers[here.layer];
        const int ranks = layer.factors[p.runs[here.run].adapter].r - here.rank;
        unsigned char* const calls = smem + kStages * Tile::kStageBytes;
        if constexpr (kDropout) {
            // The first ranks of an adapter in a layer.
            if (here.rank == 0) make_calls<Tile, kM, kN>(p, *layer.key, calls, row, rows, column);
        }
        NO_UNROLL for (int slice = 0; slice < 2 && slice * 16 < ranks; slice++) {
            uint32_t a[Tile::kMmaM][4], b[Tile::kMmaN][2];
            Tile::load_a(a, stage, slice);
            Tile::load_b_columns(b, stage + kBytesA, slice);
            if constexpr (kDropout) {
                // A few fragments of a row at a time, since all of them do not fit into the registers.
                constexpr int kPart = kN > 128 ? 2 : Tile::kMmaN;
                UNROLL for (int m = 0; m < Tile::kMmaM; m++) {
                    const uint32_t row_of_a[1][4] = {{a[m][0], a[m][1], a[m][2], a[m][3]}};
                    UNROLL for (int first = 0; first < Tile::kMmaN; first += kPart) {
                        uint32_t of_b[kPart][2];
                        UNROLL for (int n = 0; n < kPart; n++) of_b[n][0] = b[first + n][0], of_b[n][1] = b[first + n][1];
                        float part[1][kPart][4] = {};
                        mma_tile(part, row_of_a, of_b);
                        const uint32_t kept = kept_accumulators<Tile, kM, kPart>(calls, column, m, first);
                        UNROLL for (int n = 0; n < kPart; n++) {
                            UNROLL for (int i = 0; i < 4; i++) {
                                const float factor = (kept >> (n * 4 + i)) & 1 ? p.dropout.keep : 0.0f;
                                acc[m][first + n][i] = fmaf(part[0][n][i], factor, acc[m][first + n][i]);
                            }
                        }
                    }
                }
            } else {
                mma_tile(acc, a, b);
            }
        }
        here.rank += kStepK;
    }
    // By now every tile of the extension has been issued.
    NO_UNROLL for (int number = 0; number < p.num_layers; number++) {
        const int end = static_cast<int>(p.layers[number].out_features);
        NO_UNROLL for (int k = 0; k < end; k += kStepK) {
            ring.landed();
            issue_main();
            Tile::template multiply<true>(acc, ring.use());
        }
    }
    cp_async_wait<0>();
    Tile::store(acc, smem, p.dx, p.in_features, row, row_end, column, p.in_features, nullptr);
}

KERNEL(lora_matmul_dx_bf16_128x128, LoraMatmulDxParams, 256, 2) { lora_matmul_dx<128, 128, 2, 4, 3, false>(p); }

KERNEL(lora_matmul_dx_bf16_128x128_dropout, LoraMatmulDxParams, 512, 1) { lora_matmul_dx<128, 128, 4, 4, 3, true>(p); }

KERNEL(lora_matmul_dx_bf16_128x256, LoraMatmulDxParams, 256, 1) { lora_matmul_dx<128, 256, 2, 4, 4, false>(p); }

KERNEL(lora_matmul_dx_bf16_128x256_dropout, LoraMatmulDxParams, 256, 1) { lora_matmul_dx<128, 256, 2, 4, 3, true>(p); }

KERNEL(lora_matmul_dx_bf16_64x64, LoraMatmulDxParams, 128, 4) { lora_matmul_dx<64, 64, 2, 2, 3, false>(p); }

KERNEL(lora_matmul_dx_bf16_64x64_dropout, LoraMatmulDxParams, 128, 3) { lora_matmul_dx<64, 64, 2, 2, 3, true>(p); }
