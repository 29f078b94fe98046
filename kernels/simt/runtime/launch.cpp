// Launches: finds the kernel, checks the limits, gives the blocks to workers, collects the first error.

#include <stdio.h>
#include <sys/mman.h>

#include "check.hpp"
#include "memory.hpp"
#include "stats.hpp"

// Defined by the translation units of the kernels; naming them makes the linker take those.
extern "C" const int simt_fast_kernels;
extern "C" const int simt_checked_kernels;

namespace simt {
namespace {

Kernel* tables[2] = {nullptr, nullptr};
const int* const anchors[2] __attribute__((used)) = {&simt_fast_kernels, &simt_checked_kernels};

constexpr uint32_t kMaxGridX = 0x7fffffffu;
constexpr uint32_t kMaxGridYZ = 65535;

const Kernel* find_kernel(Flavour flavour, const char* symbol) {
    for (const Kernel* kernel = tables[flavour]; kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->symbol, symbol) == 0) return kernel;
    }
    return nullptr;
}

Worker* make_worker(Machine& machine) {
    auto worker =
        static_cast<Worker*>(mmap(nullptr, sizeof(Worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    auto threads =
        mmap(nullptr, kMaxThreads * sizeof(Thread), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    auto stacks = static_cast<unsigned char*>(reserve(kMaxThreads * kStackStride));
    auto smem = static_cast<unsigned char*>(reserve(kSmemWindow + kPage));
    if (worker == MAP_FAILED || threads == MAP_FAILED || stacks == nullptr || smem == nullptr) return nullptr;
    make_usable(smem, kSmemHalf);
    make_usable(smem + kSmemDynamic, kSmemHalf);
    worker->machine = &machine;
    worker->thread = static_cast<Thread*>(threads);
    worker->stacks = stacks;
    worker->smem = smem;
    for (uint32_t i = 0; i < kMaxWarps; i++) {
        worker->warp[i].index = i;
        worker->warp[i].bit = 1u << i;
        worker->warp[i].threads = &worker->thread[i * kWarpSize];
    }
    for (uint32_t i = 0; i < kMaxThreads; i++) {
        Thread& thread = worker->thread[i];
        thread.thread_index = {i, 0, 0};
        thread.block = worker;
        thread.warp = &worker->warp[i / kWarpSize];
        thread.worker = worker;
        thread.index = i;
        thread.lane_bit = 1u << i % kWarpSize;
    }
    return worker;
}

void free_worker(Worker* worker) {
    for (uint32_t i = 0; i < kMaxThreads; i++) {
        if (worker->thread[i].copies.entries != nullptr)
            ::operator delete(worker->thread[i].copies.entries, std::align_val_t{16});
    }
    free_checks(*worker);
    delete worker->statistics;
    if (worker->signal_stack != nullptr) release(worker->signal_stack, 64 * 1024);
    release(worker->thread, kMaxThreads * sizeof(Thread));
    release(worker->stacks, kMaxThreads * kStackStride);
    release(worker->smem, kSmemWindow + kPage);
    release(worker, sizeof(Worker));
}

void prepare_worker(Worker& worker, const Launch& launch) {
    const uint32_t threads = launch.kernel->threads;
    worker.block_size = {threads, 1, 1};
    worker.grid_size = launch.grid;
    worker.threads = threads;
    worker.warps = threads / kWarpSize;
    worker.kernel = launch.kernel;
    worker.params = launch.params;
    worker.check = launch.options.check != 0;
    worker.stats = launch.options.stats != 0;
    worker.truncates_mma = launch.options.truncates_mma != 0;
    worker.in_kernel = false;
    worker.uninterruptible = 0;
    worker.failure.set = false;
    // 128-byte aligned, the end as near to the guard page as that permits.
    const size_t room = (static_cast<size_t>(launch.dynamic_smem) + 127) / 128 * 128;
    worker.dynamic_smem = worker.smem + kSmemWindow - room;
    worker.dynamic_smem_bytes = launch.dynamic_smem;
    worker.static_smem_bytes = worker.static_smem_end = worker.static_smem_count = 0;
}

// Runs blocks until there are none left or one has failed.
void work(Machine& machine, Worker& worker) {
    Launch& launch = machine.launch;
    prepare_worker(worker, launch);
    enter_worker(worker, launch.options.watchdog_secs);
    while (!launch.stop.load(std::memory_order_relaxed)) {
        const uint64_t i = launch.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= launch.blocks) break;
        const auto block =
            static_cast<uint64_t>((launch.first + static_cast<unsigned __int128>(i) * launch.step) % launch.blocks);
        if (!run_block(worker, block)) launch.stop.store(true, std::memory_order_relaxed);
    }
    leave_worker(worker);
}

void pool_thread(Machine& machine, uint32_t index) {
    uint64_t seen = 0;
    std::unique_lock lock(machine.pool_lock);
    for (;;) {
        machine.wake.wait(lock,
                          [&] { return machine.closing || (machine.generation != seen && index < machine.wanted); });
        if (machine.closing) return;
        seen = machine.generation;
        lock.unlock();
        work(machine, *machine.workers[index]);
        lock.lock();
        if (--machine.busy == 0) machine.finished.notify_one();
    }
}

void work_with_others(Machine& machine, uint32_t count) {
    if (count > 1) {
        const std::lock_guard guard(machine.pool_lock);
        while (machine.pool.size() + 1 < count) {
            const auto index = static_cast<uint32_t>(machine.pool.size() + 1);
            machine.pool.emplace_back([&machine, index] { pool_thread(machine, index); });
        }
        machine.wanted = count;
        machine.busy = count - 1;
        machine.generation++;
        machine.wake.notify_all();
    }
    work(machine, *machine.workers[0]);
    if (count > 1) {
        std::unique_lock lock(machine.pool_lock);
        machine.finished.wait(lock, [&] { return machine.busy == 0; });
    }
}

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void choose_block_order(Launch& launch) {
    launch.first = 0;
    launch.step = 1;
    if (launch.options.is_random == 0 || launch.blocks == 1) return;
    uint64_t random = launch.options.seed ^ 0xb10c;
    launch.first = next_random(random) % launch.blocks;
    do {
        launch.step = 1 + next_random(random) % launch.blocks;
    } while (greatest_common_divisor(launch.step, launch.blocks) != 1);
}

}  // namespace

bool register_kernel(Flavour flavour, Kernel* kernel) {
    kernel->next = tables[flavour];
    tables[flavour] = kernel;
    return true;
}

int launch(Machine& machine, const Options& options, const char* symbol, const uint32_t grid[3], uint32_t threads,
           uint32_t dynamic_smem, const void* params, size_t params_size, std::string& error) {
    const std::lock_guard guard(machine.launching);
    char text[400];
    const auto refuse = [&](const char* format, auto... values) {
        const int length = snprintf(text, sizeof text, "kernel %s: ", symbol);
        snprintf(text + length, sizeof text - static_cast<size_t>(length), format, values...);
        error = text;
        return 1;
    };
    const Flavour flavour = options.check != 0 || options.stats != 0 ? kChecked : kFast;
    const Kernel* kernel = find_kernel(flavour, symbol);
    if (kernel == nullptr) return refuse("no kernel of this name is compiled in");
    if (params_size != kernel->params_size) {
        return refuse("called with %zu bytes of params, it takes %u", params_size, kernel->params_size);
    }
    if (threads != kernel->threads)
        return refuse("launched with %u threads, it is made for %u", threads, kernel->threads);
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > kMaxGridX || grid[1] > kMaxGridYZ ||
        grid[2] > kMaxGridYZ) {
        return refuse("a grid of (%u, %u, %u); the limits are 1 to (%u, %u, %u)", grid[0], grid[1], grid[2], kMaxGridX,
                      kMaxGridYZ, kMaxGridYZ);
    }
    if (dynamic_smem > kMaxSmemBytes) {
        return refuse("%u bytes of dynamic shared memory; a block has %u", dynamic_smem, kMaxSmemBytes);
    }

    install_handlers();
    Launch& launch = machine.launch;
    launch.kernel = kernel;
    launch.params = static_cast<const unsigned char*>(params);
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    launch.dynamic_smem = dynamic_smem;
    launch.options = options;
    launch.next = 0;
    launch.stop = false;
    choose_block_order(launch);

    // The checks keep one record of all memory: one OS thread writes it.
    uint32_t count = flavour == kChecked    ? 1
                     : options.threads != 0 ? options.threads
                                            : std::thread::hardware_concurrency();
    if (count > launch.blocks) count = static_cast<uint32_t>(launch.blocks);
    if (count > 64) count = 64;
    if (count == 0) count = 1;
    while (machine.workers.size() < count) {
        Worker* worker = make_worker(machine);
        if (worker == nullptr) return refuse("the system gives no memory for the emulator's threads");
        machine.workers.push_back(worker);
    }
    begin_launch_checks(machine);
    if (options.stats != 0 && machine.workers[0]->statistics == nullptr)
        machine.workers[0]->statistics = new Statistics;
    work_with_others(machine, count);
    if (options.stats != 0) collect_counts(machine, *machine.workers[0]);
    if (flavour == kFast) mark_all_written(machine);
    for (uint32_t i = 0; i < count; i++) {
        if (machine.workers[i]->failure.set) {
            error = machine.workers[i]->failure.text;
            return 1;
        }
    }
    return 0;
}

void close_machine(Machine& machine) {
    {
        const std::lock_guard guard(machine.pool_lock);
        machine.closing = true;
        machine.wake.notify_all();
    }
    for (std::thread& thread : machine.pool) thread.join();
    for (Worker* worker : machine.workers) free_worker(worker);
    deallocate_all(machine);
}

}  // namespace simt
