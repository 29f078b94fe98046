// RMSNorm and LayerNorm with the residual addition in front of them, their recomputation, and their gradients.
//
// RMSNorm:
// s = x + residual, rounded (it is what later layers read, so the statistics are those of the rounded
// numbers); rstd = 1 / sqrt(mean(s^2) + eps); y = s rstd w. Backward: ds = d_in + rstd (dy w - s pull) with
// pull = rstd^2 mean(dy w s), where d_in is the gradient of the residual stream; the normed input, which the
// gradients of the next product need, is recomputed in the same pass. All tensors are [rows, cols], numbers
// bf16, sums f32, one rounding at a store. A row stays in the registers of its warps from the first read to
// the last write, so every tensor moves once; a warp has 4 pieces of each input under way per lane, 4 KB.
// Shared memory: static, the sums of lanes.
//
// LayerNorm: c = s - mean(s), rstd = 1 / sqrt(mean(c^2) + eps), y = c rstd w + b. Backward, with g = dy w and x^ = c rstd: ds = d_in +
// rstd (g - mean(g) - x^ mean(g x^)). Only rstd is kept: the mean is computed again from the row, which is in registers. A sum is
// over numbers that are the same in every run, in one order; each costs a barrier more than RMSNorm has.
//
// The _lora kernels also compute the down-projections of the layers that read y (xa), or of the layer that
// takes ds as dy (dxa): 32 rows per block, in the layout of lora_down.cuh. Statistics need the whole row, so
// they are computed first. As many columns as fit are kept in shared memory for the second pass (`slots` of
// 16 KB, 256 columns of one tensor each); the others are read again. Statistics are added in the same order
// as in the plain kernels: results are the same bits.
#include "common/simt.cuh"
#include "common/rows.cuh"
#include "lora_down.cuh"

// Parameters of rms_norm_fwd_*.
struct RmsNormFwdParams {
    bf16* x;                   // [rows, cols]: becomes s where there is a residual
    const bf16* residual;      // [rows, cols]; null: none
    const bf16* weight;        // [cols]
    bf16* y;                   // [rows, cols], overwritten
    float* rstd;               // [rows], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
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
    int32_t rows;              // capacity, in rows
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
    bf16* normed;              // [rows, cols], overwritten; null: not needed
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

// Parameters of rms_norm_fwd_*_lora*.
struct RmsNormFwdLoraParams {
    RmsNormFwdParams norm;  // as without
    LoraProject project;    // of y: layers share it
    int32_t slots;          // pieces of 16 KB of shared memory
    int32_t reserved;       // 0
};

// Parameters of rms_norm_bwd_bf16_lora.
struct RmsNormBwdLoraParams {
    RmsNormBwdParams norm;  // as without
    LoraProject project;    // of ds
    int32_t slots;          // pieces of 16 KB of shared memory
    int32_t reserved;       // 0
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
    const float rstd = rsqrtf(team.sum(squares, sums) / static_cast<float>(p.cols) + p.eps);
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

// Parameters of layer_norm_fwd_*.
struct LayerNormFwdParams {
    bf16* x;                   // [rows, cols]: becomes s where there is a residual
    const bf16* residual;      // [rows, cols]; null: none
    const bf16* weight;        // [cols]
    const bf16* bias;          // [cols]; null: none
    bf16* y;                   // [rows, cols], overwritten
    float* rstd;               // [rows], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
    float eps;                 // added to the mean square
    int32_t reserved;          // 0
};

// Parameters of layer_norm_apply_*.
struct LayerNormApplyParams {
    const bf16* s;             // [rows, cols]
    const bf16* weight;        // [cols]
    const bf16* bias;          // [cols]; null: none
    const float* rstd;         // [rows]
    bf16* y;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

// Parameters of layer_norm_bwd_*.
struct LayerNormBwdParams {
    const bf16* dy;            // [rows, cols]
    const bf16* s;             // [rows, cols]
    const bf16* weight;        // [cols]
    const bf16* bias;          // [cols]; null: none
    const float* rstd;         // [rows]
    const bf16* d_in;          // [rows, cols]; null: 0
    bf16* ds;                  // [rows, cols], overwritten
    bf16* normed;              // [rows, cols], overwritten; null: not needed
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

// The mean of a row whose pieces are in registers; pieces beyond the row are 0. All threads of the block call it.
template <int kGroups>
DEVICE float row_mean(const RowTeam<kGroups>& team, const Vec16 (&s)[kGroups][4], float* sums, int32_t cols) {
    float of_lane[kGroups];
    UNROLL for (int i = 0; i < kGroups; i++) {
        of_lane[i] = 0;
        UNROLL for (int part = 0; part < 4; part++) {
            UNROLL for (int j = 0; j < 4; j++) of_lane[i] += low_of(s[i][part], j) + high_of(s[i][part], j);
        }
    }
    const float mean = team.sum(of_lane, sums) / static_cast<float>(cols);
    // The sums of lanes are written again.
    __syncthreads();
    return mean;
}

// (x - mean) scale w + b, rounded.
DEVICE Vec16 layer_piece(const Vec16& x, float mean, float scale, const Vec16& w, const Vec16& b) {
    Vec16 y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.word[i] = pack_bf16(fmaf((low_of(x, i) - mean) * scale, low_of(w, i), low_of(b, i)),
                              fmaf((high_of(x, i) - mean) * scale, high_of(w, i), high_of(b, i)));
    }
    return y;
}

template <int kGroups>
DEVICE void layer_norm_fwd(const LayerNormFwdParams& p) {
    STATIC_SMEM(float, sums, kRowWarps * kGroups * 32);
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    Vec16 s[kGroups][4];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            s[i][part] = zero16();
            if (!team.active || column >= p.cols) continue;
            s[i][part] = load16(p.x + team.row * p.cols + column);
            if (p.residual == nullptr) continue;
            s[i][part] = add_pieces(s[i][part], load16_constant(p.residual + team.row * p.cols + column));
        }
    }
    const float mean = row_mean(team, s, sums, p.cols);
    float squares[kGroups];
    UNROLL for (int i = 0; i < kGroups; i++) {
        squares[i] = 0;
        UNROLL for (int part = 0; part < 4; part++) {
            if (lane_column(team.first_group + i * kRowWarps, part) >= p.cols) continue;
            UNROLL for (int j = 0; j < 4; j++) {
                const float low = low_of(s[i][part], j) - mean, high = high_of(s[i][part], j) - mean;
                squares[i] = fmaf(high, high, fmaf(low, low, squares[i]));
            }
        }
    }
    const float rstd = rsqrtf(team.sum(squares, sums) / static_cast<float>(p.cols) + p.eps);
    if (!team.active) return;
    if (team.first_group == 0 && lane_id() == 0) p.rstd[team.row] = rstd;
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            if (column >= p.cols) continue;
            const Vec16 weight = load16_constant(p.weight + column);
            const Vec16 bias = p.bias != nullptr ? load16_constant(p.bias + column) : zero16();
            if (p.residual != nullptr) store16(p.x + team.row * p.cols + column, s[i][part]);
            store16(p.y + team.row * p.cols + column, layer_piece(s[i][part], mean, rstd, weight, bias));
        }
    }
}

template <int kGroups>
DEVICE void layer_norm_apply(const LayerNormApplyParams& p) {
    STATIC_SMEM(float, sums, kRowWarps * kGroups * 32);
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    Vec16 s[kGroups][4];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            const bool is_there = team.active && column < p.cols;
            s[i][part] = is_there ? load16_constant(p.s + team.row * p.cols + column) : zero16();
        }
    }
    const float mean = row_mean(team, s, sums, p.cols);
    if (!team.active) return;
    const float rstd = p.rstd[team.row];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            if (column >= p.cols) continue;
            const Vec16 weight = load16_constant(p.weight + column);
            const Vec16 bias = p.bias != nullptr ? load16_constant(p.bias + column) : zero16();
            store16(p.y + team.row * p.cols + column, layer_piece(s[i][part], mean, rstd, weight, bias));
        }
    }
}

template <int kGroups>
DEVICE void layer_norm_bwd(const LayerNormBwdParams& p) {
    STATIC_SMEM(float, sums, kRowWarps * kGroups * 32);
    const RowTeam<kGroups> team(p.cols, rows_there_are(p.live_rows, p.rows));
    // dy becomes dy w, in f32 where it is used: the products are made twice.
    Vec16 s[kGroups][4], dy[kGroups][4];
    UNROLL for (int i = 0; i < kGroups; i++) {
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            s[i][part] = zero16(), dy[i][part] = zero16();
            if (!team.active || column >= p.cols) continue;
            s[i][part] = load16_constant(p.s + team.row * p.cols + column);
            dy[i][part] = load16_constant(p.dy + team.row * p.cols + column);
        }
    }
    const float mean = row_mean(team, s, sums, p.cols);
    float gradients[kGroups], products[kGroups];
    UNROLL for (int i = 0; i < kGroups; i++) {
        gradients[i] = 0, products[i] = 0;
        UNROLL for (int part = 0; part < 4; part++) {
            const int64_t column = lane_column(team.first_group + i * kRowWarps, part);
            const Vec16 weight = column < p.cols ? load16_constant(p.weight + column) : zero16();
            UNROLL for (int j = 0; j < 4; j++) {
                const float low = low_of(dy[i][part], j) * low_of(weight, j);
                const float high = high_of(dy[i][part], j) * high_of(weight, j);
                gradients[i] += low + high;
                products[i] = fmaf(low, low_of(s[i][part], j) - mean, products[i]);
                products[i] = fmaf(high, high_of(s[i][part], j) - mean, products[i]);
            }
        }
    }
    const float shift = team.sum(gradients, sums) / static_cast<float>(p.cols);
    __syncthreads();
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
            Vec16 ds;
            UNROLL for (int j = 0; j < 4; j++) {
                const float low = fmaf(low_of(dy[i][part], j), low_of(weight, j), -shift);
                const float high = fmaf(high_of(dy[i][part], j), high_of(weight, j), -shift);
                ds.word[j] = pack_bf16(fmaf(rstd, fmaf(mean - low_of(s[i][part], j), pull, low), low_of(d_in, j)),
                                       fmaf(rstd, fmaf(mean - high_of(s[i][part], j), pull, high), high_of(d_in, j)));
            }
            store16(p.ds + at, ds);
            if (p.normed == nullptr) continue;
            const Vec16 bias = p.bias != nullptr ? load16_constant(p.bias + column) : zero16();
            store16(p.normed + at, layer_piece(s[i][part], mean, rstd, weight, bias));
        }
    }
}

KERNEL(layer_norm_fwd_bf16, LayerNormFwdParams, 256, 3) { layer_norm_fwd<1>(p); }

KERNEL(layer_norm_fwd_bf16_wide, LayerNormFwdParams, 256, 2) { layer_norm_fwd<2>(p); }

KERNEL(layer_norm_apply_bf16, LayerNormApplyParams, 256, 3) { layer_norm_apply<1>(p); }

KERNEL(layer_norm_apply_bf16_wide, LayerNormApplyParams, 256, 2) { layer_norm_apply<2>(p); }

KERNEL(layer_norm_bwd_bf16, LayerNormBwdParams, 256, 2) { layer_norm_bwd<1>(p); }

KERNEL(layer_norm_bwd_bf16_wide, LayerNormBwdParams, 256, 2) { layer_norm_bwd<2>(p); }

// The part of a row that the fused kernels keep between its statistics and its use: slot `slot` has a piece
// of each of the four rows of every thread, which only that thread reads.
struct KeptRows {
    unsigned char* smem;
    int slots;

    DEVICE Vec16* piece(int slot, int i) const {
        return reinterpret_cast<Vec16*>(smem) + (slot * 4 + i) * kDownThreads + threadIdx.x;
    }
};

// Number of the 32 columns of `part` among those of a warp.
DEVICE int slot_of(int64_t stretch, int part) { return static_cast<int>(stretch / kGroupColumns) * 4 + part; }

// Rows that are normalized on demand.
struct RmsNormFwdRows {
    static constexpr bool kDeliversAllRows = true, kDeliversStretches = false, kKeepsRows = true;
    const RmsNormFwdParams& p;
    DownRows rows;
    KeptRows kept;
    float rstd[4];
    bool is_stored;

    // Adds the residual, and computes rstd.
    DEVICE void statistics(float* of_quads) {
        const int quad = lane_id() & 3;
        UNROLL for (int i = 0; i < 4; i++) rstd[i] = 0;
        NO_UNROLL for (int64_t stretch = threadIdx.x / 32 * kStretchColumns; stretch < p.cols; stretch += kGroupColumns) {
            float squares[4] = {};
            UNROLL_2 for (int part = 0; part < 4; part++) {
                const int64_t column = stretch + part * 32 + quad * 8;
                Vec16 s[4], residual[4];
                UNROLL for (int i = 0; i < 4; i++) {
                    const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
                    s[i] = zero16(), residual[i] = zero16();
                    if (column >= p.cols || rows.at(i) >= rows.end) continue;
                    s[i] = load16(p.x + at);
                    if (p.residual != nullptr) residual[i] = load16_constant(p.residual + at);
                }
                UNROLL for (int i = 0; i < 4; i++) {
                    const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
                    if (p.residual != nullptr) s[i] = add_pieces(s[i], residual[i]);
                    squares[i] = add_squares(squares[i], s[i]);
                    if (column >= p.cols || rows.at(i) >= rows.end) continue;
                    if (p.residual != nullptr) store16(p.x + at, s[i]);
                    if (slot_of(stretch, part) < kept.slots) store16(kept.piece(slot_of(stretch, part), i), s[i]);
                }
            }
            UNROLL for (int i = 0; i < 4; i++) rstd[i] += squares[i];
        }
        sums_of_rows(rstd, of_quads);
        UNROLL for (int i = 0; i < 4; i++) {
            rstd[i] = rsqrtf(rstd[i] / static_cast<float>(p.cols) + p.eps);
            if (threadIdx.x < 32 && quad == 0 && rows.at(i) < rows.end) p.rstd[rows.at(i)] = rstd[i];
        }
    }

    DEVICE void part(Vec16 (&x)[1][4], const DownRange&, int64_t stretch, int part) const {
        const int64_t column = stretch + part * 32 + (lane_id() & 3) * 8;
        const int slot = slot_of(stretch, part);
        const Vec16 weight = column < p.cols ? load16_constant(p.weight + column) : zero16();
        UNROLL for (int i = 0; i < 4; i++) {
            const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
            x[0][i] = zero16();
            if (column >= p.cols || rows.at(i) >= rows.end) continue;
            if (is_stored) {
                x[0][i] = load16(p.y + at);
                continue;
            }
            const Vec16 s = slot < kept.slots ? load16(kept.piece(slot, i)) : load16(p.x + at);
            x[0][i] = scale_piece(s, rstd[i], weight);
            store16(p.y + at, x[0][i]);
        }
    }
};

// Rows whose gradients are computed on demand.
struct RmsNormBwdRows {
    static constexpr bool kDeliversAllRows = true, kDeliversStretches = false, kKeepsRows = true;
    const RmsNormBwdParams& p;
    DownRows rows;
    // dy first, then s.
    KeptRows kept;
    int dy_slots;
    float rstd[4];
    float pull[4];
    bool is_stored;

    DEVICE void statistics(float* of_quads) {
        const int quad = lane_id() & 3;
        UNROLL for (int i = 0; i < 4; i++) pull[i] = 0;
        NO_UNROLL for (int64_t stretch = threadIdx.x / 32 * kStretchColumns; stretch < p.cols; stretch += kGroupColumns) {
            float products[4] = {};
            UNROLL_2 for (int part = 0; part < 4; part++) {
                const int64_t column = stretch + part * 32 + quad * 8;
                const int slot = slot_of(stretch, part);
                const Vec16 weight = column < p.cols ? load16_constant(p.weight + column) : zero16();
                Vec16 dy[4], s[4];
                UNROLL for (int i = 0; i < 4; i++) {
                    const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
                    s[i] = zero16(), dy[i] = zero16();
                    if (column >= p.cols || rows.at(i) >= rows.end) continue;
                    s[i] = load16_constant(p.s + at);
                    dy[i] = load16_constant(p.dy + at);
                }
                UNROLL for (int i = 0; i < 4; i++) {
                    products[i] = add_products(products[i], dy[i], weight, s[i]);
                    if (slot < dy_slots) store16(kept.piece(slot, i), dy[i]);
                    if (dy_slots + slot < kept.slots) store16(kept.piece(dy_slots + slot, i), s[i]);
                }
            }
            UNROLL for (int i = 0; i < 4; i++) pull[i] += products[i];
        }
        sums_of_rows(pull, of_quads);
        UNROLL for (int i = 0; i < 4; i++) {
            rstd[i] = rows.at(i) < rows.end ? p.rstd[rows.at(i)] : 0.0f;
            pull[i] = rstd[i] * rstd[i] * (pull[i] / static_cast<float>(p.cols));
        }
    }

    DEVICE void part(Vec16 (&x)[1][4], const DownRange&, int64_t stretch, int part) const {
        const int64_t column = stretch + part * 32 + (lane_id() & 3) * 8;
        const int slot = slot_of(stretch, part);
        const Vec16 weight = column < p.cols ? load16_constant(p.weight + column) : zero16();
        UNROLL for (int i = 0; i < 4; i++) {
            const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
            x[0][i] = zero16();
            if (column >= p.cols || rows.at(i) >= rows.end) continue;
            if (is_stored) {
                x[0][i] = load16(p.ds + at);
                continue;
            }
            const Vec16 d_in = p.d_in != nullptr ? load16(p.d_in + at) : zero16();
            const Vec16 dy = slot < dy_slots ? load16(kept.piece(slot, i)) : load16_constant(p.dy + at);
            const bool keeps_s = dy_slots + slot < kept.slots;
            const Vec16 s = keeps_s ? load16(kept.piece(dy_slots + slot, i)) : load16_constant(p.s + at);
            x[0][i] = norm_gradient(dy, weight, s, rstd[i], pull[i], d_in);
            store16(p.ds + at, x[0][i]);
            if (p.normed != nullptr) store16(p.normed + at, scale_piece(s, rstd[i], weight));
        }
    }
};

template <bool kDropout>
DEVICE void rms_norm_fwd_lora(const RmsNormFwdLoraParams& p) {
    DYNAMIC_SMEM(smem);
    STATIC_SMEM(float, of_quads, kDownWarps * 32);
    const DownRows rows(static_cast<int>(blockIdx.x), rows_there_are(p.norm.live_rows, p.norm.rows));
    if (rows.first >= rows.end) return;
    RmsNormFwdRows source{p.norm, rows, {smem, p.slots}, {}, false};
    source.statistics(of_quads);
    down_all<4, 1, kDropout>(p.project, rows, p.norm.cols, source, reinterpret_cast<float*>(smem));
}

KERNEL(rms_norm_fwd_bf16_lora, RmsNormFwdLoraParams, 256, 1) { rms_norm_fwd_lora<false>(p); }

KERNEL(rms_norm_fwd_bf16_lora_dropout, RmsNormFwdLoraParams, 256, 1) { rms_norm_fwd_lora<true>(p); }

KERNEL(rms_norm_bwd_bf16_lora, RmsNormBwdLoraParams, 256, 1) {
    DYNAMIC_SMEM(smem);
    STATIC_SMEM(float, of_quads, kDownWarps * 32);
    const DownRows rows(static_cast<int>(blockIdx.x), rows_there_are(p.norm.live_rows, p.norm.rows));
    if (rows.first >= rows.end) return;
    const int slots = (p.norm.cols + kGroupColumns - 1) / kGroupColumns * 4;
    RmsNormBwdRows source{p.norm, rows, {smem, p.slots}, slots < p.slots ? slots : p.slots, {}, {}, false};
    source.statistics(of_quads);
    down_all<4, 1, false>(p.project, rows, p.norm.cols, source, reinterpret_cast<float*>(smem));
}
