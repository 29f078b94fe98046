// What the checks remember of a piece of memory: the latest writer and the readers since.
#pragma once

#include <stdint.h>

namespace simt {

struct Cell {
    // The block that wrote, counted over all launches of the process (0: nobody), and when by its own count.
    uint32_t write_block;
    uint32_t write_time;
    // Return address, relative to the runtime.
    int32_t write_pc;
    // The blocks that read since.
    uint32_t read_block;
    uint32_t read_time;
    uint32_t read_lanes;
    int32_t read_pc;
    uint16_t writer;
    uint8_t read_warp;
    uint8_t flags;
};
static_assert(sizeof(Cell) == 32, "two cells per cache line");

}  // namespace simt
