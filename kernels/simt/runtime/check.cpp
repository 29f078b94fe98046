// The checks of instrumented kernels: bounds, alignment, unwritten reads, copies in flight, races.
//
// Every access is compared with the record of its bytes: the latest writer and the readers since. Two
// accesses are in order if one thread makes both, or if a barrier (or, within a warp, a __syncwarp) lies
// between them; shuffles, ldmatrix and mma order nothing, as CUDA specifies. So a missing barrier is found in
// every schedule, also where the values happen to be right. Records are kept by words of 4 bytes; a word
// whose parts are accessed separately gets a record for each byte.

#include "check.hpp"

#include <link.h>
#include <stdio.h>
#include <sys/mman.h>

#include "checker.hpp"
#include "memory.hpp"

namespace simt {
namespace {

std::atomic<uint32_t> blocks_run{0};

void* map_zeros(size_t bytes) {
    void* begin = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return begin == MAP_FAILED ? nullptr : begin;
}

const char* verb(Access access) {
    switch (access) {
        case Access::kRead: return "read";
        case Access::kWrite: return "write";
        default: return "atomic";
    }
}

void describe_place(const Worker& worker, const Shadow& shadow, const void* address, char* text, size_t size) {
    if (shadow.is_shared) {
        describe_shared(worker, address, text, size);
    } else {
        describe_address(address, text, size);
    }
}

[[noreturn]] void report_race(const Thread& thread, const Shadow& shadow, const Cell& cell, bool with_writer,
                              Access access, const void* address, const void* pc) {
    const Worker& worker = *thread.worker;
    char place[200];
    describe_place(worker, shadow, address, place, sizeof place);
    const uint32_t block = with_writer ? cell.write_block : cell.read_block;
    const void* other_pc = unpack_pc(with_writer ? cell.write_pc : cell.read_pc);
    const char* what = with_writer ? (cell.flags & kAtomicWrite) != 0 ? "atomic" : "write" : "read";
    if (block != worker.checker->block) {
        fail(pc,
             "race between blocks: this %s and the %s of another block at <pc:%p>, at %s; blocks are ordered only by "
             "an atomic "
             "with __threadfence before it in the one and after it in the other",
             verb(access), what, other_pc, place);
    }
    const uint32_t warp = with_writer ? cell.writer / kWarpSize : cell.read_warp;
    char who[64];
    if (with_writer && (cell.flags & kManyWriters) != 0) {
        snprintf(who, sizeof who, "several threads");
    } else {
        const uint32_t lanes = with_writer ? 1u << cell.writer % kWarpSize : cell.read_lanes & ~thread.lane_bit;
        const uint32_t others = lanes != 0 ? lanes : cell.read_lanes;
        snprintf(who, sizeof who, "thread %u", warp * kWarpSize + static_cast<uint32_t>(__builtin_ctz(others)));
    }
    fail(pc, "race: this %s and the %s of %s at <pc:%p>, at %s, with no %s between them", verb(access), what, who,
         other_pc, place, warp == thread.warp->index ? "__syncwarp or __syncthreads" : "__syncthreads");
}

// The rules for one record. `first` is the earliest block whose accesses still matter.
inline void check_cell(Thread& thread, const Shadow& shadow, Cell& cell, uint32_t first, Access access,
                       const void* address, const void* pc) {
    const Worker& worker = *thread.worker;
    const Checker& checker = *worker.checker;
    const uint32_t block = checker.block, warp = thread.warp->index;

    if (cell.write_block >= first && !(access == Access::kAtomic && (cell.flags & kAtomicWrite) != 0)) {
        bool in_order;
        if (cell.write_block != block) {
            in_order = block_comes_before(checker, thread, cell, true, address);
        } else if (__builtin_expect((cell.flags & kManyWriters) != 0, 0)) {
            in_order = cell.write_time < checker.barriers;
        } else {
            in_order = comes_before(worker, cell.writer, cell.write_time, thread);
        }
        if (__builtin_expect(!in_order, 0)) report_race(thread, shadow, cell, true, access, address, pc);
    }

    const bool read_in_interval =
        cell.read_block == block && cell.read_time >> kFenceBits >= worker.warp[cell.read_warp].syncs_at_barrier;
    if (access == Access::kRead) {
        if (read_in_interval && cell.read_warp == warp && cell.read_time >> kFenceBits == thread.warp->syncs) {
            cell.read_lanes |= thread.lane_bit;
        } else {
            if (cell.read_block < first) {
                cell.flags &= static_cast<uint8_t>(~kOtherBlocksRead);
            } else if (cell.read_block != block) {
                cell.flags |= kOtherBlocksRead;
            }
            const bool many = read_in_interval && (cell.read_warp != warp || (cell.flags & kManyReaders) != 0);
            cell.flags = static_cast<uint8_t>(many ? cell.flags | kManyReaders : cell.flags & ~kManyReaders);
            cell.read_block = block;
            cell.read_warp = static_cast<uint8_t>(warp);
            cell.read_lanes = thread.lane_bit;
        }
        cell.read_time = time_of(thread);
        cell.read_pc = pack_pc(pc);
        return;
    }

    if (read_in_interval) {
        const bool same_sync = cell.read_warp == warp && cell.read_time >> kFenceBits == thread.warp->syncs;
        if (__builtin_expect((cell.flags & kManyReaders) != 0 || cell.read_warp != warp ||
                                 (same_sync && (cell.read_lanes & ~thread.lane_bit) != 0),
                             0)) {
            report_race(thread, shadow, cell, false, access, address, pc);
        }
    } else if (__builtin_expect(cell.read_block >= first && cell.read_block != block, 0)) {
        if (!block_comes_before(checker, thread, cell, false, address))
            report_race(thread, shadow, cell, false, access, address, pc);
    }
    if (__builtin_expect((cell.flags & kOtherBlocksRead) != 0, 0)) {
        // Which blocks these were is not remembered: without an atomic in between it is a race whichever they were.
        if (cell.read_block >= first && checker.acquired.empty()) {
            cell.read_block = 0;
            report_race(thread, shadow, cell, false, access, address, pc);
        }
    }
    const bool many_writers =
        access == Access::kAtomic && (cell.flags & kAtomicWrite) != 0 && cell.write_block == block &&
        ((cell.flags & kManyWriters) != 0 || !comes_before(worker, cell.writer, cell.write_time, thread));
    cell.flags &= static_cast<uint8_t>(kSplit | kInFlight);
    if (access == Access::kAtomic) cell.flags |= kAtomicWrite;
    if (many_writers) cell.flags |= kManyWriters;
    cell.write_block = block;
    cell.write_time = many_writers ? checker.barriers : time_of(thread);
    cell.write_pc = pack_pc(pc);
    cell.writer = static_cast<uint16_t>(thread.index);
    cell.read_block = 0;
}

[[noreturn]] void report_unwritten(const Thread& thread, const Shadow& shadow, const void* address, uint32_t bytes,
                                   const void* pc) {
    char place[200];
    describe_place(*thread.worker, shadow, address, place, sizeof place);
    fail(pc, "read of %u bytes that were never written, at %s", bytes, place);
}

[[noreturn]] void report_in_flight(const Thread& thread, const Shadow& shadow, const Cell& cell, Access access,
                                   const void* address, const void* pc) {
    char place[200];
    describe_place(*thread.worker, shadow, address, place, sizeof place);
    fail(pc,
         "%s while the cp_async16 of thread %u at <pc:%p> is under way, at %s: a cp_async_wait that covers it, and a "
         "barrier, are missing",
         verb(access), cell.writer, unpack_pc(cell.write_pc), place);
}

// The 4 bytes at word `index`, or those of them in `mask`.
inline void check_word(Thread& thread, const Shadow& shadow, size_t index, uint32_t mask, Access access,
                       const void* address, uint32_t bytes, const void* pc) {
    Cell& cell = shadow.words[index];
    const Checker& checker = *thread.worker->checker;
    const uint32_t first = shadow.is_shared ? checker.block : checker.first_block;
    if (__builtin_expect((cell.flags & kInFlight) != 0, 0)) {
        if (cell.write_block == checker.block) report_in_flight(thread, shadow, cell, access, address, pc);
        cell.flags &= static_cast<uint8_t>(~kInFlight);
    }
    uint8_t& written = shadow.written[index / 2];
    const uint32_t shift = index % 2 * 4;
    if (access == Access::kWrite) {
        written |= static_cast<uint8_t>(mask << shift);
    } else if (__builtin_expect((written >> shift & mask) != mask, 0)) {
        report_unwritten(thread, shadow, address, bytes, pc);
    }
    if (__builtin_expect(mask == 0xf && (cell.flags & kSplit) == 0, 1)) {
        check_cell(thread, shadow, cell, first, access, address, pc);
        return;
    }
    Cell* parts = shadow.bytes + 4 * index;
    if ((cell.flags & kSplit) == 0) {
        for (int i = 0; i < 4; i++) parts[i] = cell;
        cell.flags |= kSplit;
    }
    for (uint32_t i = 0; i < 4; i++) {
        if (mask >> i & 1) check_cell(thread, shadow, parts[i], first, access, address, pc);
    }
    // After a write of the whole word its parts have one history again.
    if (mask == 0xf && access != Access::kRead) cell = parts[0];
}

inline void check_words(Thread& thread, const Shadow& shadow, const unsigned char* at, uint32_t bytes, Access access,
                        const void* pc) {
    auto offset = static_cast<size_t>(at - shadow.begin);
    if (offset % 4 == 0 && bytes % 4 == 0) {
        for (uint32_t i = 0; i < bytes / 4; i++) check_word(thread, shadow, offset / 4 + i, 0xf, access, at, bytes, pc);
        return;
    }
    for (uint32_t left = bytes; left > 0;) {
        const auto within = static_cast<uint32_t>(offset % 4);
        const uint32_t count = left < 4 - within ? left : 4 - within;
        check_word(thread, shadow, offset / 4, ((1u << count) - 1) << within, access, at, bytes, pc);
        offset += count;
        left -= count;
    }
}

void check_shared_bounds(const Worker& worker, const unsigned char* at, uint32_t bytes, Access access, const void* pc) {
    if (at >= worker.dynamic_smem && at + bytes <= worker.dynamic_smem + worker.dynamic_smem_bytes) return;
    for (uint32_t i = 0; i < worker.static_smem_count; i++) {
        const StaticSmem& array = worker.static_smem[i];
        if (at >= array.begin && at + bytes <= array.begin + array.bytes) return;
    }
    char place[200];
    describe_shared(worker, at, place, sizeof place);
    fail(pc, "illegal shared %s of %u bytes: %s", verb(access), bytes, place);
}

// Constants of the program are the only memory beside device memory and the thread's own variables that kernels may
// read.
bool is_program(const void* address) {
    struct Query {
        uintptr_t address;
        bool found;
    } query{reinterpret_cast<uintptr_t>(address), false};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto& q = *static_cast<Query*>(data);
            for (int i = 0; i < info->dlpi_phnum && !q.found; i++) {
                const auto& segment = info->dlpi_phdr[i];
                const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
                q.found =
                    segment.p_type == PT_LOAD && (segment.p_flags & PF_W) == 0 && q.address - begin < segment.p_memsz;
            }
            return q.found ? 1 : 0;
        },
        &query);
    return query.found;
}

void check_foreign(Worker& worker, const unsigned char* at, uint32_t bytes, Access access, const void* pc) {
    const auto params = static_cast<const unsigned char*>(worker.params);
    if (access == Access::kRead && at >= params && at + bytes <= params + worker.kernel->params_size) return;
    const auto stacks = static_cast<size_t>(at - worker.stacks);
    if (stacks < kMaxThreads * kStackStride) {
        fail(pc, "illegal %s of %u bytes in the local variables of another thread", verb(access), bytes);
    }
    // An index into shared memory that is far off.
    constexpr ptrdiff_t kNear = 1 << 20;
    const bool has_smem = worker.dynamic_smem_bytes + worker.static_smem_bytes > 0;
    if (has_smem && at - worker.smem > -kNear && at - worker.smem < kNear)
        check_shared_bounds(worker, at, bytes, access, pc);
    if (access == Access::kRead) {
        // Takes a lock of the loader.
        worker.uninterruptible++;
        const bool is_constant = is_program(at);
        worker.uninterruptible--;
        if (is_constant) return;
    }
    fail(pc, "illegal %s of %u bytes at %p, which is not in device memory (a pointer of the host, or no pointer)",
         verb(access), bytes, static_cast<const void*>(at));
}

}  // namespace

int32_t pack_pc(const void* pc) {
    return static_cast<int32_t>(static_cast<const char*>(pc) - reinterpret_cast<const char*>(&op_name));
}
const void* unpack_pc(int32_t packed) { return reinterpret_cast<const char*>(&op_name) + packed; }

void check_access(Thread& thread, const void* address, uint32_t bytes, Access access, const void* pc) {
    Worker& worker = *thread.worker;
    const auto at = static_cast<const unsigned char*>(address);
    if (static_cast<size_t>(at - worker.smem) < kSmemWindow) {
        check_shared_bounds(worker, at, bytes, access, pc);
        check_words(thread, worker.checker->shared, at, bytes, access, pc);
        return;
    }
    if (static_cast<size_t>(at - worker.stacks - static_cast<size_t>(thread.stack) * kStackStride) < kStackStride)
        return;
    Allocation* allocation = allocation_at(address);
    if (allocation == nullptr) {
        check_foreign(worker, at, bytes, access, pc);
        return;
    }
    if (__builtin_expect(at < allocation->begin || at + bytes > allocation->begin + allocation->bytes ||
                             allocation->freed || allocation->machine != worker.machine,
                         0)) {
        char place[200];
        describe_address(address, place, sizeof place);
        fail(pc, "illegal global %s of %u bytes: %s%s", verb(access), bytes, place,
             allocation->machine != worker.machine ? " (of another emulator)" : "");
    }
    if (allocation->words == nullptr) {
        // Allocated before checks were enabled: its content counts as written.
        add_shadow(*allocation, true);
        if (allocation->words == nullptr) fail(pc, "the system gives no memory for the checks of a buffer");
    }
    const Shadow shadow{allocation->begin, allocation->written, allocation->words, allocation->bytes_of_words, false};
    check_words(thread, shadow, at, bytes, access, pc);
}

// ---- what the runtime tells ----

void begin_launch_checks(Machine& machine) {
    Worker& worker = *machine.workers[0];
    if (machine.launch.options.check == 0) return;
    if (worker.checker == nullptr) {
        worker.checker = new Checker{};
        Shadow& shared = worker.checker->shared;
        shared.begin = worker.smem;
        shared.written = static_cast<uint8_t*>(map_zeros(kSmemWindow / 8 + 1));
        shared.words = static_cast<Cell*>(map_zeros((kSmemWindow / 4 + 1) * sizeof(Cell)));
        shared.bytes = static_cast<Cell*>(map_zeros((kSmemWindow + 4) * sizeof(Cell)));
        shared.is_shared = true;
    }
    worker.checker->first_block = blocks_run.load() + 1;
    worker.checker->locations.clear();
}

void free_checks(Worker& worker) {
    if (worker.checker == nullptr) return;
    release(worker.checker->shared.written, kSmemWindow / 8 + 1);
    release(worker.checker->shared.words, (kSmemWindow / 4 + 1) * sizeof(Cell));
    release(worker.checker->shared.bytes, (kSmemWindow + 4) * sizeof(Cell));
    delete worker.checker;
}

namespace {

void forget_written(Checker& checker, const unsigned char* begin, size_t bytes) {
    const auto first = static_cast<size_t>(begin - checker.shared.begin) / 8;
    memset(checker.shared.written + first, 0, bytes / 8 + 1);
}

}  // namespace

void begin_block_checks(Worker& worker) {
    if (!worker.check) return;
    Checker& checker = *worker.checker;
    checker.block = blocks_run.fetch_add(1) + 1;
    forget_written(checker, worker.dynamic_smem, worker.dynamic_smem_bytes);
    forget_written(checker, worker.smem, worker.static_smem_end);
    reset_fences(checker, worker);
}

void block_synced(Worker& worker) {
    if (worker.warp[0].syncs >= kMostSyncs) fail(nullptr, "more barriers in a block than the checks can count");
    barrier_publishes(*worker.checker, worker);
}

void warp_synced(Worker&, Warp& warp) {
    if (warp.syncs >= kMostSyncs) fail(nullptr, "more warp syncs in a block than the checks can count");
}

void static_smem_declared(Worker& worker, const StaticSmem& array) {
    forget_written(*worker.checker, array.begin, array.bytes);
}

void cp_async_issued(Thread& thread, unsigned char* to, const void* from, bool valid, const void* pc) {
    Worker& worker = *thread.worker;
    if (valid) {
        if (static_cast<size_t>(static_cast<const unsigned char*>(from) - worker.smem) < kSmemWindow) {
            fail(pc, "cp_async16 reads from shared memory; its source is global memory");
        }
        check_access(thread, from, 16, Access::kRead, pc);
    }
    check_access(thread, to, 16, Access::kWrite, pc);
    Shadow& shared = worker.checker->shared;
    const auto index = static_cast<size_t>(to - shared.begin) / 4;
    for (size_t i = index; i < index + 4; i++) shared.words[i].flags |= kInFlight;
    shared.written[index / 2] = shared.written[index / 2 + 1] = 0;
}

void cp_async_landed(Thread& thread, unsigned char* to, const void*) {
    Shadow& shared = thread.worker->checker->shared;
    const auto index = static_cast<size_t>(to - shared.begin) / 4;
    for (size_t i = index; i < index + 4; i++) {
        Cell& cell = shared.words[i];
        cell.flags &= static_cast<uint8_t>(~kInFlight);
        cell.write_time = time_of(thread);
    }
    shared.written[index / 2] = shared.written[index / 2 + 1] = 0xff;
}

void check_atomic(Thread& thread, void* address, uint32_t bytes, const void* pc) {
    check_access(thread, address, bytes, Access::kAtomic, pc);
    atomic_synchronises(*thread.worker->checker, thread, address);
}

void ldmatrix_row(Thread& thread, const void* row, const void* pc) { check_access(thread, row, 16, Access::kRead, pc); }

}  // namespace simt
