// QK-norm and rotary position embedding of queries and keys, both in one launch, and the backward pass.
//
// Per row and head: n = x rstd w (left out without a weight), then pairs (i, i + d / 2) turn by the angle of
// the row's position, whose cosine and sine are in a table. Backward rotates the gradient back and goes
// through the norm, whose statistics are recomputed from x. Numbers are bf16, arithmetic f32, one rounding at
// a store. A quad of lanes has 128 columns of a row: four pieces of 16 bytes of every input under way per
// lane, and no shared memory. The table is small and stays in the caches.
//
// The _lora kernel also computes the down-projections of the layers that take these gradients as dy (dxa of
// q, k and v; v is not rotated): a block takes 32 rows of one of them, in the layout of lora_down.cuh.
#include "common/simt.cuh"
#include "common/qk_norm_rope.cuh"
#include "lora_down.cuh"

// Queries, or keys.
struct QkNormRopeJob {
    const bf16* x;              // [rows, at least cols]: as the projection made it
    bf16* y;                    // [rows, at least cols]: output; of backward: dy, becomes dx
    const bf16* weight;         // [head_dim]; null: no norm
    const uint32_t* positions;  // [rows], by row
    const int32_t* live_rows;   // rows there are; null: all
    const float* cos;           // [positions, head_dim / 2]
    const float* sin;           // [positions, head_dim / 2]
    int32_t rows;               // capacity, in rows
    int32_t cols;               // heads times head_dim
    float eps;                  // added to the mean square
    int32_t first_block;        // blocks of the jobs before
    int32_t x_stride;           // elements from a row of x to the next
    int32_t y_stride;           // elements from a row of y to the next
};

// Parameters of qk_norm_rope_*.
struct QkNormRopeParams {
    QkNormRopeJob jobs[2];  // the second may be empty
    int32_t num_jobs;       // 1 or 2
    int32_t head_dim;       // 16, 32, 64 or 128
};

// Parameters of qk_norm_rope_bwd_bf16_lora.
struct QkNormRopeBwdLoraParams {
    QkNormRopeJob jobs[2];     // gradients to turn back: the first layers of project
    LoraProject project;       // of dx of the jobs, then of the input of further layers
    const int32_t* live_rows;  // rows that further layers have; null: all
    int32_t rows;              // capacity, in rows
    int32_t num_jobs;          // 0 to 2
    int32_t head_dim;          // 16, 32, 64 or 128
    int32_t reserved;          // 0
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
        x[part] = load16_constant(job.x + row * job.x_stride + column);
        if constexpr (kBackward) dy[part] = load16(job.y + row * job.y_stride + column);
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
            store16(job.y + row * job.y_stride + column, dy[part]);
        } else {
            store16(job.y + row * job.y_stride + column, x[part]);
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

// Rows of one layer: rotated back on demand, or as stored in memory.
struct QkNormRopeBwdRows {
    static constexpr bool kDeliversAllRows = true, kDeliversStretches = true, kKeepsRows = false;
    const QkNormRopeJob& job;
    const bf16* stored;
    int64_t cols;
    int head_dim;
    DownRows rows;
    bool is_stored;
    Vec16 dx[4][4];

    DEVICE void stretch(int64_t begin) {
        const int quad = lane_id() & 3;
        UNROLL for (int i = 0; i < 4; i++) {
            Vec16 x[4];
            UNROLL for (int part = 0; part < 4; part++) {
                const int64_t column = begin + part * 32 + quad * 8;
                dx[i][part] = zero16(), x[part] = zero16();
                if (column >= cols || rows.at(i) >= rows.end) continue;
                dx[i][part] = load16(stored + rows.at(i) * cols + column);
                if (!is_stored) x[part] = load16_constant(job.x + static_cast<int64_t>(rows.at(i)) * job.x_stride + column);
            }
            if (is_stored) continue;
            const int64_t angle =
                rows.at(i) < rows.end ? static_cast<int64_t>(job.positions[rows.at(i)]) * (head_dim / 2) : 0;
            const float* const cos = job.cos + angle;
            const float* const sin = job.sin + angle;
            switch (head_dim) {
                case 16: RopeStretch<16>::backward(dx[i], x, job.weight, job.eps, cos, sin, quad); break;
                case 32: RopeStretch<32>::backward(dx[i], x, job.weight, job.eps, cos, sin, quad); break;
                case 64: RopeStretch<64>::backward(dx[i], x, job.weight, job.eps, cos, sin, quad); break;
                default: RopeStretch<128>::backward(dx[i], x, job.weight, job.eps, cos, sin, quad); break;
            }
            UNROLL for (int part = 0; part < 4; part++) {
                const int64_t column = begin + part * 32 + quad * 8;
                if (column >= cols || rows.at(i) >= rows.end) continue;
                store16(job.y + rows.at(i) * cols + column, dx[i][part]);
            }
        }
    }

    DEVICE void part(Vec16 (&x)[1][4], const DownRange&, int64_t, int part) const {
        UNROLL for (int i = 0; i < 4; i++) x[0][i] = dx[i][part];
    }
};

KERNEL(qk_norm_rope_bwd_bf16_lora, QkNormRopeBwdLoraParams, 256, 1) {
    STATIC_SMEM(float, sums, kDownSumsBytes<1> / 4);
    const int which = static_cast<int>(blockIdx.y);
    const bool turns = which < p.num_jobs;
    const QkNormRopeJob& job = p.jobs[turns ? which : 0];
    const LoraDownLayer* const layer = &p.project.layers[which];
    const int32_t live = turns ? rows_there_are(job.live_rows, job.rows) : rows_there_are(p.live_rows, p.rows);
    const DownRows rows(static_cast<int>(blockIdx.x), live);
    if (rows.first >= rows.end) return;
    const int64_t cols = turns ? job.cols : layer->features;
    QkNormRopeBwdRows source{job, turns ? job.y : layer->input, cols, p.head_dim, rows, !turns, {}};
    // 16 columns per pass: more would exceed the registers, and later passes find dx in the L2 cache.
    for (int first = 0; first < p.project.rank_stride || !source.is_stored; first += 16) {
        const DownColumns columns{layer, first, p.project.rank_stride, p.project.rank_stride};
        down_runs<1, 1, false>(columns, p.project.runs, *p.project.num_runs, p.project.dropout, rows, cols,
                               p.project.stride, source, sums);
    }
}
