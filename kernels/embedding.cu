// Embedding lookup: y[t, :] = table[ids[t], :], plus rows of the tables of token types and positions where there are such.
//
// A block makes one row, 16 bytes per thread and pass. Sums are f32, rounded once. The host has checked the ids
// (Batch::validate).
#include "common/rows.cuh"
#include "common/simt.cuh"

// Parameters of embedding_bf16.
struct EmbeddingParams {
    const bf16* table;         // [vocab_size, cols]
    const uint32_t* ids;       // [rows], below vocab_size
    const bf16* types;         // [any, cols]; null: none
    const uint32_t* type_ids;  // [rows], rows of types
    const bf16* positions;     // [any, cols]; null: none
    const uint32_t* position_ids;  // [rows], rows of positions
    bf16* y;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

KERNEL(embedding_bf16, EmbeddingParams, 128, 12) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const bf16* const table = p.table + static_cast<int64_t>(p.ids[row]) * p.cols;
    if (p.types == nullptr && p.positions == nullptr) return copy_row(p.y + row * p.cols, table, p.cols);
    const bf16* const type = p.types != nullptr ? p.types + static_cast<int64_t>(p.type_ids[row]) * p.cols : nullptr;
    const bf16* const position =
        p.positions != nullptr ? p.positions + static_cast<int64_t>(p.position_ids[row]) * p.cols : nullptr;
    NO_UNROLL for (int column = threadIdx.x * 8; column < p.cols; column += 128 * 8) {
        const Vec16 x = load16_constant(table + column);
        const Vec16 t = type != nullptr ? load16_constant(type + column) : zero16();
        const Vec16 at = position != nullptr ? load16_constant(position + column) : zero16();
        Vec16 y;
        UNROLL for (int i = 0; i < 4; i++) {
            y.word[i] = pack_bf16(low_of(x, i) + low_of(t, i) + low_of(at, i), high_of(x, i) + high_of(t, i) + high_of(at, i));
        }
        store16(p.y + row * p.cols + column, y);
    }
}
