// The counters of shared and global memory traffic.
//
// Shared memory: 32 banks of 4 bytes; one pass serves any words in different banks, and lanes that read one word share
// it. Accesses of up to 4 bytes go together for the whole warp, 8 bytes by half warps, 16 bytes (and ldmatrix) by
// quarter warps. Global memory: a warp's access costs the 32-byte sectors that it touches. This is the textbook model,
// not the hardware.
//
// Lanes run one after another here, so an access of the warp is assembled afterwards: the n-th access of
// every lane at one place since the last rendezvous.

#include "stats.hpp"

#include <algorithm>

#include "memory.hpp"

namespace simt {
namespace {

constexpr uint32_t kSector = 32;

// Passes over the banks for the words of some lanes.
uint32_t passes(const uint64_t* words, uint32_t count) {
    uint32_t per_bank[32] = {}, most = 0;
    for (uint32_t i = 0; i < count; i++) {
        bool is_new = true;
        for (uint32_t j = 0; j < i && is_new; j++) is_new = words[j] != words[i];
        if (is_new) most = std::max(most, ++per_bank[words[i] % 32]);
    }
    return most;
}

void count_shared(const Group& group, uint32_t bytes, const unsigned char* smem, Counts& counts) {
    const uint32_t at_once = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    for (uint32_t first = 0; first < kWarpSize; first += at_once) {
        uint64_t words[kWarpSize];
        uint32_t count = 0;
        for (uint32_t lane = first; lane < first + at_once; lane++) {
            if ((group.lanes >> lane & 1) == 0) continue;
            const uint64_t offset = group.address[lane] - reinterpret_cast<uint64_t>(smem);
            for (uint64_t word = offset / 4; word <= (offset + bytes - 1) / 4 && count < kWarpSize; word++)
                words[count++] = word;
        }
        if (count == 0) continue;
        counts.wavefronts += passes(words, count);
        // At most 32 words, which could all lie in different banks.
        counts.ideal_wavefronts++;
    }
}

void count_global(const Group& group, uint32_t bytes, Counts& counts) {
    uint64_t begins[kWarpSize];
    uint32_t count = 0;
    for (uint32_t lane = 0; lane < kWarpSize; lane++) {
        if (group.lanes >> lane & 1) begins[count++] = group.address[lane];
    }
    counts.global_bytes += static_cast<uint64_t>(count) * bytes;
    std::sort(begins, begins + count);
    uint64_t covered = 0, distinct = 0, next_sector = 0, sectors = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t begin = std::max(begins[i], covered), end = begins[i] + bytes;
        if (end <= begin) continue;
        distinct += end - begin;
        covered = end;
        const uint64_t first = std::max(begin / kSector, next_sector), last = (end - 1) / kSector;
        if (last >= first) {
            sectors += last - first + 1;
            next_sector = last + 1;
        }
    }
    counts.sectors += sectors;
    counts.ideal_sectors += (distinct + kSector - 1) / kSector;
}

void count_group(Worker& worker, const Site& site, const Group& group) {
    Counts& counts = worker.statistics->places[site.pc];
    if (site.is_shared) {
        count_shared(group, site.bytes, worker.smem, counts);
    } else {
        count_global(group, site.bytes, counts);
    }
}

// Accesses of one place may differ in size and memory (a copy reads global and writes shared memory).
const void* key_of(const void* pc, uint32_t bytes, bool is_shared) {
    const uint64_t mixed =
        reinterpret_cast<uint64_t>(pc) ^ static_cast<uint64_t>(bytes) << 56 ^ static_cast<uint64_t>(is_shared) << 55;
    return reinterpret_cast<const void*>(mixed);
}

}  // namespace

void count_access(Thread& thread, const void* address, uint32_t bytes, const void* pc) {
    Worker& worker = *thread.worker;
    const auto at = static_cast<const unsigned char*>(address);
    const bool is_shared = static_cast<size_t>(at - worker.smem) < kSmemWindow;
    if (!is_shared && allocation_at(address) == nullptr) return;
    worker.uninterruptible++;
    Statistics& statistics = *worker.statistics;
    const uint32_t warp = thread.warp->index, lane = thread.index % kWarpSize;
    std::vector<Site>& sites = statistics.sites[warp];
    const auto [entry, is_new] =
        statistics.index[warp].try_emplace(key_of(pc, bytes, is_shared), static_cast<uint32_t>(sites.size()));
    if (is_new) sites.push_back({pc, bytes, is_shared, {}, {}});
    Site& site = sites[entry->second];
    const uint32_t n = site.seen[lane]++;
    if (n >= site.groups.size()) site.groups.resize(n + 1);
    Group& group = site.groups[n];
    group.lanes |= thread.lane_bit;
    group.address[lane] = reinterpret_cast<uint64_t>(address);
    worker.uninterruptible--;
}

void count_mma(Worker& worker, uint64_t tiles, const void* pc) {
    worker.uninterruptible++;
    worker.statistics->places[pc].mma += tiles;
    worker.uninterruptible--;
}

void lanes_met(Worker& worker, uint32_t warp) {
    worker.uninterruptible++;
    for (Site& site : worker.statistics->sites[warp]) {
        for (const Group& group : site.groups) count_group(worker, site, group);
        site.groups.clear();
        memset(site.seen, 0, sizeof site.seen);
    }
    worker.uninterruptible--;
}

void collect_counts(Machine& machine, Worker& worker) {
    for (const auto& [pc, counts] : worker.statistics->places) machine.counts.push_back({worker.kernel, pc, counts});
    worker.statistics->places.clear();
    for (uint32_t warp = 0; warp < kMaxWarps; warp++) {
        worker.statistics->sites[warp].clear();
        worker.statistics->index[warp].clear();
    }
}

}  // namespace simt
