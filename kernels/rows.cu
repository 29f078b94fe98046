// Gather and scatter-add of rows: y[i, :] = x[index[i], :] and x[index[i], :] += y[i, :].
//
// A block has one row of the index, whose rows are distinct, so no two blocks write the same elements. The
// number of rows is the length of the index, not of the tensors.
#include "common/simt.cuh"
#include "common/rows.cuh"

// Parameters of rows_gather_bf16.
struct RowsGatherParams {
    const bf16* x;             // [any, at least cols]
    const uint32_t* index;     // [rows], rows of x
    bf16* y;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // entries of index there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
    int32_t x_stride;          // elements from a row of x to the next
    int32_t reserved;          // 0
};

// Parameters of rows_scatter_add_bf16.
struct RowsScatterAddParams {
    const bf16* y;             // [rows, cols]
    const uint32_t* index;     // [rows], rows of x
    bf16* x;                   // [any, at least cols], added to
    const int32_t* live_rows;  // entries of index there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
    int32_t x_stride;          // elements from a row of x to the next
    int32_t reserved;          // 0
};

KERNEL(rows_gather_bf16, RowsGatherParams, 128, 12) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    copy_row(p.y + row * p.cols, p.x + static_cast<int64_t>(p.index[row]) * p.x_stride, p.cols);
}

KERNEL(rows_scatter_add_bf16, RowsScatterAddParams, 128, 12) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const bf16* const from = p.y + row * p.cols;
    bf16* const to = p.x + static_cast<int64_t>(p.index[row]) * p.x_stride;
    UNROLL_2 for (int column = threadIdx.x * 8; column < p.cols; column += 128 * 8) {
        store16(to + column, add_pieces(load16(to + column), load16_constant(from + column)));
    }
}
