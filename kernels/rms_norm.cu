// RMSNorm with the residual addition in front of it, again, and its gradient.
//
// s = x + residual, rounded (it is what later layers read, so the statistics are those of the rounded numbers); rstd = 1 /
// sqrt(mean(s^2) + eps); y = s rstd w. Backward: ds = d_in + rstd (dy w - s pull) with pull = rstd^2 mean(dy w s), where d_in is the
// gradient that came along the residual stream; the normed input, which the gradients of the next product need, is made
// again in the same pass. All tensors are [rows, cols], numbers bf16, sums f32, one rounding at a store. A row stays in the registers of
// its warps from the first read to the last write, so every tensor moves once; a warp has 4 pieces of each input under way per
// lane, 4 KB. Shared memory: static, the sums of lanes.
#include "common/simt.cuh"
#include "common/rows.cuh"

// Parameters of rms_norm_fwd_*.
struct RmsNormFwdParams {
    bf16* x;                   // [rows, cols]: becomes s where there is a residual
    const bf16* residual;      // [rows, cols]; null: none
    const bf16* weight;        // [cols]
    bf16* y;                   // [rows, cols], overwritten
    float* rstd;               // [rows], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // room for
    int32_t cols;              // a multiple of 8
    float eps;                 // added to the mean square
    int32_t reserved;          // 0
};

// Parameters of rms_norm_apply_*.
struct RmsNormApplyParams {
    const bf16* s;             // [rows, cols]
    const bf16* weight;        // [cols]
    const float* rstd;         // [rows]
    bf16* y;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // room for
    int32_t cols;              // a multiple of 8
};

// Parameters of rms_norm_bwd_*.
struct RmsNormBwdParams {
    const bf16* dy;            // [rows, cols]
    const bf16* s;             // [rows, cols]
    const bf16* weight;        // [cols]
    const float* rstd;         // [rows]
    const bf16* d_in;          // [rows, cols]; null: 0
    bf16* ds;                  // [rows, cols], overwritten
    bf16* normed;              // [rows, cols], overwritten; null: nobody needs it
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // room for
    int32_t cols;              // a multiple of 8
};

template <int kGroups>
DEVICE void rms_norm_fwd(const RmsNormFwdParams& p) {
    STATIC_SMEM(float, sums, kRowWarps * kGroups * 32);
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    Vec16 s[kGroups][4];
    float squares[kGroups];
    UNROLL for (int i = 0; i < kGroups; i++) {
        Vec16 residual[4];
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            s[i][part] = zero16(), residual[part] = zero16();
            if (!team.active || column >= p.cols) continue;
            s[i][part] = load16(p.x + team.row * p.cols + column);
            if (p.residual != nullptr) residual[part] = load16_constant(p.residual + team.row * p.cols + column);
        }
        squares[i] = 0;
        UNROLL for (int part = 0; part < 4; part++) {
            if (p.residual != nullptr) s[i][part] = add_pieces(s[i][part], residual[part]);
            squares[i] = add_squares(squares[i], s[i][part]);
        }
    }
    const float rstd = 1.0f / sqrtf(team.sum(squares, sums) / static_cast<float>(p.cols) + p.eps);
    if (!team.active) return;
    if (team.first_group == 0 && lane_id() == 0) p.rstd[team.row] = rstd;
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            if (column >= p.cols) continue;
            const Vec16 weight = load16_constant(p.weight + column);
            if (p.residual != nullptr) store16(p.x + team.row * p.cols + column, s[i][part]);
            store16(p.y + team.row * p.cols + column, scale_piece(s[i][part], rstd, weight));
        }
    }
}

template <int kGroups>
DEVICE void rms_norm_apply(const RmsNormApplyParams& p) {
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    if (!team.active) return;
    const float rstd = p.rstd[team.row];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            if (column >= p.cols) continue;
            const Vec16 s = load16_constant(p.s + team.row * p.cols + column);
            store16(p.y + team.row * p.cols + column, scale_piece(s, rstd, load16_constant(p.weight + column)));
        }
    }
}

template <int kGroups>
DEVICE void rms_norm_bwd(const RmsNormBwdParams& p) {
    STATIC_SMEM(float, sums, kRowWarps * kGroups * 32);
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    Vec16 s[kGroups][4], dy[kGroups][4];
    float products[kGroups];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            s[i][part] = zero16(), dy[i][part] = zero16();
            if (!team.active || column >= p.cols) continue;
            s[i][part] = load16_constant(p.s + team.row * p.cols + column);
            dy[i][part] = load16_constant(p.dy + team.row * p.cols + column);
        }
        products[i] = 0;
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            const Vec16 weight = column < p.cols ? load16_constant(p.weight + column) : zero16();
            products[i] = add_products(products[i], dy[i][part], weight, s[i][part]);
        }
    }
    const float rstd = team.active ? p.rstd[team.row] : 0.0f;
    const float pull = rstd * rstd * (team.sum(products, sums) / static_cast<float>(p.cols));
    if (!team.active) return;
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            if (column >= p.cols) continue;
            const int64_t at = team.row * p.cols + column;
            const Vec16 weight = load16_constant(p.weight + column);
            const Vec16 d_in = p.d_in != nullptr ? load16(p.d_in + at) : zero16();
            store16(p.ds + at, norm_gradient(dy[i][part], weight, s[i][part], rstd, pull, d_in));
            if (p.normed != nullptr) store16(p.normed + at, scale_piece(s[i][part], rstd, weight));
        }
    }
}

KERNEL(rms_norm_fwd_bf16, RmsNormFwdParams, 256, 3) { rms_norm_fwd<1>(p); }

KERNEL(rms_norm_fwd_bf16_wide, RmsNormFwdParams, 256, 2) { rms_norm_fwd<2>(p); }

KERNEL(rms_norm_apply_bf16, RmsNormApplyParams, 256, 4) { rms_norm_apply<1>(p); }

KERNEL(rms_norm_apply_bf16_wide, RmsNormApplyParams, 256, 3) { rms_norm_apply<2>(p); }

KERNEL(rms_norm_bwd_bf16, RmsNormBwdParams, 256, 3) { rms_norm_bwd<1>(p); }

KERNEL(rms_norm_bwd_bf16_wide, RmsNormBwdParams, 256, 2) { rms_norm_bwd<2>(p); }
