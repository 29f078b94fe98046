// The record of the checks for a piece of memory: the latest writer and the readers since.
#pragma once

#include <stdint.h>

namespace simt {

// Times are a thread's own: the syncs of its warp so far, and in the low bits its fences so far.
constexpr uint32_t kFenceBits = 10;
constexpr uint32_t kMostFences = (1u << kFenceBits) - 1;
constexpr uint32_t kMostSyncs = (1u << (32 - kFenceBits)) - 1;

enum CellFlag : uint8_t {
    // The bytes of this word have cells of their own.
    kSplit = 1,
    // A copy of cp_async16 to here is in flight.
    kInFlight = 2,
    // Written by an atomic; by several threads of the block at once, and then `write_time` counts block barriers.
    kAtomicWrite = 4,
    kManyWriters = 8,
    // Read by more than one warp since the latest block barrier.
    kManyReaders = 16,
    // Read by other blocks of the launch, before the reader on record.
    kOtherBlocksRead = 32,
};

struct Cell {
    // The block that wrote, counted over all launches of the process (0: none), and the time.
    uint32_t write_block;
    uint32_t write_time;
    // The places in the code, relative to the runtime.
    int32_t write_pc;
    int32_t read_pc;
    // The block that read last since, which lanes of which warp, and when.
    uint32_t read_block;
    uint32_t read_time;
    uint32_t read_lanes;
    uint16_t writer;
    uint8_t read_warp;
    uint8_t flags;
};
static_assert(sizeof(Cell) == 32, "two cells per cache line");

}  // namespace simt
