// Runs the threads of a block as fibers: scheduling, waiting, and reporting deadlocks.
//
// A thread runs until it has to wait for others. A rendezvous of a warp is one pass over its lanes: each
// stores its operands and waits; the last one does the work for all and continues without a switch. A thread
// gets a stack at its first run and returns it at its end, so a thread that never waits costs no switch.

#include <stdio.h>
#include <sys/mman.h>

#include "check.hpp"
#include "stats.hpp"

namespace simt {

__thread ThreadView* current __attribute__((tls_model("initial-exec"))) = nullptr;

Dim3 thread_index() { return current->thread_index; }
Dim3 block_index() { return current->block->block_index; }
Dim3 block_size() { return current->block->block_size; }
Dim3 grid_size() { return current->block->grid_size; }

uint64_t next_random(uint64_t& state) {
    // SplitMix64.
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void leave_kernel(Worker& worker) {
    Context abandoned;
    worker.in_kernel = false;
    current = nullptr;
    switch_context(abandoned, worker.host);
    __builtin_unreachable();
}

namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

// The set bit number `n` of a mask.
uint32_t nth_bit(uint32_t mask, uint32_t n) {
    while (n-- > 0) mask &= mask - 1;
    return lowest(mask);
}

// The first set bit above `position`, or else the lowest.
uint32_t following(uint32_t mask, uint32_t position) {
    const uint32_t above = mask & ~((2u << position) - 1);
    return lowest(above != 0 ? above : mask);
}

Thread* thread_at(Worker& worker, uint32_t warp, uint32_t lane) { return &worker.thread[warp * kWarpSize + lane]; }

Thread* pick_random(Worker& worker) {
    uint64_t random = next_random(worker.random);
    const uint32_t warps = worker.runnable_warps;
    const uint32_t warp =
        nth_bit(warps, static_cast<uint32_t>(random) % static_cast<uint32_t>(__builtin_popcount(warps)));
    random >>= 32;
    uint32_t lanes = worker.warp[warp].runnable;
    if (worker.policy == Policy::kStarved) {
        const uint32_t others = lanes & ~(1u << worker.starved_lane);
        if (others != 0) lanes = others;
    }
    return thread_at(worker, warp,
                     nth_bit(lanes, static_cast<uint32_t>(random) % static_cast<uint32_t>(__builtin_popcount(lanes))));
}

Thread* pick_by_priority(Worker& worker) {
    for (uint32_t i = 0; i < kMaxWarps; i++) {
        const uint32_t warp = worker.warp_order[i];
        if ((worker.runnable_warps >> warp & 1) == 0) continue;
        for (uint32_t j = 0; j < kWarpSize; j++) {
            if (worker.warp[warp].runnable >> worker.lane_order[j] & 1)
                return thread_at(worker, warp, worker.lane_order[j]);
        }
    }
    return nullptr;
}

// The next thread to run after `thread`; null if all wait.
inline Thread* pick(Worker& worker, const Thread* thread) {
    if (worker.runnable_warps == 0) return nullptr;
    if (worker.policy == Policy::kFixed) {
        const Warp* warp = thread->warp;
        if (warp->runnable == 0) warp = &worker.warp[following(worker.runnable_warps, warp->index)];
        return &warp->threads[following(warp->runnable, thread->index & (kWarpSize - 1))];
    }
    return worker.policy == Policy::kPriority ? pick_by_priority(worker) : pick_random(worker);
}

inline void suspend(Thread* thread) {
    Warp* warp = thread->warp;
    warp->runnable &= ~thread->lane_bit;
    if (warp->runnable == 0) thread->worker->runnable_warps &= ~warp->bit;
}

void run_threads();

void give_stack(Worker& worker, Thread* thread) {
    const uint32_t stack = worker.free_stack[--worker.free_stacks];
    unsigned char* low = worker.stacks + stack * kStackStride + kPage;
    if (stack >= worker.stacks_ready) {
        // Stacks are first used in ascending order.
        make_usable(low, kStackBytes);
        worker.stacks_ready = stack + 1;
    }
    thread->stack = static_cast<int32_t>(stack);
    // Tops that differ in their low bits keep the stacks of a warp out of each other's cache sets.
    prepare_context(thread->context, low, low + kStackBytes - stack % 16 * 256, run_threads);
}

inline void go_on_with(Worker& worker, Thread* from, Thread* to) {
    if (to->stack < 0) give_stack(worker, to);
    current = to;
    switch_context(from->context, to->context);
}

[[noreturn]] void fail_where_all_wait(Worker& worker) {
    worker.uninterruptible++;
    // Any waiting thread can name the place; threads in a warp-wide call are more informative than those at a
    // barrier.
    const Thread* example = nullptr;
    for (uint32_t i = 0; i < worker.threads; i++) {
        const Thread& thread = worker.thread[i];
        if (thread.state != ThreadState::kWaiting) continue;
        if (example == nullptr || (example->op == Op::kBarrier && thread.op != Op::kBarrier)) example = &thread;
    }
    char threads[3000];
    describe_threads(worker, nullptr, nullptr, threads, sizeof threads);
    char text[4000];
    snprintf(text, sizeof text,
             "threads wait for each other for ever (a barrier or warp-wide call that not all reach): %s", threads);
    describe_failure(worker, example, example == nullptr ? nullptr : example->pc, text);
    leave_kernel(worker);
}

inline void wait(Thread* thread) {
    Worker& worker = *thread->worker;
    suspend(thread);
    thread->state = ThreadState::kWaiting;
    Thread* next = pick(worker, thread);
    if (next == nullptr) fail_where_all_wait(worker);
    go_on_with(worker, thread, next);
    thread->state = ThreadState::kReady;
}

// The loop of a stack: runs its thread, then threads that have not started yet, and ends when other threads
// must continue.
void run_threads() {
    for (;;) {
        Thread* thread = current_thread();
        Worker& worker = *thread->worker;
        thread->state = ThreadState::kReady;
        worker.kernel->run(worker.params);
        thread->state = ThreadState::kDone;
        thread->warp->done |= thread->lane_bit;
        suspend(thread);
        if (--worker.alive == 0) leave_kernel(worker);
        Thread* next = pick(worker, thread);
        if (next == nullptr) fail_where_all_wait(worker);
        const int32_t stack = thread->stack;
        thread->stack = -1;
        if (next->stack < 0) {
            next->stack = stack;
            current = next;
            continue;
        }
        // The stack is not reused before the switch below is over, because only this OS thread allocates it.
        worker.free_stack[worker.free_stacks++] = static_cast<uint16_t>(stack);
        go_on_with(worker, thread, next);
    }
}

void shuffle_order(uint8_t* order, uint32_t n, uint64_t& random) {
    for (uint32_t i = 0; i < n; i++) order[i] = static_cast<uint8_t>(i);
    for (uint32_t i = n - 1; i > 0; i--) {
        const uint32_t j = static_cast<uint32_t>(next_random(random) % (i + 1));
        const uint8_t swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
}

void choose_schedule(Worker& worker, uint64_t block) {
    const Options& options = worker.machine->launch.options;
    worker.policy = Policy::kFixed;
    if (!options.is_random) return;
    // Depends on the seed and the block only, so that a block can be run again alone.
    worker.random = options.seed * 0x2545f4914f6cdd1du ^ (block + 1) * 0x9e3779b97f4a7c15u;
    next_random(worker.random);
    const Policy policies[] = {Policy::kRandom, Policy::kPriority, Policy::kRandom, Policy::kStarved};
    worker.policy = policies[options.seed % 4];
    shuffle_order(worker.warp_order, kMaxWarps, worker.random);
    shuffle_order(worker.lane_order, kWarpSize, worker.random);
    worker.starved_lane = static_cast<uint32_t>(next_random(worker.random) % kWarpSize);
}

}  // namespace

bool run_block(Worker& worker, uint64_t block) {
    const Launch& launch = worker.machine->launch;
    const uint64_t row = block / launch.grid.x;
    worker.block_index = {static_cast<uint32_t>(block % launch.grid.x), static_cast<uint32_t>(row % launch.grid.y),
                          static_cast<uint32_t>(row / launch.grid.y)};
    choose_schedule(worker, block);
    worker.is_special = worker.stats || worker.policy != Policy::kFixed;
    for (uint32_t i = 0; i < worker.warps; i++) {
        Warp& warp = worker.warp[i];
        warp.runnable = kFullWarp;
        warp.arrived = warp.done = warp.syncs = warp.syncs_at_barrier = 0;
    }
    for (uint32_t i = 0; i < worker.threads; i++) {
        Thread& thread = worker.thread[i];
        thread.stack = -1;
        thread.state = ThreadState::kUnstarted;
        thread.copies.begin = thread.copies.end = thread.copies.group = 0;
        thread.fences = 0;
    }
    worker.runnable_warps = worker.warps == kMaxWarps ? kFullWarp : (1u << worker.warps) - 1;
    worker.alive = worker.threads;
    worker.at_barrier = 0;
    worker.free_stacks = kMaxThreads;
    for (uint32_t i = 0; i < kMaxThreads; i++) worker.free_stack[i] = static_cast<uint16_t>(kMaxThreads - 1 - i);
    // NaN in every number format, so that a value that was never written does not look like one.
    memset(worker.dynamic_smem, 0xff, worker.dynamic_smem_bytes);
    memset(worker.smem, 0xff, worker.static_smem_end);
    begin_block_checks(worker);

    Thread* first = worker.policy == Policy::kFixed ? &worker.thread[0] : pick(worker, &worker.thread[0]);
    give_stack(worker, first);
    current = first;
    worker.in_kernel = true;
    switch_context(worker.host, first->context);
    current = nullptr;
    worker.in_kernel = false;
    for (uint32_t i = 0; i < worker.warps && worker.stats; i++) lanes_met(worker, i);
    return !worker.failure.set;
}

bool meet(Thread* thread, Op op, uint32_t detail, int line, const void* pc) {
    Warp* warp = thread->warp;
    thread->op = op;
    thread->pc = pc;
    if (warp->arrived == 0) {
        warp->op = op;
        warp->detail = detail;
        warp->line = line;
    } else if (__builtin_expect(warp->op != op || warp->detail != detail || warp->line != line, 0)) {
        const uint32_t lane = lowest(warp->arrived);
        fail(pc, "lane %u is in %s while lane %u waits in %s at <pc:%p>: all lanes must reach the same warp-wide call",
             thread->index % kWarpSize, op_name(op), lane, op_name(warp->op), warp->threads[lane].pc);
    }
    warp->arrived |= thread->lane_bit;
    if (warp->arrived == kFullWarp) return true;
    wait(thread);
    return false;
}

void release_warp(Thread* thread) {
    Warp* warp = thread->warp;
    warp->arrived = 0;
    warp->runnable = kFullWarp;
    if (__builtin_expect(thread->worker->is_special, 0)) {
        if (thread->worker->stats) lanes_met(*thread->worker, warp->index);
        maybe_yield(thread);
    }
}

void maybe_yield(Thread* thread) {
    Worker& worker = *thread->worker;
    Thread* next = thread;
    switch (worker.policy) {
        case Policy::kFixed: break;
        case Policy::kRandom:
            if (next_random(worker.random) % 16 == 0) next = pick_random(worker);
            break;
        case Policy::kPriority: next = pick_by_priority(worker); break;
        case Policy::kStarved:
            if (thread->lane_bit == 1u << worker.starved_lane) next = pick_random(worker);
            break;
    }
    if (next != thread) go_on_with(worker, thread, next);
}

void barrier(int line) {
    Thread* thread = current_thread();
    Worker& worker = *thread->worker;
    const char* pc = SIMT_CALLER;
    thread->op = Op::kBarrier;
    thread->pc = pc;
    if (worker.at_barrier == 0) {
        worker.barrier_line = line;
    } else if (__builtin_expect(worker.barrier_line != line, 0)) {
        const Thread* other = nullptr;
        for (uint32_t i = 0; i < worker.threads && other == nullptr; i++) {
            const Thread& candidate = worker.thread[i];
            if (candidate.state == ThreadState::kWaiting && candidate.op == Op::kBarrier) other = &candidate;
        }
        fail(pc, "this is not the __syncthreads that thread %u waits in, at <pc:%p>",
             other == nullptr ? 0 : other->index, other == nullptr ? nullptr : other->pc);
    }
    if (++worker.at_barrier < worker.threads) {
        wait(thread);
        return;
    }
    worker.at_barrier = 0;
    for (uint32_t i = 0; i < worker.warps; i++) {
        worker.warp[i].runnable = kFullWarp;
        worker.warp[i].syncs_at_barrier = ++worker.warp[i].syncs;
    }
    worker.runnable_warps = worker.warps == kMaxWarps ? kFullWarp : (1u << worker.warps) - 1;
    if (worker.check) block_synced(worker);
    if (__builtin_expect(worker.is_special, 0)) {
        for (uint32_t i = 0; i < worker.warps && worker.stats; i++) lanes_met(worker, i);
        maybe_yield(thread);
    }
}

void sync_warp(int line) {
    Thread* thread = current_thread();
    if (!meet(thread, Op::kSyncWarp, 0, line, SIMT_CALLER)) return;
    thread->warp->syncs++;
    if (thread->worker->check) warp_synced(*thread->worker, *thread->warp);
    release_warp(thread);
}

}  // namespace simt
