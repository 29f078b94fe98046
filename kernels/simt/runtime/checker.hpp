// The state of the checks of one worker.
#pragma once

#include <unordered_map>
#include <vector>

#include "cell.hpp"
#include "check.hpp"

namespace simt {

// Cells of consecutive memory. `written` has one bit per byte.
struct Shadow {
    unsigned char* begin;
    uint8_t* written;
    Cell* words;
    Cell* bytes;
    bool is_shared;
};

// What a block had published when one of its threads did an atomic operation after a fence: accesses of thread u before
// bound[u].
struct Release {
    uint32_t block;
    // Barrier intervals whose atomics by many threads are covered.
    uint32_t intervals;
    std::vector<uint32_t> bound;
};

// An address that blocks meet at by atomic operations; its releases in order.
struct Location {
    std::vector<Release> releases;
};

// A thread has read an atomic and fenced afterwards: the first `count` releases happened before what it does from then
// on.
struct Acquired {
    const Location* location;
    const void* address;
    size_t count;
    uint32_t thread;
    uint32_t time;
};

struct Checker {
    // Blocks by a count over the whole process: of this launch's first, and the running one.
    uint32_t first_block;
    uint32_t block;
    // Block barriers so far in this block.
    uint32_t barriers;
    Shadow shared;

    // Fences of this block, by thread: own time after the latest one, and its barrier interval and warp syncs.
    bool has_fences, has_fences_in_interval;
    uint32_t fence_time[kMaxThreads];
    uint32_t fence_interval[kMaxThreads];
    uint32_t fence_syncs[kMaxThreads];
    // Warp syncs at the start of this barrier interval, and of the one with the latest fences before it.
    uint32_t interval_start[kMaxWarps];
    uint32_t published_syncs[kMaxWarps];
    uint32_t published_time[kMaxThreads];
    uint32_t published_intervals;

    // Atomics that a thread has done since its latest fence and that others released at.
    struct Pending {
        const Location* location;
        const void* address;
        size_t count;
    };
    std::vector<Pending> pending[kMaxThreads];
    std::vector<uint32_t> has_pending;
    std::vector<Acquired> acquired;
    std::unordered_map<const void*, Location> locations;
};

// The time of a thread, for cells.
inline uint32_t time_of(const Thread& thread) { return thread.warp->syncs << kFenceBits | thread.fences; }

// True if the accesses of thread `other` of this block at `time` come before those of `thread` now: in
// program order, by a sync of their warp, or by a barrier of the block.
inline bool comes_before(const Worker& worker, uint32_t other, uint32_t time, const Thread& thread) {
    if (other == thread.index) return true;
    const Warp& warp = worker.warp[other / kWarpSize];
    return time >> kFenceBits < (&warp == thread.warp ? warp.syncs : warp.syncs_at_barrier);
}

enum class Access { kRead, kWrite, kAtomic };

// Checks one access of a kernel. Ends the launch if it is invalid.
void check_access(Thread& thread, const void* address, uint32_t bytes, Access access, const void* pc);

// ---- between_blocks.cpp ----
void reset_fences(Checker& checker, const Worker& worker);
void barrier_publishes(Checker& checker, const Worker& worker);
// True if an access of another block of this launch comes before those of `thread` now.
bool block_comes_before(const Checker& checker, const Thread& thread, const Cell& cell, bool is_write,
                        const void* address);
void atomic_synchronises(Checker& checker, Thread& thread, const void* address);

// Places in the code as 32 bits: relative to a function of the runtime.
int32_t pack_pc(const void* pc);
const void* unpack_pc(int32_t packed);

}  // namespace simt
