// The counters: accesses of a kernel to shared and global memory, against the minimum for the same bytes.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "state.hpp"

namespace simt {

// An access of a warp: the n-th access of each lane at one place since the last rendezvous.
struct Group {
    uint32_t lanes;
    uint64_t address[kWarpSize];
};

struct Site {
    const void* pc;
    uint32_t bytes;
    bool is_shared;
    uint32_t seen[kWarpSize];
    std::vector<Group> groups;
};

struct Statistics {
    std::vector<Site> sites[kMaxWarps];
    std::unordered_map<const void*, uint32_t> index[kMaxWarps];
    std::unordered_map<const void*, Counts> places;
};

void count_access(Thread& thread, const void* address, uint32_t bytes, const void* pc);
void count_mma(Worker& worker, uint64_t tiles, const void* pc);
// A rendezvous: later accesses do not belong to earlier ones.
void lanes_met(Worker& worker, uint32_t warp);
// Moves the sums of a launch to the machine.
void collect_counts(Machine& machine, Worker& worker);

}  // namespace simt
