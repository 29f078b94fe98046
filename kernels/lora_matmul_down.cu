// out = scaling * dropout(in) factor^T: the down-projections of LoRA, for up to three layers in one launch.
//
// With the input x and the factor A this is xa, with dy and B (transposed) it is dxa (without dropout, which
// applies to x only): in is [rows, features], the factor [r, features], out [rows, r]. The algorithm is
// described in lora_down.cuh. `in` is read once from DRAM (the layers of a launch and the rank chunks of 64
// are neighbours in the grid and share the L2 cache), and rows / 32 blocks fill 68 SMs at 2,176 rows. Numbers
// are bf16, sums f32, out is rounded once; its columns from r up to rank_stride are 0, and so are rows
// without adapter. Shared memory: static, 4 warps' sums. These kernels are for inputs in memory; for inputs
// that another kernel produces, the product is fused into that kernel (the _lora kernels of rms_norm, swiglu
// and qk_norm_rope).
#include "common/simt.cuh"
#include "lora_down.cuh"

// Parameters of lora_matmul_down_*.
struct LoraMatmulDownParams {
    LoraDownLayer layers[3];   // as many as the grid has
    const LoraRun* runs;       // [*num_runs]
    const int32_t* num_runs;   // entries of runs
    const int32_t* live_rows;  // rows there are; null: all
    LoraDropout dropout;       // read by the _dropout kernels only
    int32_t rows;              // capacity of input and output, in rows
    int32_t stride;            // columns of output over all layers
    int32_t rank_stride;       // columns of output of one layer: the largest rank, rounded up to 16
    int32_t rank_chunks;       // blocks along the rank of a layer
};

template <int kRank, bool kDropout>
DEVICE void lora_matmul_down(const LoraMatmulDownParams& p) {
    constexpr int kGroups = kRank / 16;
    STATIC_SMEM(float, sums, kDownSumsBytes<kGroups> / 4);
    const LoraDownLayer* const layer = &p.layers[blockIdx.x / p.rank_chunks];
    const int first_rank = static_cast<int>(blockIdx.x % p.rank_chunks) * kRank;
    const DownRows rows(static_cast<int>(blockIdx.y), rows_there_are(p.live_rows, p.rows));
    if (rows.first >= rows.end) return;
    StoredRows source{layer->input, layer->features, rows};
    const DownColumns columns{layer, first_rank, p.rank_stride, p.rank_stride};
    down_runs<kGroups, 1, kDropout>(columns, p.runs, *p.num_runs, p.dropout, rows, layer->features, p.stride, source, sums);
}

KERNEL(lora_matmul_down_bf16_r16, LoraMatmulDownParams, 256, 2) { lora_matmul_down<16, false>(p); }

KERNEL(lora_matmul_down_bf16_r32, LoraMatmulDownParams, 256, 1) { lora_matmul_down<32, false>(p); }

KERNEL(lora_matmul_down_bf16_r64, LoraMatmulDownParams, 256, 1) { lora_matmul_down<64, false>(p); }

KERNEL(lora_matmul_down_bf16_r16_dropout, LoraMatmulDownParams, 256, 2) { lora_matmul_down<16, true>(p); }

KERNEL(lora_matmul_down_bf16_r32_dropout, LoraMatmulDownParams, 256, 1) { lora_matmul_down<32, true>(p); }

KERNEL(lora_matmul_down_bf16_r64_dropout, LoraMatmulDownParams, 256, 1) { lora_matmul_down<64, true>(p); }
