// State of a running block: threads, warps, the worker that runs them, and the machine they belong to.
//
// A worker is an OS thread that runs one block at a time, with one fiber per CUDA thread. Everything a kernel touches
// is reached from `current`, so that several emulators can run at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../abi.hpp"
#include "fiber.hpp"

namespace simt {

constexpr uint32_t kWarpSize = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxWarps = kMaxThreads / kWarpSize;
constexpr uint32_t kFullWarp = 0xffffffffu;
// Shared memory of a block, static and dynamic: the limit of compute capability 8.6.
constexpr uint32_t kMaxSmemBytes = 99 * 1024;

enum class Op : uint32_t {
    kNone,
    kBarrier,
    kSyncWarp,
    kShuffle,
    kBallot,
    kReduce,
    kLdmatrix,
    kLdmatrixTrans,
    kMma,
    kCount,
};

enum class ThreadState : uint8_t { kUnstarted, kReady, kWaiting, kDone };

struct Warp;
struct Worker;
struct Machine;
struct Checker;
struct Statistics;

// A copy that cp_async16 started and no wait has landed yet.
struct PendingCopy {
    alignas(16) unsigned char data[16];
    unsigned char* to;
    uint32_t group;
};

// The copies of one thread, oldest first.
struct CopyQueue {
    PendingCopy* entries;
    uint32_t capacity;
    uint32_t begin, end;
    // Number of the group that is being filled; those below are committed.
    uint32_t group;
};

struct Thread : ThreadView {
    Context context;
    Warp* warp;
    Worker* worker;
    uint32_t index;
    uint32_t lane_bit;
    int32_t stack;
    ThreadState state;
    // Where it waits.
    Op op;
    int line;
    const void* pc;
    CopyQueue copies;
    // Own fences so far in this block.
    uint32_t fences;
};

// The operands and results of a lane in a rendezvous.
struct Slot {
    uint64_t in;
    uint64_t extra;
    uint64_t out;
    uint32_t source;
};

struct Warp {
    uint32_t index;
    uint32_t bit;
    uint32_t runnable;
    uint32_t arrived;
    uint32_t done;
    // The op of the lanes that have arrived. `detail` distinguishes variants of an op.
    Op op;
    uint32_t detail;
    int line;
    // Warp-wide syncs so far in this block, block barriers included, and the count at the latest block barrier.
    uint32_t syncs;
    uint32_t syncs_at_barrier;
    Thread* threads;
    Slot slots[kWarpSize];
};

enum class Policy : uint8_t { kFixed, kRandom, kPriority, kStarved };

// A shared array declared with STATIC_SMEM.
struct StaticSmem {
    const void* site;
    unsigned char* begin;
    size_t bytes;
};
constexpr uint32_t kMaxStaticSmem = 16;

// The failure, in fixed memory: it is filled in places where allocation is not allowed.
struct Failure {
    bool set;
    char text[6000];
};

struct Worker : BlockView {
    Machine* machine;
    Context host;
    uint32_t threads, warps;
    uint32_t runnable_warps;
    uint32_t alive;
    // Of the barrier that is filling up.
    uint32_t at_barrier;
    int barrier_line;
    const Kernel* kernel;
    const void* params;
    bool check, stats;
    // Sums of mma are truncated as in tensor cores.
    bool truncates_mma;
    // A rendezvous does more than in the plain fast mode.
    bool is_special;

    Policy policy;
    uint64_t random;
    uint8_t warp_order[kMaxWarps];
    uint8_t lane_order[kWarpSize];
    uint32_t starved_lane;

    // True while a fiber of this worker runs. Signal handlers look here first.
    volatile bool in_kernel;
    // Above 0 while the runtime is in a section that must not be interrupted (allocation): the time limit
    // then waits for its next tick.
    volatile int uninterruptible;
    Failure failure;

    Thread* thread;
    Warp warp[kMaxWarps];

    unsigned char* stacks;
    uint32_t stacks_ready;
    uint32_t free_stacks;
    uint16_t free_stack[kMaxThreads];

    // Shared memory: static arrays grow from `smem`, the dynamic part ends at a guard page.
    unsigned char* smem;
    unsigned char* dynamic_smem;
    uint32_t dynamic_smem_bytes;
    uint32_t static_smem_bytes;
    uint32_t static_smem_end;
    uint32_t static_smem_count;
    StaticSmem static_smem[kMaxStaticSmem];

    void* signal_stack;
    Checker* checker;
    Statistics* statistics;
};

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kStackStride = kStackBytes + kPage;
// The two halves of a worker's shared memory, each with a guard page behind it. Between static arrays lie gaps.
constexpr size_t kSmemHalf = 128 * 1024;
constexpr size_t kSmemDynamic = kSmemHalf + kPage;
constexpr size_t kSmemWindow = kSmemDynamic + kSmemHalf;
constexpr size_t kStaticGap = 128;

inline Worker* current_worker() { return current == nullptr ? nullptr : static_cast<Thread*>(current)->worker; }
inline Thread* current_thread() { return static_cast<Thread*>(current); }

// Options of a launch; the layout is that of emulated.rs.
struct Options {
    uint32_t check;
    uint32_t stats;
    uint32_t is_random;
    uint32_t threads;
    uint32_t truncates_mma;
    uint32_t reserved;
    uint64_t seed;
    double watchdog_secs;
};

struct Launch {
    const Kernel* kernel;
    const unsigned char* params;
    uint64_t blocks;
    // Blocks are run in the order (first + i * step) % blocks.
    uint64_t first, step;
    Dim3 grid;
    uint32_t dynamic_smem;
    Options options;
    std::atomic<uint64_t> next;
    std::atomic<bool> stop;
};

// Sums over the accesses of one place in one kernel. The layout is that of counters.rs.
struct Counts {
    // Passes over the 32 banks of shared memory, and the least possible number.
    uint64_t wavefronts, ideal_wavefronts;
    // 32-byte pieces of global memory, and the least possible number.
    uint64_t sectors, ideal_sectors;
    // Bytes of global memory that threads accessed.
    uint64_t global_bytes;
    // Products of tiles, m16n8k16.
    uint64_t mma;
};

struct PlaceCounts {
    const Kernel* kernel;
    const void* pc;
    Counts counts;
};

struct Machine {
    // One launch at a time.
    std::mutex launching;
    std::vector<Worker*> workers;
    Launch launch;

    // The other OS threads of the fast mode.
    std::mutex pool_lock;
    std::condition_variable wake, finished;
    std::vector<std::thread> pool;
    uint64_t generation = 0;
    uint32_t wanted = 0, busy = 0;
    bool closing = false;

    std::vector<PlaceCounts> counts;
};

// ---- scheduler.cpp ----
// Runs one block; false if it failed, with the reason in worker.failure.
bool run_block(Worker& worker, uint64_t block);
// Ends the block from inside one of its threads.
[[noreturn]] void leave_kernel(Worker& worker);
// Waits for the other lanes. True for the last one to arrive: it does the work, then calls release_warp.
bool meet(Thread* thread, Op op, uint32_t detail, int line, const void* pc);
void release_warp(Thread* thread);
// A point where a random schedule may go on elsewhere.
void maybe_yield(Thread* thread);
uint64_t next_random(uint64_t& state);

// ---- failure.cpp ----
const char* op_name(Op op);
// Ends the launch from inside a kernel. The text describes the fault; kernel, block, thread and place are
// added in front of it.
[[noreturn]] void fail(const void* pc, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Fills worker.failure without leaving the kernel. `fallback` is the place to name if `pc` is not in a kernel source.
void describe_failure(Worker& worker, const Thread* thread, const void* pc, const char* text,
                      const void* fallback = nullptr);
// "offset 40 of 1024 bytes of dynamic shared memory", for messages.
void describe_shared(const Worker& worker, const void* address, char* text, size_t size);
// One line per group of threads: what they wait for and where.
void describe_threads(const Worker& worker, const Thread* running, const void* pc, char* text, size_t size);

// ---- launch.cpp ----
int launch(Machine& machine, const Options& options, const char* symbol, const uint32_t grid[3], uint32_t threads,
           uint32_t dynamic_smem, const void* params, size_t params_size, std::string& error);
void close_machine(Machine& machine);

// ---- trap.cpp ----
// Catches traps and the time limit on the calling thread, until leave_worker.
void install_handlers();
void enter_worker(Worker& worker, double seconds);
void leave_worker(Worker& worker);

// ---- memory.cpp ----
// Addresses that cannot be accessed yet; null if there are none.
void* reserve(size_t bytes);
void make_usable(void* begin, size_t bytes);

// For __builtin_return_address: an address inside the call instruction.
#define SIMT_CALLER (static_cast<const char*>(__builtin_return_address(0)) - 1)

}  // namespace simt
