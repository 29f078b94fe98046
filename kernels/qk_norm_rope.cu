// QK-norm and rotary position embedding of queries and keys, both in one launch, and the way back.
//
// Per row and head: n = x rstd w (left out without a weight), then pairs (i, i + d / 2) turn by the angle of the row's position, whose
// cosine and sine are in a table. Backward turns the gradient back and goes through the norm, whose statistics are made again
// from x. Numbers are bf16, arithmetic f32, one rounding at a store. A quad of lanes has 128 columns of a row: four pieces of
// 16 bytes of every input under way per lane, and no shared memory. The table is small and stays in the caches.
#include "common/simt.cuh"
#include "common/qk_norm_rope.cuh"

// Queries, or keys.
struct QkNormRopeJob {
    const bf16* x;              // [rows, cols]: as the projection made it
    bf16* y;                    // [rows, cols]: output; of backward: dy, becomes dx
    const bf16* weight;         // [head_dim]; null: no norm
    const uint32_t* positions;  // [rows], by row
    const int32_t* live_rows;   // rows there are; null: all
    const float* cos;           // [positions, head_dim / 2]
    const float* sin;           // [positions, head_dim / 2]
    int32_t rows;               // room for
    int32_t cols;               // heads times head_dim
    float eps;                  // added to the mean square
    int32_t first_block;        // blocks of the jobs before
};

// Parameters of qk_norm_rope_*.
struct QkNormRopeParams {
    QkNormRopeJob jobs[2];  // the second may be empty
    int32_t num_jobs;       // 1 or 2
    int32_t head_dim;       // 16, 32, 64 or 128
};

constexpr int kRopeQuads = 64;

template <int kHeadDim, bool kBackward>
DEVICE void qk_norm_rope(const QkNormRopeParams& p) {
    const int which = p.num_jobs > 1 && static_cast<int>(blockIdx.x) >= p.jobs[1].first_block ? 1 : 0;
    const QkNormRopeJob& job = p.jobs[which];
    const int stretches = (job.cols + kStretchColumns - 1) / kStretchColumns, quad = lane_id() & 3;
    const int64_t first = (static_cast<int64_t>(blockIdx.x) - job.first_block) * kRopeQuads;
    const int32_t rows = rows_there_are(job.live_rows, job.rows);
    if (first >= static_cast<int64_t>(rows) * stretches) return;
    const int64_t place = first + threadIdx.x / 4;
    const int64_t row = place / stretches, begin = place % stretches * kStretchColumns;
    const bool active = row < rows;

    Vec16 x[4], dy[4];
    UNROLL for (int part = 0; part < 4; part++) {
        const int64_t column = begin + part * 32 + quad * 8;
        x[part] = zero16(), dy[part] = zero16();
        if (!active || column >= job.cols) continue;
        x[part] = load16_constant(job.x + row * job.cols + column);
        if constexpr (kBackward) dy[part] = load16(job.y + row * job.cols + column);
    }
    const int64_t angle = active ? static_cast<int64_t>(job.positions[row]) * (kHeadDim / 2) : 0;
    if constexpr (kBackward) {
        RopeStretch<kHeadDim>::backward(dy, x, job.weight, job.eps, job.cos + angle, job.sin + angle, quad);
    } else {
        RopeStretch<kHeadDim>::forward(x, job.weight, job.eps, job.cos + angle, job.sin + angle, quad);
    }
    UNROLL for (int part = 0; part < 4; part++) {
        const int64_t column = begin + part * 32 + quad * 8;
        if (!active || column >= job.cols) continue;
        if constexpr (kBackward) {
            store16(job.y + row * job.cols + column, dy[part]);
        } else {
            store16(job.y + row * job.cols + column, x[part]);
        }
    }
}

template <bool kBackward>
DEVICE void qk_norm_rope_by_head(const QkNormRopeParams& p) {
    switch (p.head_dim) {
        case 16: return qk_norm_rope<16, kBackward>(p);
        case 32: return qk_norm_rope<32, kBackward>(p);
        case 64: return qk_norm_rope<64, kBackward>(p);
        case 128: return qk_norm_rope<128, kBackward>(p);
        default: return;
    }
}

KERNEL(qk_norm_rope_fwd_bf16, QkNormRopeParams, 256, 3) { qk_norm_rope_by_head<false>(p); }

KERNEL(qk_norm_rope_bwd_bf16, QkNormRopeParams, 256, 2) { qk_norm_rope_by_head<true>(p); }
