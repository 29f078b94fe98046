// Shuffles, votes, reductions, atomics and shared memory.

#include "check.hpp"
#include "stats.hpp"

namespace simt {

uint64_t shuffle(uint64_t bits, uint32_t source, int line) {
    Thread* thread = current_thread();
    Warp* warp = thread->warp;
    Slot& own = warp->slots[thread->index % kWarpSize];
    own.in = bits;
    own.source = source;
    if (meet(thread, Op::kShuffle, 0, line, SIMT_CALLER)) {
        for (Slot& slot : warp->slots) slot.out = warp->slots[slot.source].in;
        release_warp(thread);
    }
    return own.out;
}

uint32_t ballot(bool predicate, int line) {
    Thread* thread = current_thread();
    Warp* warp = thread->warp;
    Slot& own = warp->slots[thread->index % kWarpSize];
    own.in = predicate;
    if (meet(thread, Op::kBallot, 0, line, SIMT_CALLER)) {
        uint64_t mask = 0;
        for (uint32_t lane = 0; lane < kWarpSize; lane++) mask |= warp->slots[lane].in << lane;
        for (Slot& slot : warp->slots) slot.out = mask;
        release_warp(thread);
    }
    return static_cast<uint32_t>(own.out);
}

namespace {

uint64_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(uint64_t bits) {
    const auto low = static_cast<uint32_t>(bits);
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}

}  // namespace

float reduce(float value, Reduction reduction, int line) {
    Thread* thread = current_thread();
    Warp* warp = thread->warp;
    Slot& own = warp->slots[thread->index % kWarpSize];
    own.in = bits_of(value);
    if (meet(thread, Op::kReduce, reduction, line, SIMT_CALLER)) {
        // The butterfly of ptx.cuh, step by step: the same sums in the same order.
        float x[kWarpSize], y[kWarpSize];
        for (uint32_t lane = 0; lane < kWarpSize; lane++) x[lane] = float_of(warp->slots[lane].in);
        const bool is_sum = reduction == kWarpSum || reduction == kQuadSum;
        const bool is_warp = reduction == kWarpSum || reduction == kWarpMax;
        for (uint32_t distance = is_warp ? 16 : 2; distance > 0; distance >>= 1) {
            for (uint32_t lane = 0; lane < kWarpSize; lane++) {
                const float other = x[lane ^ distance];
                y[lane] = is_sum ? x[lane] + other : fmaxf(x[lane], other);
            }
            memcpy(x, y, sizeof x);
        }
        for (uint32_t lane = 0; lane < kWarpSize; lane++) warp->slots[lane].out = bits_of(x[lane]);
        release_warp(thread);
    }
    return float_of(own.out);
}

// ---- shared memory ----

unsigned char* dynamic_smem() { return current_worker()->dynamic_smem; }

void* static_smem(const void* site, size_t bytes) {
    Worker& worker = *current_worker();
    for (uint32_t i = 0; i < worker.static_smem_count; i++) {
        if (worker.static_smem[i].site == site) return worker.static_smem[i].begin;
    }
    const uint32_t counted = static_cast<uint32_t>(bytes + 15) & ~15u;
    if (bytes > kMaxSmemBytes || worker.static_smem_bytes + counted + worker.dynamic_smem_bytes > kMaxSmemBytes) {
        fail(SIMT_CALLER, "too much shared memory: %u bytes static and %u dynamic, a block has %u",
             worker.static_smem_bytes + counted, worker.dynamic_smem_bytes, kMaxSmemBytes);
    }
    if (worker.static_smem_count == kMaxStaticSmem) {
        fail(SIMT_CALLER, "more than %u STATIC_SMEM arrays in a kernel", kMaxStaticSmem);
    }
    StaticSmem& array = worker.static_smem[worker.static_smem_count++];
    array = {site, worker.smem + worker.static_smem_end, bytes};
    worker.static_smem_bytes += counted;
    worker.static_smem_end += static_cast<uint32_t>((bytes + kStaticGap - 1) / kStaticGap * kStaticGap + kStaticGap);
    memset(array.begin, 0xff, worker.smem + worker.static_smem_end - array.begin);
    if (worker.check) static_smem_declared(worker, array);
    return array.begin;
}

uint32_t smem_offset(const void* shared) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - current_worker()->smem);
}

// ---- copies that land later ----

namespace {

void grow(Thread& thread) {
    CopyQueue& queue = thread.copies;
    thread.worker->uninterruptible++;
    const uint32_t capacity = queue.capacity == 0 ? 32 : 2 * queue.capacity;
    auto entries = static_cast<PendingCopy*>(::operator new(capacity * sizeof(PendingCopy), std::align_val_t{16}));
    if (queue.entries != nullptr) {
        memcpy(static_cast<void*>(entries), queue.entries, queue.capacity * sizeof(PendingCopy));
        ::operator delete(queue.entries, std::align_val_t{16});
    }
    queue.entries = entries;
    queue.capacity = capacity;
    thread.worker->uninterruptible--;
}

}  // namespace

void cp_async16(void* shared, const void* global, bool valid) {
    Thread* thread = current_thread();
    Worker& worker = *thread->worker;
    auto to = static_cast<unsigned char*>(shared);
    if (__builtin_expect(((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) & 15) != 0, 0)) {
        char place[200];
        describe_shared(worker, shared, place, sizeof place);
        fail(SIMT_CALLER, "misaligned cp_async16: from %p to %s; both must be multiples of 16", global, place);
    }
    if (__builtin_expect(static_cast<size_t>(to - worker.smem) >= kSmemWindow, 0)) {
        char place[200];
        describe_shared(worker, shared, place, sizeof place);
        fail(SIMT_CALLER, "illegal cp_async16 to %s", place);
    }
    // The call that a trap below is attributed to.
    thread->pc = SIMT_CALLER;
    if (worker.check) cp_async_issued(*thread, to, global, valid, SIMT_CALLER);
    if (worker.stats) {
        if (valid) count_access(*thread, global, 16, SIMT_CALLER);
        count_access(*thread, shared, 16, SIMT_CALLER);
    }
    CopyQueue& queue = thread->copies;
    if (queue.begin == queue.end) queue.begin = queue.end = 0;
    if (queue.end == queue.capacity) {
        if (queue.begin > 0) {
            memmove(static_cast<void*>(queue.entries), queue.entries + queue.begin,
                    (queue.end - queue.begin) * sizeof(PendingCopy));
            queue.end -= queue.begin;
            queue.begin = 0;
        } else {
            grow(*thread);
        }
    }
    PendingCopy& copy = queue.entries[queue.end++];
    copy.to = to;
    copy.group = queue.group;
    // Read now, so that a trap names the line of the copy; the source must not be written meanwhile anyway.
    if (valid) {
        memcpy(copy.data, global, 16);
    } else {
        memset(copy.data, 0, 16);
    }
    memset(to, 0xff, 16);
}

void cp_async_commit() { current_thread()->copies.group++; }

void cp_async_wait(int pending) {
    Thread* thread = current_thread();
    CopyQueue& queue = thread->copies;
    // Group numbers below this have landed after the call.
    const uint32_t landed =
        queue.group > static_cast<uint32_t>(pending) ? queue.group - static_cast<uint32_t>(pending) : 0;
    const bool checks = thread->worker->check;
    while (queue.begin < queue.end && queue.entries[queue.begin].group < landed) {
        const PendingCopy& copy = queue.entries[queue.begin++];
        memcpy(copy.to, copy.data, 16);
        if (checks) cp_async_landed(*thread, copy.to, SIMT_CALLER);
    }
}

void misaligned(const void* address, uint32_t bytes) {
    fail(SIMT_CALLER, "misaligned %u-byte access at %p; the address must be a multiple of %u", bytes, address, bytes);
}

// ---- atomics ----

uint32_t atomic_add32(void* address, uint32_t value) {
    Thread* thread = current_thread();
    const char* pc = SIMT_CALLER;
    if ((reinterpret_cast<uintptr_t>(address) & 3) != 0) fail(pc, "misaligned atomicAdd at %p", address);
    if (thread->worker->policy != Policy::kFixed) maybe_yield(thread);
    if (thread->worker->check) check_atomic(*thread, address, 4, pc);
    if (thread->worker->stats) count_access(*thread, address, 4, pc);
    thread->pc = pc;
    const uint32_t before = __atomic_fetch_add(static_cast<uint32_t*>(address), value, __ATOMIC_RELAXED);
    if (thread->worker->policy != Policy::kFixed) maybe_yield(thread);
    return before;
}

uint64_t atomic_add64(void* address, uint64_t value) {
    Thread* thread = current_thread();
    const char* pc = SIMT_CALLER;
    if ((reinterpret_cast<uintptr_t>(address) & 7) != 0) fail(pc, "misaligned atomicAdd at %p", address);
    if (thread->worker->policy != Policy::kFixed) maybe_yield(thread);
    if (thread->worker->check) check_atomic(*thread, address, 8, pc);
    if (thread->worker->stats) count_access(*thread, address, 8, pc);
    thread->pc = pc;
    const uint64_t before = __atomic_fetch_add(static_cast<uint64_t*>(address), value, __ATOMIC_RELAXED);
    if (thread->worker->policy != Policy::kFixed) maybe_yield(thread);
    return before;
}

void fence() {
    Thread* thread = current_thread();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (thread->worker->check) fenced(*thread);
}

}  // namespace simt
