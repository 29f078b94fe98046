// Gradients of attention: dq in one kernel, dk and dv in another, without atomics, so every sum has one order.
//
// With P = exp(scale * q k^T - lse), dP = dO v^T and D = rowsum(dO * O): dS = P * (dP - D), dq = scale * dS
// k, dk = scale * dS^T q, dv = P^T dO. Both kernels compute P and dP: seven products instead of the five of a
// single kernel that adds dq with atomics or in a second buffer; so results are bit-identical from run to
// run. Source of the recomputation: Dao et al., "FlashAttention", 2022.
//
// attention_bwd_dq: a block has 64 queries of one head, its four warps 16 each, with q and dO in registers
// (64 of them at heads of 128, beside 64 sums); keys and values come 32 at a time through a ring of two
// stages, 32 KB, so that two blocks fit. It writes (lse * log2(e), D) of its queries for the other kernel, by
// tile and head, 64 pairs each: missing rows of a tile get an infinite lse, which makes their P 0 without a
// mask.
//
// attention_bwd_dkv: a block has 64 keys of one key head, which it keeps in shared memory, and takes 64 queries at a
// time, over all tiles that see the keys and all query heads of the group: dk and dv are summed in registers, nothing
// is expanded to query heads. The products are transposed (S^T = k q^T), so that P^T and dS^T are A fragments as they
// are and never pass through shared memory. Eight warps: four times 16 keys, for the first and the last 32 queries; the
// two halves are added at the end, in that order. At heads of 128 a lane has 128 sums and a block 97 KB (k and v, two
// stages of q, dO and statistics): one block on a multiprocessor of sm_86, two warps on every scheduler. A step is 4
// products, 128 mma a warp, 8,192 cycles of a tensor core for two warps at 32 cycles each; 384 KB from shared memory
// take 3,072 (39 % with the copies), and 128 operations a byte of q and dO take 0.5 TB/s from L2. Key rows that no query
// sees get zeros. P and dS are rounded to bf16 for their products.
//
// Both skip parts of 16 queries and 16 keys that are missing or masked for a whole warp. The schedulers of
// attention_bwd_dkv then have three quarters of a diagonal tile at most; samples of 512 rows are 34 tiles
// where 32.1 are needed (94 %). With seven products for five the limit of both kernels is 5 / (3 / 0.97 + 4 /
// 0.94) = 68 % of the tensor cores' rate, 40 TFLOP/s on an RTX 3080.
#include "common/simt.cuh"
#include "attention.cuh"

// Parameters of attention_bwd_dq_*.
struct AttentionBwdDqParams {
    const bf16* q;             // [query_rows, at least num_heads * head_dim]
    const bf16* k;             // [key_rows, at least num_kv_heads * head_dim]
    const bf16* v;             // [key_rows, at least num_kv_heads * head_dim]
    const bf16* o;             // [query_rows, num_heads * head_dim]
    const bf16* d_o;           // [query_rows, num_heads * head_dim]
    const float* lse;          // [query_rows, num_heads]
    float* stats;              // [num_tiles, num_heads, 64, 2] lse * log2(e) and D, overwritten
    bf16* dq;                  // [query_rows, at least num_heads * head_dim], overwritten
    AttentionQueries queries;  // who sees whom
    int32_t num_heads;         // query heads
    int32_t group;             // query heads that share a key head
    float scale;               // softmax_scale
    float scale_log2;          // softmax_scale * log2(e)
    int32_t q_stride;          // elements from a row of q to the next
    int32_t k_stride;          // of k
    int32_t v_stride;          // of v
    int32_t dq_stride;         // of dq
};

// Parameters of attention_bwd_dkv_*.
struct AttentionBwdDkvParams {
    const bf16* q;                   // [query_rows, at least num_heads * head_dim]
    const bf16* k;                   // [key_rows, at least num_kv_heads * head_dim]
    const bf16* v;                   // [key_rows, at least num_kv_heads * head_dim]
    const bf16* d_o;                 // [query_rows, num_heads * head_dim]
    const float* stats;              // as attention_bwd_dq_* wrote them
    bf16* dk;                        // [key_rows, at least num_kv_heads * head_dim], overwritten
    bf16* dv;                        // [key_rows, at least num_kv_heads * head_dim], overwritten
    AttentionQueries queries;        // ranges are not used
    const AttentionKeyTile* tiles;   // [num_key_tiles], which cover all key rows
    const int32_t* num_key_tiles;    // number of tiles
    const int32_t* visits;           // 2 * query tile, plus 1 where some query does not see all keys
    int32_t num_heads;               // query heads
    int32_t group;                   // query heads that share a key head
    float scale;                     // softmax_scale
    float scale_log2;                // softmax_scale * log2(e)
    int32_t q_stride;                // elements from a row of q to the next
    int32_t k_stride;                // of k
    int32_t v_stride;                // of v
    int32_t dk_stride;               // of dk, and of dv
    int32_t reach;                   // of a window; 0 without
    int32_t reserved;                // 0
};


// An A fragment of 16 columns, from accumulators.
DEVICE void to_a(uint32_t (&a)[1][4], const float (&acc)[1][2][4]) {
    UNROLL for (int n = 0; n < 2; n++) {
        a[0][n * 2] = pack_bf16(acc[0][n][0], acc[0][n][1]);
        a[0][n * 2 + 1] = pack_bf16(acc[0][n][2], acc[0][n][3]);
    }
}

template <int kDim, bool kWindow>
DEVICE void attention_bwd_dq(const AttentionBwdDqParams& p) {
    constexpr int kKeys = 32, kThreads = 128, kSlices = HeadTile<kDim>::kColumns / 16;
    constexpr int kTileBytes = kKeys * HeadTile<kDim>::kRowBytes, kStageBytes = 2 * kTileBytes;
    DYNAMIC_SMEM(smem);

    const int tile_idx = static_cast<int>(blockIdx.x) / p.num_heads, head = static_cast<int>(blockIdx.x) % p.num_heads;
    if (tile_idx >= *p.queries.num_tiles) return;
    const AttentionTile& tile = p.queries.tiles[tile_idx];
    const int row_start = tile.row_start, row_end = tile.row_end;
    KeyWalk<kKeys, kWindow> walk{p.queries.ranges, 0, 0, 0, 0, 0, 0};
    walk.start(tile);

    const int64_t o_stride = static_cast<int64_t>(p.num_heads) * kDim;
    const bf16* const k = p.k + head / p.group * kDim;
    const bf16* const v = p.v + head / p.group * kDim;
    const int lane = lane_id(), group = lane >> 2, quad = lane & 3;
    const int first = query_rows_of_warp(), row = row_start + first + group;
    const bool is_active = row_start + first < row_end;

    // A stage holds 64 rows of one tensor.
    static_assert(kStageBytes == kAttentionRows * HeadTile<kDim>::kRowBytes, "the rows of q, o and dO pass through the ring");
    load_head_rows<kAttentionRows, kDim, kThreads>(smem, p.o + head * kDim, o_stride, row_start, row_end);
    unsigned char* const second = smem + kStageBytes;
    load_head_rows<kAttentionRows, kDim, kThreads>(second, p.d_o + head * kDim, o_stride, row_start, row_end);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t q[kSlices][1][4], d_o[kSlices][1][4];
    float d_low = 0, d_high = 0;
    UNROLL for (int slice = 0; slice < kSlices; slice++) {
        uint32_t o[4];
        load_a_rows<kDim>(o, smem, first, slice);
        load_a_rows<kDim>(d_o[slice][0], second, first, slice);
        UNROLL for (int i = 0; i < 4; i += 2) {
            const uint32_t(&g)[4] = d_o[slice][0];
            d_low = fmaf(low_bf16(o[i]), low_bf16(g[i]), d_low);
            d_low = fmaf(high_bf16(o[i]), high_bf16(g[i]), d_low);
            d_high = fmaf(low_bf16(o[i + 1]), low_bf16(g[i + 1]), d_high);
            d_high = fmaf(high_bf16(o[i + 1]), high_bf16(g[i + 1]), d_high);
        }
    }
    d_low = quad_sum(d_low), d_high = quad_sum(d_high);
    const float* const lse = p.lse + row * static_cast<int64_t>(p.num_heads) + head;
    const float lse_low = row < row_end ? kLog2E * lse[0] : INFINITY;
    const float lse_high = row + 8 < row_end ? kLog2E * lse[8 * static_cast<int64_t>(p.num_heads)] : INFINITY;
    if (quad == 0) {
        float* const stats = p.stats + (static_cast<int64_t>(blockIdx.x) * kAttentionRows + first + group) * 2;
        store8(stats, lse_low, d_low);
        store8(stats + 16, lse_high, d_high);
    }
    const int32_t* const packed = p.queries.packed_rows + tile_idx * static_cast<int64_t>(kAttentionRows) + first;
    const int packed_low = packed[group], packed_high = packed[group + 8];
    // The last query of the warp, which sees the latest keys, and the first one.
    const int packed_last = is_active ? packed[min(16, row_end - row_start - first) - 1] : 0;
    const int packed_first = kWindow ? packed[0] : 0;

    __syncthreads();
    load_head_rows<kAttentionRows, kDim, kThreads>(second, p.q + head * kDim, p.q_stride, row_start, row_end);
    cp_async_commit();
    load_head_rows<kKeys, kDim, kThreads>(smem, k, p.k_stride, walk.key, walk.key_end);
    load_head_rows<kKeys, kDim, kThreads>(smem + kTileBytes, v, p.v_stride, walk.key, walk.key_end);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    UNROLL for (int slice = 0; slice < kSlices; slice++) load_a_rows<kDim>(q[slice][0], second, first, slice);

    HeadRows<kDim> dq;
    int stage = 0;
    NO_UNROLL while (true) {
        // This step's keys and values have arrived, and no warp reads the other stage any more.
        cp_async_wait<0>();
        __syncthreads();
        const unsigned char* const k_tile = smem + stage * kStageBytes;
        const unsigned char* const v_tile = k_tile + kTileBytes;
        stage ^= 1;
        const bool is_masked = walk.is_masked();
        const int seen_low = walk.visible(packed_low), seen_high = walk.visible(packed_high);
        const int seen = is_active ? walk.visible(packed_last) : 0, hidden = walk.hidden(packed_first);
        const int hidden_low = walk.hidden(packed_low), hidden_high = walk.hidden(packed_high);
        walk.next();
        const bool is_last = walk.is_done();
        if (!is_last) {
            unsigned char* const next = smem + stage * kStageBytes;
            load_head_rows<kKeys, kDim, kThreads>(next, k, p.k_stride, walk.key, walk.key_end);
            load_head_rows<kKeys, kDim, kThreads>(next + kTileBytes, v, p.v_stride, walk.key, walk.key_end);
            cp_async_commit();
        }
        UNROLL for (int part = 0; part < kKeys; part += 16) {
            if (part >= seen) break;
            if (kWindow && part + 16 <= hidden) continue;
            float s[1][2][4] = {}, dp[1][2][4] = {};
            UNROLL for (int slice = 0; slice < kSlices; slice++) {
                uint32_t b[2][2];
                load_b_rows<kDim>(b, k_tile, part, slice);
                mma_tile(s, q[slice], b);
                load_b_rows<kDim>(b, v_tile, part, slice);
                mma_tile(dp, d_o[slice], b);
            }
            UNROLL for (int n = 0; n < 2; n++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const float lse2 = i < 2 ? lse_low : lse_high, d = i < 2 ? d_low : d_high;
                    float x = fast_exp2(fmaf(s[0][n][i], p.scale_log2, -lse2));
                    const int column = part + n * 8 + quad * 2 + i % 2;
                    if (is_masked && column >= (i < 2 ? seen_low : seen_high)) x = 0;
                    if (kWindow && column < (i < 2 ? hidden_low : hidden_high)) x = 0;
                    dp[0][n][i] = x * (dp[0][n][i] - d);
                }
            }
            uint32_t ds[1][4];
            to_a(ds, dp);
            dq.add(ds, k_tile, part);
        }
        if (is_last) break;
    }
    if (!is_active) return;

    // The other stage is free. Every warp has its own rows of it.
    unsigned char* const out = smem + stage * kStageBytes;
    dq.scale(p.scale, p.scale);
    dq.to_tile(out, first);
    __syncwarp();
    store_head_rows<16, kDim, 32>(p.dq + head * kDim, p.dq_stride, row_start + first, row_end, out, first, lane);
}

template <int kDim, bool kWindow>
DEVICE void attention_bwd_dkv(const AttentionBwdDkvParams& p) {
    constexpr int kThreads = 256, kSlices = HeadTile<kDim>::kColumns / 16;
    constexpr int kTileBytes = kAttentionRows * HeadTile<kDim>::kRowBytes, kStatsBytes = kAttentionRows * 8;
    constexpr int kStageBytes = 2 * kTileBytes + kStatsBytes;
    DYNAMIC_SMEM(smem);
    unsigned char* const k_tile = smem;
    unsigned char* const v_tile = smem + kTileBytes;
    unsigned char* const ring = smem + 2 * kTileBytes;

    const int kv_heads = p.num_heads / p.group;
    const int tile_idx = static_cast<int>(blockIdx.x) / kv_heads, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
    if (tile_idx >= *p.num_key_tiles) return;
    const AttentionKeyTile& tile = p.tiles[tile_idx];
    const int key_start = tile.key_start, key_end = tile.key_end;
    const int64_t o_stride = static_cast<int64_t>(p.num_heads) * kDim;
    const int lane = lane_id(), group = lane >> 2, quad = lane & 3, warp = static_cast<int>(threadIdx.x) / 32;
    // The two warps of a scheduler have keys from both ends, so that all schedulers skip about the same share
    // of the diagonal.
    const int first = (warp < 4 ? warp : 7 - warp) * 16, half = warp / 4 * 32, key = key_start + first;

    // The next step: query head `member` of the group, of the tile of `visit`.
    int visit = tile.visit_start, member = 0;
    const int visit_end = tile.visit_end;
    const auto load_step = [&](unsigned char* stage) {
        const int query_tile = p.visits[visit] >> 1, head = kv_head * p.group + member;
        const AttentionTile& rows = p.queries.tiles[query_tile];
        const int row_start = rows.row_start, row_end = rows.row_end;
        const bf16 *q = p.q + head * kDim, *d_o = p.d_o + head * kDim;
        load_head_rows<kAttentionRows, kDim, kThreads>(stage, q, p.q_stride, row_start, row_end);
        load_head_rows<kAttentionRows, kDim, kThreads>(stage + kTileBytes, d_o, o_stride, row_start, row_end);
        if (threadIdx.x < kStatsBytes / 16) {
            const int64_t slot = query_tile * static_cast<int64_t>(p.num_heads) + head;
            const float* const stats = p.stats + slot * (kAttentionRows * 2) + threadIdx.x * 4;
            cp_async16(stage + 2 * kTileBytes + threadIdx.x * 16, stats, true);
        }
        cp_async_commit();
    };

    HeadRows<kDim> dk, dv;
    if (visit < visit_end) {
        load_head_rows<kAttentionRows, kDim, kThreads>(k_tile, p.k + kv_head * kDim, p.k_stride, key_start, key_end);
        load_head_rows<kAttentionRows, kDim, kThreads>(v_tile, p.v + kv_head * kDim, p.v_stride, key_start, key_end);
        load_step(ring);
    }
    int stage = 0;
    NO_UNROLL while (visit < visit_end) {
        // This step's queries have arrived, and no warp reads the other stage any more.
        cp_async_wait<0>();
        __syncthreads();
        const unsigned char* const q_tile = ring + stage * kStageBytes;
        const unsigned char* const d_o_tile = q_tile + kTileBytes;
        const float* const stats = reinterpret_cast<const float*>(q_tile + 2 * kTileBytes);
        const int entry = p.visits[visit];
        stage ^= 1;
        if (++member == p.group) member = 0, visit++;
        if (visit < visit_end) load_step(ring + stage * kStageBytes);

        const AttentionTile& rows = p.queries.tiles[entry >> 1];
        const int32_t* const packed = p.queries.packed_rows + (entry >> 1) * static_cast<int64_t>(kAttentionRows);
        const bool is_masked = (entry & 1) != 0;
        if (key >= key_end) continue;
        NO_UNROLL for (int query = half; query < half + 32; query += 16) {
            if (rows.row_start + query >= rows.row_end) break;
            // The last query has the highest position; INT_MAX if rows are missing.
            if (is_masked && packed[query + 15] < (kWindow ? key - p.reach : key)) continue;
            if (kWindow && is_masked && packed[query] > key + 15 + p.reach) continue;
            float s[1][2][4] = {}, dp[1][2][4] = {};
            UNROLL for (int slice = 0; slice < kSlices; slice++) {
                uint32_t a[1][4], b[2][2];
                load_a_rows<kDim>(a[0], k_tile, first, slice);
                load_b_rows<kDim>(b, q_tile, query, slice);
                mma_tile(s, a, b);
                load_a_rows<kDim>(a[0], v_tile, first, slice);
                load_b_rows<kDim>(b, d_o_tile, query, slice);
                mma_tile(dp, a, b);
            }
            UNROLL for (int n = 0; n < 2; n++) {
                // lse and D of queries 2 quad and 2 quad + 1.
                const Vec16 of = load16(stats + (query + n * 8 + quad * 2) * 2);
                int packed_row[2] = {INT_MAX, INT_MAX};
                if (is_masked) {
                    const Vec8 at = load8(packed + query + n * 8 + quad * 2);
                    packed_row[0] = static_cast<int>(at.word[0]), packed_row[1] = static_cast<int>(at.word[1]);
                }
                UNROLL for (int i = 0; i < 4; i++) {
                    float x = fast_exp2(fmaf(s[0][n][i], p.scale_log2, -bits_float(of.word[i % 2 * 2])));
                    const int own = key + group + i / 2 * 8, row = packed_row[i % 2];
                    if constexpr (kWindow) {
                        if (is_masked && (own - p.reach > row || own + p.reach < row)) x = 0;
                    } else if (own > row) {
                        x = 0;
                    }
                    s[0][n][i] = x;
                    dp[0][n][i] = x * (dp[0][n][i] - bits_float(of.word[i % 2 * 2 + 1]));
                }
            }
            uint32_t a[1][4];
            to_a(a, s);
            dv.add(a, d_o_tile, query);
            to_a(a, dp);
            dk.add(a, q_tile, query);
        }
    }

    // Adds the second half of the queries to the first, in fragment order.
    using Rows = HeadRows<kDim>;
    __syncthreads();
    float* const sums = reinterpret_cast<float*>(ring) + first / 16 * (Rows::kTiles * 256);
    static_assert(4 * Rows::kTiles * 256 * 4 <= 2 * kStageBytes, "the sums of four warps fit into the ring");
    const auto each = [&](auto&& visit_fragment) {
        UNROLL for (int i = 0; i < Rows::kTiles; i++) {
            visit_fragment(dk.acc[i / Rows::kChunk][0][i % Rows::kChunk], sums + (i * 32 + lane) * 4);
            visit_fragment(dv.acc[i / Rows::kChunk][0][i % Rows::kChunk], sums + ((Rows::kTiles + i) * 32 + lane) * 4);
        }
    };
    if (warp >= 4) {
        each([](float(&acc)[4], float* at) {
            Vec16 x;
            UNROLL for (int j = 0; j < 4; j++) x.word[j] = float_bits(acc[j]);
            store16(at, x);
        });
    }
    __syncthreads();
    if (warp >= 4 || key >= key_end) return;
    each([](float(&acc)[4], const float* at) {
        const Vec16 x = load16(at);
        UNROLL for (int j = 0; j < 4; j++) acc[j] += bits_float(x.word[j]);
    });
    dk.scale(p.scale, p.scale);
    dk.to_tile(k_tile, first);
    dv.to_tile(v_tile, first);
    __syncwarp();
    store_head_rows<16, kDim, 32>(p.dk + kv_head * kDim, p.dk_stride, key, key_end, k_tile, first, lane);
    store_head_rows<16, kDim, 32>(p.dv + kv_head * kDim, p.dk_stride, key, key_end, v_tile, first, lane);
}

KERNEL(attention_bwd_dq_bf16_d16, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<16, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d32, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<32, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d64, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<64, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d128, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<128, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d16_window, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<16, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d32_window, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<32, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d64_window, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<64, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d128_window, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<128, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d16, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<16, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d32, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<32, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d64, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<64, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d128, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<128, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d16_window, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<16, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d32_window, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<32, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d64_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<64, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d128_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<128, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d48, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<48, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d72, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<72, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d80, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<80, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d96, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<96, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d112, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<112, false>(p);
}

KERNEL(attention_bwd_dq_bf16_d48_window, AttentionBwdDqParams, 128, 3) {
    attention_bwd_dq<48, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d72_window, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<72, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d80_window, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<80, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d96_window, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<96, true>(p);
}

KERNEL(attention_bwd_dq_bf16_d112_window, AttentionBwdDqParams, 128, 2) {
    attention_bwd_dq<112, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d48, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<48, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d72, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<72, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d80, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<80, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d96, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<96, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d112, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<112, false>(p);
}

KERNEL(attention_bwd_dkv_bf16_d48_window, AttentionBwdDkvParams, 256, 2) {
    attention_bwd_dkv<48, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d72_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<72, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d80_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<80, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d96_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<96, true>(p);
}

KERNEL(attention_bwd_dkv_bf16_d112_window, AttentionBwdDkvParams, 256, 1) {
    attention_bwd_dkv<112, true>(p);
}
