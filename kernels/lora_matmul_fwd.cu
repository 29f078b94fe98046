// y = x W^T + bias + xa B^T for up to three layers that share their input (q, k, v; gate, up), in one launch.
//
// xa = scaling * dropout(x) A^T comes from lora_matmul_down. The adapter is an extension of k: y = [xa | x] [B | W]^T, so it costs
// ceil(r / 16) more k-slices and not one more byte of y. Rows of several adapters: the extension is run once for every adapter
// that has rows in the tile, with the rows of the others as 0; it comes first, so the long loop over x and W has no branch.
// x, xa, W, B, bias and y are bf16, sums are f32, and y is rounded once. Shared memory: a ring of kStages tiles of A and B (3 stages
// of 16 KB for 128 x 128), reused for the result. Source of the tiling: the layout of mma.sync in the PTX ISA, ring of cp.async
// stages as in CUTLASS; LoRA as Hu et al., 2021.
#include "common/gemm_tile.cuh"
#include "lora_matmul.cuh"

// One layer of the launch.
struct LoraFwdLayer {
    const bf16* weight;         // [out_features, in_features]
    const bf16* bias;           // [out_features], or null
    bf16* y;                    // [rows, out_features], overwritten
    const bf16* xa;             // [rows, xa_stride], the columns of this layer
    const LoraFactor* factors;  // B transposed, by adapter; null if the layer has no adapter
    int32_t out_features;       // columns of y
    int32_t first_tile;         // tile columns of the layers before
};

// Parameters of lora_matmul_fwd_*.
struct LoraMatmulFwdParams {
    const bf16* x;               // [rows, in_features]
    LoraFwdLayer layers[3];      // num_layers of them
    const LoraRun* runs;         // [*num_runs]
    const int32_t* num_runs;     // entries of runs; null without adapters
    const int32_t* live_rows;    // rows there are; null: all
    int32_t num_layers;          // 1 to 3
    int32_t rows;                // capacity of x, in rows
    int32_t in_features;         // columns of x
    int32_t xa_stride;           // columns of xa over all layers
    int32_t tiles_m;             // tile rows
    int32_t tiles_n;             // tile columns over all layers
    int32_t group;               // tile columns that are walked together
    int32_t reserved;            // 0
};

// Walks the extension of a tile: every run with rows in it, 32 ranks at a time.
struct FwdExtension {
    int num_runs;
    int run = 0;
    int rank = 0;

    // Moves to the next place with work, which may be the current one; false at the end.
    DEVICE bool settle(const LoraMatmulFwdParams& p, const LoraFwdLayer& layer, int row_start, int row_end) {
        for (; run < num_runs; run++, rank = 0) {
            const LoraRun& r = p.runs[run];
            if (r.row_start < row_end && r.row_end > row_start && r.row_start < r.row_end &&
                rank < layer.factors[r.adapter].r) {
                return true;
            }
        }
        return false;
    }
};

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages>
DEVICE void lora_matmul_fwd(const LoraMatmulFwdParams& p) {
    using Tile = WarpTile<kM, kN, kWarpsM, kWarpsN>;
    constexpr int kBytesA = Tile::kBytesA;
    DYNAMIC_SMEM(smem);

    const TilePlace place = tile_place(blockIdx.x, p.tiles_m, p.tiles_n, p.group);
    int number = 0;
    while (number + 1 < p.num_layers && place.n >= p.layers[number + 1].first_tile) number++;
    const LoraFwdLayer& layer = p.layers[number];
    const int rows = rows_there_are(p.live_rows, p.rows);
    const int row = place.m * kM, row_end = row + kM < rows ? row + kM : rows;
    if (row >= rows) return;
    const int column = (place.n - layer.first_tile) * kN;

    float acc[Tile::kMmaM][Tile::kMmaN][4] = {};

    RowsLoader<kM, Tile::kThreads> load_x;
    RowsLoader<kN, Tile::kThreads> load_w;
    load_x.start(p.x, p.in_features, row, row, row_end);
    load_w.start(layer.weight, p.in_features, column, 0, layer.out_features);

    // Issues run ahead of the arithmetic by kStages - 1 tiles: first those of the extension, then k.
    const int num_runs = p.num_runs == nullptr ? 0 : *p.num_runs;
    FwdExtension ahead = {num_runs}, here = {num_runs};
    bool extending = layer.factors != nullptr && ahead.settle(p, layer, row, row_end);
    int left = p.in_features;
    StageRing<kStages, Tile::kStageBytes> ring = {smem};
    const auto issue_main = [&] {
        unsigned char* stage = ring.fill();
        if (left > 0) {
            load_x.load(stage, left);
            load_w.load(stage + kBytesA, left);
            left -= kStepK;
        }
        cp_async_commit();
    };
    const auto issue = [&] {
        if (extending) {
            unsigned char* stage = ring.fill();
            const LoraRun& run = p.runs[ahead.run];
            const LoraFactor& factor = layer.factors[run.adapter];
            RowsLoader<kM, Tile::kThreads> load_xa;
            ColumnsLoader<kN, Tile::kThreads> load_b;
            const int64_t above = static_cast<int64_t>(ahead.rank) * layer.out_features;
            load_xa.start(layer.xa + ahead.rank, p.xa_stride, row, run.row_start, run.row_end < row_end ? run.row_end : row_end);
            load_b.start(factor.value + above, layer.out_features, column, layer.out_features);
            // xa has columns up to the next multiple of 16; beyond them lies the next layer, and 32 may reach past the row.
            load_xa.load(stage, ((factor.r + 15) & ~15) - ahead.rank);
            load_b.load(stage + kBytesA, factor.r - ahead.rank);
            ahead.rank += kStepK;
            extending = ahead.settle(p, layer, row, row_end);
            cp_async_commit();
        } else {
            issue_main();
        }
    };

    UNROLL for (int i = 0; i < kStages - 1; i++) issue();
    if (layer.factors != nullptr) {
        while (here.settle(p, layer, row, row_end)) {
            ring.landed();
            issue();
            const unsigned char* stage = ring.use();
            const int ranks = layer.factors[p.runs[here.run].adapter].r - here.rank;
            NO_UNROLL for (int slice = 0; slice < 2 && slice * 16 < ranks; slice++) {
                uint32_t a[Tile::kMmaM][4], b[Tile::kMmaN][2];
                Tile::load_a(a, stage, slice);
                Tile::load_b_columns(b, stage + kBytesA, slice);
                mma_tile(acc, a, b);
            }
            here.rank += kStepK;
        }
    }
    // By now every tile of the extension has been issued.
    NO_UNROLL for (int k = 0; k < p.in_features; k += kStepK) {
        ring.landed();
        issue_main();
        Tile::template multiply<false>(acc, ring.use());
    }
    cp_async_wait<0>();
    Tile::store(acc, smem, layer.y, layer.out_features, row, row_end, column, layer.out_features, layer.bias);
}

KERNEL(lora_matmul_fwd_bf16_128x128, LoraMatmulFwdParams, 256, 2) { lora_matmul_fwd<128, 128, 2, 4, 3>(p); }

KERNEL(lora_matmul_fwd_bf16_128x256, LoraMatmulFwdParams, 256, 1) { lora_matmul_fwd<128, 256, 2, 4, 4>(p); }

KERNEL(lora_matmul_fwd_bf16_64x64, LoraMatmulFwdParams, 128, 4) { lora_matmul_fwd<64, 64, 2, 2, 3>(p); }
