// QK-norm and rotation of 128 columns of a row in the four lanes of a quad: shared by the plain kernels and
// those with fused down-projections.
//
// Lane q holds pieces (8 numbers) q, 4 + q, 8 + q and 12 + q of the stretch, which is one head of 128, two of 64, four
// of 32 or eight of 16. So the partner of a number in the rotation (half a head further) is in the same lane for heads
// of 128 and 64, and two lanes or one lane away for 32 and 16; a sum over a head is one over parts of a lane, and then
// over 4, 4, 4 or 2 lanes.
#pragma once

#include "rows.cuh"

template <int kHeadDim>
struct RopeStretch {
    static_assert(kHeadDim == 16 || kHeadDim == 32 || kHeadDim == 64 || kHeadDim == 128, "heads divide a stretch");
    static constexpr int kHalf = kHeadDim / 2;
    // Parts that belong to one head.
    static constexpr int kParts = kHeadDim >= 32 ? kHeadDim / 32 : 1;

    // Column of the head that piece `part` begins with.
    DEVICE static int head_column(int part, int quad) { return (part * 32 + quad * 8) % kHeadDim; }

    // rstd of every part's head, by `sums` of the lane's parts.
    DEVICE static float head_sum(float x) {
        return kHeadDim == 16 ? x + shfl_xor(x, 1) : quad_sum(x);
    }

    // The sums over the heads from one sum per part.
    DEVICE static void head_sums(float (&sum)[4]) {
        UNROLL for (int part = 0; part < 4; part += kParts) {
            float total = sum[part];
            UNROLL for (int i = 1; i < kParts; i++) total += sum[part + i];
            total = head_sum(total);
            UNROLL for (int i = 0; i < kParts; i++) sum[part + i] = total;
        }
    }

    // Rotates all pairs: cos and sin are [position][kHalf] and begin at the row's position; `direction` -1
    // turns back. All lanes of the warp call it.
    DEVICE static void rotate(float (&y)[4][8], const float* cos, const float* sin, float direction, int quad) {
        if constexpr (kHeadDim >= 64) {
            constexpr int kAway = kParts / 2;
            UNROLL for (int part = 0; part < 4; part++) {
                if (part % kParts >= kAway) continue;
                const int column = head_column(part, quad);
                UNROLL for (int j = 0; j < 8; j += 4) {
                    const Vec16 c = load16_constant(cos + column + j), s = load16_constant(sin + column + j);
                    UNROLL for (int i = 0; i < 4; i++) {
                        const float c_i = bits_float(c.word[i]), s_i = bits_float(s.word[i]) * direction;
                        const float low = y[part][j + i], high = y[part + kAway][j + i];
                        y[part][j + i] = fmaf(low, c_i, -(high * s_i));
                        y[part + kAway][j + i] = fmaf(high, c_i, low * s_i);
                    }
                }
            }
        } else {
            constexpr int kAway = kHalf / 8;
            // The lower half loses what the upper half gains.
            const float sign = (quad & kAway) == 0 ? -direction : direction;
            const int column = (quad * 8) % kHalf;
            UNROLL for (int j = 0; j < 8; j += 4) {
                const Vec16 c = load16_constant(cos + column + j), s = load16_constant(sin + column + j);
                UNROLL for (int i = 0; i < 4; i++) {
                    const float c_i = bits_float(c.word[i]), s_i = bits_float(s.word[i]) * sign;
                    UNROLL for (int part = 0; part < 4; part++) {
                        const float other = shfl_xor(y[part][j + i], kAway);
                        y[part][j + i] = fmaf(y[part][j + i], c_i, other * s_i);
                    }
                }
            }
        }
    }

    // x becomes rotated norm(x), rounded; without a weight there is no norm.
    DEVICE static void forward(Vec16 (&x)[4], const bf16* weight, float eps, const float* cos, const float* sin, int quad) {
        float y[4][8];
        UNROLL for (int part = 0; part < 4; part++) {
            UNROLL for (int i = 0; i < 4; i++) y[part][2 * i] = low_of(x[part], i), y[part][2 * i + 1] = high_of(x[part], i);
        }
        if (weight != nullptr) {
            float sum[4];
            UNROLL for (int part = 0; part < 4; part++) sum[part] = add_squares(0.0f, x[part]);
            head_sums(sum);
            UNROLL for (int part = 0; part < 4; part++) {
                const float rstd = rsqrtf(sum[part] / static_cast<float>(kHeadDim) + eps);
                const Vec16 w = load16_constant(weight + head_column(part, quad));
                UNROLL for (int i = 0; i < 4; i++) {
                    y[part][2 * i] *= rstd * low_of(w, i);
                    y[part][2 * i + 1] *= rstd * high_of(w, i);
                }
            }
        }
        rotate(y, cos, sin, 1.0f, quad);
        UNROLL for (int part = 0; part < 4; part++) {
            UNROLL for (int i = 0; i < 4; i++) x[part].word[i] = pack_bf16(y[part][2 * i], y[part][2 * i + 1]);
        }
    }

    // dy becomes dx, rounded, where x is the input of the forward pass.
    DEVICE static void backward(Vec16 (&dy)[4], const Vec16 (&x)[4], const bf16* weight, float eps, const float* cos,
                                const float* sin, int quad) {
        float g[4][8];
        UNROLL for (int part = 0; part < 4; part++) {
            UNROLL for (int i = 0; i < 4; i++) g[part][2 * i] = low_of(dy[part], i), g[part][2 * i + 1] = high_of(dy[part], i);
        }
        rotate(g, cos, sin, -1.0f, quad);
        if (weight != nullptr) {
            float squares[4], products[4];
            UNROLL for (int part = 0; part < 4; part++) {
                const Vec16 w = load16_constant(weight + head_column(part, quad));
                squares[part] = add_squares(0.0f, x[part]);
                products[part] = 0;
                UNROLL for (int i = 0; i < 4; i++) {
                    g[part][2 * i] *= low_of(w, i);
                    g[part][2 * i + 1] *= high_of(w, i);
                    products[part] = fmaf(g[part][2 * i], low_of(x[part], i), products[part]);
                    products[part] = fmaf(g[part][2 * i + 1], high_of(x[part], i), products[part]);
                }
            }
            head_sums(squares);
            head_sums(products);
            UNROLL for (int part = 0; part < 4; part++) {
                const float rstd = rsqrtf(squares[part] / static_cast<float>(kHeadDim) + eps);
                const float pull = rstd * rstd * (products[part] / static_cast<float>(kHeadDim));
                UNROLL for (int i = 0; i < 4; i++) {
                    g[part][2 * i] = rstd * fmaf(low_of(x[part], i), -pull, g[part][2 * i]);
                    g[part][2 * i + 1] = rstd * fmaf(high_of(x[part], i), -pull, g[part][2 * i + 1]);
                }
            }
        }
        UNROLL for (int part = 0; part < 4; part++) {
            UNROLL for (int i = 0; i < 4; i++) dy[part].word[i] = pack_bf16(g[part][2 * i], g[part][2 * i + 1]);
        }
    }
};
