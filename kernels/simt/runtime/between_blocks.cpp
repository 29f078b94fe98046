// Ordering between blocks of one launch: an atomic operation after a fence in one block, and a fence after an
// atomic operation in the other.
//
// "The last block adds up": every block writes its part, fences, and takes a ticket with atomicAdd; the block with the
// last ticket fences and reads all parts. Without the fences the parts may arrive after the ticket. A fence covers what
// comes before it: the thread's own accesses, those of its warp before a sync, and those of the block before a barrier.

#include "checker.hpp"

namespace simt {

void reset_fences(Checker& checker, const Worker& worker) {
    if (checker.has_fences) {
        memset(checker.fence_time, 0, sizeof checker.fence_time);
        memset(checker.published_time, 0, sizeof checker.published_time);
        memset(checker.published_syncs, 0, sizeof checker.published_syncs);
    }
    memset(checker.interval_start, 0, worker.warps * sizeof(uint32_t));
    checker.has_fences = checker.has_fences_in_interval = false;
    checker.published_intervals = 0;
    checker.barriers = 0;
    checker.acquired.clear();
    for (const uint32_t thread : checker.has_pending) checker.pending[thread].clear();
    checker.has_pending.clear();
}

void barrier_publishes(Checker& checker, const Worker& worker) {
    checker.barriers++;
    if (checker.has_fences_in_interval) {
        memcpy(checker.published_syncs, checker.interval_start, sizeof checker.published_syncs);
        memcpy(checker.published_time, checker.fence_time, sizeof checker.published_time);
        checker.published_intervals = checker.barriers;
        checker.has_fences_in_interval = false;
    }
    for (uint32_t i = 0; i < worker.warps; i++) checker.interval_start[i] = worker.warp[i].syncs_at_barrier;
}

void fenced(Thread& thread) {
    Checker& checker = *thread.worker->checker;
    if (thread.fences < kMostFences) thread.fences++;
    checker.has_fences = checker.has_fences_in_interval = true;
    checker.fence_time[thread.index] = time_of(thread);
    checker.fence_interval[thread.index] = checker.barriers;
    checker.fence_syncs[thread.index] = thread.warp->syncs;
    std::vector<Checker::Pending>& pending = checker.pending[thread.index];
    if (pending.empty()) return;
    thread.worker->uninterruptible++;
    for (const Checker::Pending& p : pending) {
        checker.acquired.push_back({p.location, p.address, p.count, thread.index, time_of(thread)});
    }
    pending.clear();
    thread.worker->uninterruptible--;
}

namespace {

Release released_by(const Checker& checker, const Thread& thread) {
    const Worker& worker = *thread.worker;
    Release release{checker.block, checker.published_intervals, std::vector<uint32_t>(worker.threads)};
    const bool fenced_here =
        checker.fence_time[thread.index] != 0 && checker.fence_interval[thread.index] == checker.barriers;
    const auto raise = [&](uint32_t index, uint32_t time) {
        if (release.bound[index] < time) release.bound[index] = time;
    };
    for (uint32_t i = 0; i < worker.threads; i++) {
        raise(i, checker.published_time[i]);
        raise(i, checker.published_syncs[i / kWarpSize] << kFenceBits);
        if (fenced_here) raise(i, checker.interval_start[i / kWarpSize] << kFenceBits);
    }
    const uint32_t first = thread.warp->index * kWarpSize;
    for (uint32_t i = first; i < first + kWarpSize; i++) {
        if (fenced_here) raise(i, checker.fence_syncs[thread.index] << kFenceBits);
        // A fence of another lane counts if a sync of the warp lies between it and now.
        const bool counts = i == thread.index || checker.fence_time[i] >> kFenceBits < thread.warp->syncs;
        if (counts) raise(i, checker.fence_time[i]);
    }
    if (fenced_here && release.intervals < checker.barriers) release.intervals = checker.barriers;
    return release;
}

}  // namespace

void atomic_synchronises(Checker& checker, Thread& thread, const void* address) {
    // Atomics without fences (counting into bins) order nothing and cost nothing here.
    const bool knows = !checker.locations.empty();
    if (!checker.has_fences && !knows) return;
    thread.worker->uninterruptible++;
    if (knows) {
        const auto found = checker.locations.find(address);
        if (found != checker.locations.end()) {
            if (checker.pending[thread.index].empty()) checker.has_pending.push_back(thread.index);
            checker.pending[thread.index].push_back({&found->second, address, found->second.releases.size()});
        }
    }
    if (checker.has_fences) {
        Release release = released_by(checker, thread);
        for (const uint32_t bound : release.bound) {
            if (bound == 0) continue;
            checker.locations[address].releases.push_back(std::move(release));
            break;
        }
    }
    thread.worker->uninterruptible--;
}

bool block_comes_before(const Checker& checker, const Thread& thread, const Cell& cell, bool is_write,
                        const void* address) {
    const uint32_t block = is_write ? cell.write_block : cell.read_block;
    for (const Acquired& acquired : checker.acquired) {
        if (!comes_before(*thread.worker, acquired.thread, acquired.time, thread) &&
            !(acquired.thread == thread.index)) {
            continue;
        }
        for (size_t i = 0; i < acquired.count; i++) {
            const Release& release = acquired.location->releases[i];
            if (release.block != block) continue;
            // The atomic operation itself is part of what it releases.
            if (is_write && (cell.flags & kAtomicWrite) != 0 && acquired.address == address) return true;
            if (is_write && (cell.flags & kManyWriters) != 0) {
                if (cell.write_time < release.intervals) return true;
                continue;
            }
            const uint32_t who =
                is_write ? cell.writer
                         : cell.read_warp * kWarpSize + static_cast<uint32_t>(__builtin_ctz(cell.read_lanes));
            const uint32_t time = is_write ? cell.write_time : cell.read_time;
            if (who < release.bound.size() && time < release.bound[who]) return true;
        }
    }
    return false;
}

}  // namespace simt
