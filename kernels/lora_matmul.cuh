// Shared code of the lora_matmul kernels: the tables that map rows to adapters, and the dropout mask.
//
// Names: x [rows, in_features] and y [rows, out_features] are the input and output of the layer, W
// [out_features, in_features] its frozen weight, A [r, in_features] and B [out_features, r] the factors of an
// adapter. B is stored transposed, [r, out_features]: then both factors are [r, features], rows beyond r are
// not loaded, and a rank of 7 needs no padding in memory. The number of features is a multiple of 8, so that
// rows are a multiple of 16 bytes. xa = scaling * dropout(x) A^T and dxa = scaling * dy B are [rows, stride]
// with rank_stride columns for each layer of the launch (r rounded up to 16, the rest 0).
#pragma once

#include "common/simt.cuh"

// One adapter's factor of one layer: A, or B transposed.
struct LoraFactor {
    const bf16* value;  // [r, features]; null if the layer has no adapter
    float* grad;        // [r, features], added to; null if it is not trained
    int32_t r;          // rank
    float scaling;      // alpha / r, or alpha / sqrt(r)
};

// Consecutive rows that go through one adapter. Runs ascend; empty ones are skipped, so a table has a fixed capacity.
struct LoraRun {
    int32_t row_start;  // first row
    int32_t row_end;    // one past the last row
    int32_t adapter;    // index into the factor tables
    int32_t reserved;   // 0
};

// Dropout on the adapters' input. The mask is a function of the layer's key, the row's sample and position, and the column.
struct LoraDropout {
    const uint32_t* row_keys;  // [rows, 2]: sample, position
    uint32_t threshold;        // drop probability in units of 1/65536
    float keep;                // 1 / (1 - p)
};

// The key of a layer's masks in one optimizer step: two words in device memory, so that a captured step can be replayed.
struct DropoutKey {
    uint32_t word[2];  // first half of philox(seed, step, layer)
};

// Columns of one stretch of 128 share Philox calls: column c of stretch s takes 16-bit number c / 16 of call 16 * s + c % 16.
constexpr int kMaskColumns = 128;

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) for the counter (call, position, sample, 0).
DEVICE void dropout_bits(uint32_t (&word)[4], DropoutKey key, uint32_t call, const uint32_t* row_key) {
    const Vec8 row = load8(row_key);
    uint32_t c0 = call, c1 = row.word[1], c2 = row.word[0], c3 = 0;
    uint32_t k0 = key.word[0], k1 = key.word[1];
    UNROLL for (int round = 0; round < 10; round++) {
        const uint32_t high0 = mul_hi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        const uint32_t high1 = mul_hi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

// One bit per 16-bit number of a call, set where the element stays: bit c / 16.
DEVICE uint32_t dropout_kept(DropoutKey key, uint32_t call, const uint32_t* row_key, uint32_t threshold) {
    uint32_t word[4];
    dropout_bits(word, key, call, row_key);
    uint32_t kept = 0;
    UNROLL for (int i = 0; i < 4; i++) {
        kept |= ((word[i] & 0xffffu) >= threshold ? 1u : 0u) << (2 * i);
        kept |= ((word[i] >> 16) >= threshold ? 1u : 0u) << (2 * i + 1);
    }
    return kept;
}

// The factor that applies to `row`, or null.
DEVICE const LoraFactor* factor_of_row(const LoraRun* runs, int num_runs, const LoraFactor* factors, int row) {
    for (int i = 0; i < num_runs; i++) {
        if (row >= runs[i].row_start && row < runs[i].row_end) {
            return factors[runs[i].adapter].r > 0 ? &factors[runs[i].adapter] : nullptr;
        }
    }
    return nullptr;
}
