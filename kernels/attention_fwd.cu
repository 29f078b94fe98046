// o = softmax(scale * q k^T) v and lse = log(sum of exponentials) over packed rows; a block computes one tile
// of 64 queries of one head.
//
// Four warps have 16 queries each; their part of q stays in registers, so shared memory holds one tile of 64
// keys and one of 64 values: 32 KB for heads of 128. The values are loaded while scores are computed, and the
// next keys while the values are used, with two barriers per tile. On GeForce RTX 30 (sm_86) an mma with f32
// sums holds its tensor core for 32 cycles: a tile of 16 x 64 scores of heads of 128 is 128 of them, 4,096
// cycles, against 700 other instructions of the warp. Two blocks on a multiprocessor, two warps on every
// scheduler, hide these behind each other's mma (three would need 168 registers, which spills); reads of
// shared memory take 31 % of its bandwidth, and 64 operations a byte of k and v take 0.9 TB/s from the L2
// cache at 59.5 TFLOP/s. 64 rows and not 128, because samples have 200 to 1,000 rows: 300 rows are 5 tiles of
// 64, with warps without a query idle, or 3 of 128.
//
// The overhead is masked scores. Samples of 512 rows have 36 tiles where 32.1 are needed (89 %), so every
// warp skips the parts of 16 keys that none of its queries sees: 33 remain (97 %; with 300 rows 93 %),
// provided that the warps of another block fill the time.
//
// Scores and statistics are f32, exponentials are 2^x with scale * log2(e) folded into the argument; probabilities are
// rounded to bf16 for the second product, o once. Source of the recurrence: Dao et al., "FlashAttention", 2022.
#include "common/simt.cuh"
#include "attention.cuh"

// Parameters of attention_fwd_*.
struct AttentionFwdParams {
    const bf16* q;             // [query_rows, at least num_heads * head_dim]
    const bf16* k;             // [key_rows, at least num_kv_heads * head_dim]
    const bf16* v;             // [key_rows, at least num_kv_heads * head_dim]
    bf16* o;                   // [query_rows, num_heads * head_dim], overwritten
    float* lse;                // [query_rows, num_heads], overwritten
    AttentionQueries queries;  // who sees whom
    int32_t num_heads;         // query heads
    int32_t group;             // query heads that share a key head
    float scale_log2;          // softmax_scale * log2(e)
    int32_t q_stride;          // elements from a row of q to the next
    int32_t k_stride;          // of k
    int32_t v_stride;          // of v
};

template <int kDim, bool kWindow>
DEVICE void attention_fwd(const AttentionFwdParams& p) {
    constexpr int kKeys = 64, kThreads = 128, kSlices = HeadTile<kDim>::kColumns / 16, kParts = kKeys / 16;
    // Below every scaled score, and with a power of 2 that is 0.
    constexpr float kLn2 = 0.693147180559945309f, kNothingSeen = -3.0e38f;
    DYNAMIC_SMEM(smem);
    unsigned char* const k_tile = smem;
    unsigned char* const v_tile = smem + kKeys * HeadTile<kDim>::kRowBytes;

    const int tile_idx = static_cast<int>(blockIdx.x) / p.num_heads, head = static_cast<int>(blockIdx.x) % p.num_heads;
    if (tile_idx >= *p.queries.num_tiles) return;
    const AttentionTile& tile = p.queries.tiles[tile_idx];
    const int row_start = tile.row_start, row_end = tile.row_end;
    KeyWalk<kKeys, kWindow> walk{p.queries.ranges, 0, 0, 0, 0, 0, 0};
    walk.start(tile);

    const int64_t o_stride = static_cast<int64_t>(p.num_heads) * kDim;
    const int kv_head = head / p.group * kDim;
    const int lane = lane_id(), group = lane >> 2, quad = lane & 3;
    const int first = query_rows_of_warp();
    const bool is_active = row_start + first < row_end;

    load_head_rows<kAttentionRows, kDim, kThreads>(v_tile, p.q + head * kDim, p.q_stride, row_start, row_end);
    cp_async_commit();
    load_head_rows<kKeys, kDim, kThreads>(k_tile, p.k + kv_head, p.k_stride, walk.key, walk.key_end);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    uint32_t q[kSlices][1][4];
    UNROLL for (int slice = 0; slice < kSlices; slice++) load_a_rows<kDim>(q[slice][0], v_tile, first, slice);
    const int32_t* const packed = p.queries.packed_rows + tile_idx * static_cast<int64_t>(kAttentionRows) + first;
    // The last query of the warp, which sees the latest keys, and the first one.
    const int packed_last = is_active ? packed[min(16, row_end - row_start - first) - 1] : 0;
    const int packed_first = kWindow ? packed[0] : 0;

    HeadRows<kDim> o;
    float max_low = -INFINITY, max_high = -INFINITY, sum_low = 0, sum_high = 0;
    NO_UNROLL while (true) {
        // The keys have arrived, and no warp reads v_tile any more.
        cp_async_wait<0>();
        __syncthreads();
        load_head_rows<kKeys, kDim, kThreads>(v_tile, p.v + kv_head, p.v_stride, walk.key, walk.key_end);
        cp_async_commit();
        float s[kParts][1][2][4] = {};
        const int seen = is_active ? walk.visible(packed_last) : 0, hidden = walk.hidden(packed_first);
        if (seen > 0) {
            UNROLL for (int part = 0; part < kParts; part++) {
                if (part * 16 >= seen) break;
                if (kWindow && (part + 1) * 16 <= hidden) continue;
                UNROLL for (int slice = 0; slice < kSlices; slice++) {
                    uint32_t b[2][2];
                    load_b_rows<kDim>(b, k_tile, part * 16, slice);
                    mma_tile(s[part], q[slice], b);
                }
            }
            if (walk.is_masked()) {
                const int seen_low = walk.visible(packed[group]), seen_high = walk.visible(packed[group + 8]);
                UNROLL for (int n = 0; n < 2 * kParts; n++) {
                    UNROLL for (int i = 0; i < 2; i++) {
                        const int column = n * 8 + quad * 2 + i;
                        if (column >= seen_low) s[n / 2][0][n % 2][i] = -INFINITY;
                        if (column >= seen_high) s[n / 2][0][n % 2][i + 2] = -INFINITY;
                        if (kWindow && column < walk.hidden(packed[group])) s[n / 2][0][n % 2][i] = -INFINITY;
                        if (kWindow && column < walk.hidden(packed[group + 8])) s[n / 2][0][n % 2][i + 2] = -INFINITY;
                    }
                }
            }
        }
        // The values have arrived, and no warp reads k_tile any more.
        cp_async_wait<0>();
        __syncthreads();
        walk.next();
        const bool is_last = walk.is_done();
        if (!is_last) {
            load_head_rows<kKeys, kDim, kThreads>(k_tile, p.k + kv_head, p.k_stride, walk.key, walk.key_end);
        }
        cp_async_commit();
        if (seen > 0) {
            float low = s[0][0][0][0], high = s[0][0][0][2];
            UNROLL for (int n = 0; n < 2 * kParts; n++) {
                const float(&x)[4] = s[n / 2][0][n % 2];
                low = fmaxf(low, fmaxf(x[0], x[1]));
                high = fmaxf(high, fmaxf(x[2], x[3]));
            }
            // Without a window the first tile has a key for every query, so these are finite from then on.
            low = fmaxf(max_low, quad_max(low) * p.scale_log2);
            high = fmaxf(max_high, quad_max(high) * p.scale_log2);
            if constexpr (kWindow) {
                // Nothing seen yet: probabilities are 0, whatever they are measured by.
                if (low == -INFINITY) low = kNothingSeen;
                if (high == -INFINITY) high = kNothingSeen;
            }
            const float shrink_low = fast_exp2(max_low - low), shrink_high = fast_exp2(max_high - high);
            max_low = low, max_high = high;
            sum_low *= shrink_low, sum_high *= shrink_high;
            o.scale(shrink_low, shrink_high);
            uint32_t probabilities[kParts][1][4];
            UNROLL for (int n = 0; n < 2 * kParts; n++) {
                float(&x)[4] = s[n / 2][0][n % 2];
                x[0] = fast_exp2(fmaf(x[0], p.scale_log2, -low)), x[1] = fast_exp2(fmaf(x[1], p.scale_log2, -low));
                x[2] = fast_exp2(fmaf(x[2], p.scale_log2, -high)), x[3] = fast_exp2(fmaf(x[3], p.scale_log2, -high));
                sum_low += x[0] + x[1], sum_high += x[2] + x[3];
                probabilities[n / 2][0][n % 2 * 2] = pack_bf16(x[0], x[1]);
                probabilities[n / 2][0][n % 2 * 2 + 1] = pack_bf16(x[2], x[3]);
            }
            UNROLL for (int part = 0; part < kParts; part++) {
                if (part * 16 >= seen) break;
                if (kWindow && (part + 1) * 16 <= hidden) continue;
                o.add(probabilities[part], v_tile, part * 16);
            }
        }
        if (is_last) break;
    }

    // Every warp has its own rows, from here to the end.
    if (!is_active) return;
    sum_low = quad_sum(sum_low), sum_high = quad_sum(sum_high);
    o.scale(1.0f / sum_low, 1.0f / sum_high);
    o.to_tile(k_tile, first);
    __syncwarp();
    store_head_rows<16, kDim, 32>(p.o + head * kDim, o_stride, row_start + first, row_end, k_tile, first, lane);
    if (quad == 0) {
        float* const lse = p.lse + (row_start + first + group) * static_cast<int64_t>(p.num_heads) + head;
        if (row_start + first + group < row_end) lse[0] = fmaf(max_low, kLn2, logf(sum_low));
        if (row_start + first + group + 8 < row_end) {
            lse[8 * static_cast<int64_t>(p.num_heads)] = fmaf(max_high, kLn2, logf(sum_high));
        }
    }
}

KERNEL(attention_fwd_bf16_d16, AttentionFwdParams, 128, 3) { attention_fwd<16, false>(p); }

KERNEL(attention_fwd_bf16_d32, AttentionFwdParams, 128, 3) { attention_fwd<32, false>(p); }

KERNEL(attention_fwd_bf16_d64, AttentionFwdParams, 128, 4) { attention_fwd<64, false>(p); }

KERNEL(attention_fwd_bf16_d128, AttentionFwdParams, 128, 2) { attention_fwd<128, false>(p); }

KERNEL(attention_fwd_bf16_d16_window, AttentionFwdParams, 128, 3) { attention_fwd<16, true>(p); }

KERNEL(attention_fwd_bf16_d32_window, AttentionFwdParams, 128, 3) { attention_fwd<32, true>(p); }

KERNEL(attention_fwd_bf16_d64_window, AttentionFwdParams, 128, 3) { attention_fwd<64, true>(p); }

KERNEL(attention_fwd_bf16_d128_window, AttentionFwdParams, 128, 2) { attention_fwd<128, true>(p); }

KERNEL(attention_fwd_bf16_d48, AttentionFwdParams, 128, 3) { attention_fwd<48, false>(p); }

KERNEL(attention_fwd_bf16_d72, AttentionFwdParams, 128, 3) { attention_fwd<72, false>(p); }

KERNEL(attention_fwd_bf16_d80, AttentionFwdParams, 128, 3) { attention_fwd<80, false>(p); }

KERNEL(attention_fwd_bf16_d96, AttentionFwdParams, 128, 2) { attention_fwd<96, false>(p); }

KERNEL(attention_fwd_bf16_d112, AttentionFwdParams, 128, 2) { attention_fwd<112, false>(p); }

KERNEL(attention_fwd_bf16_d48_window, AttentionFwdParams, 128, 3) { attention_fwd<48, true>(p); }

KERNEL(attention_fwd_bf16_d72_window, AttentionFwdParams, 128, 3) { attention_fwd<72, true>(p); }

KERNEL(attention_fwd_bf16_d80_window, AttentionFwdParams, 128, 3) { attention_fwd<80, true>(p); }

KERNEL(attention_fwd_bf16_d96_window, AttentionFwdParams, 128, 2) { attention_fwd<96, true>(p); }

KERNEL(attention_fwd_bf16_d112_window, AttentionFwdParams, 128, 2) { attention_fwd<112, true>(p); }
