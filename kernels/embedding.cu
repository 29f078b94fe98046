// Embedding lookup: y[t, :] = table[ids[t], :].
//
// A block copies one row, 16 bytes per thread and pass. The host has checked the ids (Batch::validate).
#include "common/rows.cuh"
#include "common/simt.cuh"

// Parameters of embedding_bf16.
struct EmbeddingParams {
    const bf16* table;         // [vocab_size, cols]
    const uint32_t* ids;       // [rows], below vocab_size
    bf16* y;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

KERNEL(embedding_bf16, EmbeddingParams, 128, 12) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    copy_row(p.y + row * p.cols, p.table + static_cast<int64_t>(p.ids[row]) * p.cols, p.cols);
}
