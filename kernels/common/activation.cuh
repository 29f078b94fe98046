// Activations: SwiGLU on pieces of eight numbers, shared by the plain kernels and those with fused down-projections, and every
// function on one number.
#pragma once

#include "rows.cuh"
#include "simt.cuh"

// 1 / (1 + exp(-x)); it saturates to 0 and 1, and is never NaN for a finite number. The square of the inverse
// root takes one instruction and a product, while a division would take a branch for every number; the loss
// of accuracy is far below the rounding to bf16.
DEVICE float sigmoid(float x) {
    const float root = rsqrtf(1.0f + fast_exp2(x * -kLog2E));
    return root * root;
}

DEVICE float swiglu_of(float gate, float up) { return gate * sigmoid(gate) * up; }

// silu(gate) up, rounded.
DEVICE Vec16 swiglu_piece(const Vec16& gate, const Vec16& up) {
    Vec16 h;
    UNROLL for (int i = 0; i < 4; i++) {
        h.word[i] = pack_bf16(swiglu_of(low_bf16(gate.word[i]), low_bf16(up.word[i])),
                              swiglu_of(high_bf16(gate.word[i]), high_bf16(up.word[i])));
    }
    return h;
}

// One number: dh becomes h, gate becomes dgate, up becomes dup.
DEVICE void swiglu_gradient_of(float& dh, float& gate, float& up) {
    const float sigma = sigmoid(gate), silu = gate * sigma;
    const float h = silu * up, dup = dh * silu;
    gate = dh * up * sigma * fmaf(gate, 1.0f - sigma, 1.0f);
    dh = h;
    up = dup;
}

// The same for eight numbers, rounded.
DEVICE void swiglu_gradient(Vec16& dh, Vec16& gate, Vec16& up) {
    UNROLL for (int i = 0; i < 4; i++) {
        float dh_low = low_bf16(dh.word[i]), gate_low = low_bf16(gate.word[i]), up_low = low_bf16(up.word[i]);
        float dh_high = high_bf16(dh.word[i]), gate_high = high_bf16(gate.word[i]), up_high = high_bf16(up.word[i]);
        swiglu_gradient_of(dh_low, gate_low, up_low);
        swiglu_gradient_of(dh_high, gate_high, up_high);
        dh.word[i] = pack_bf16(dh_low, dh_high);
        gate.word[i] = pack_bf16(gate_low, gate_high);
        up.word[i] = pack_bf16(up_low, up_high);
    }
}

// Eight ones.
DEVICE Vec16 ones16() { return Vec16{{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}}; }

// A function at a number, and its derivative there.
struct ActivationAt {
    float value;
    float slope;
};

// Function 0 is silu, 1 gelu, 2 gelu with tanh, 3 tanh.
DEVICE ActivationAt activation_of(int32_t act, float x) {
    if (act == 1) {
        // The normal distribution and its density.
        const float below = 0.5f + 0.5f * erff(x * 0.707106781186547524f);
        const float density = 0.398942280401432678f * fast_exp2(x * x * (-0.5f * kLog2E));
        return {x * below, fmaf(x, density, below)};
    }
    if (act == 3) {
        const float y = tanhf(x);
        return {y, fmaf(-y, y, 1.0f)};
    }
    // x sigmoid(u): u is x, or twice the argument of tanh.
    float u = x, u_slope = 1.0f;
    if (act == 2) {
        constexpr float kTwice = 1.59576912160573071f, kCube = 0.044715f;
        u = kTwice * fmaf(kCube * x * x, x, x);
        u_slope = kTwice * fmaf(3.0f * kCube * x, x, 1.0f);
    }
    const float sigma = sigmoid(u), value = x * sigma;
    return {value, fmaf(value * (1.0f - sigma), u_slope, sigma)};
}
