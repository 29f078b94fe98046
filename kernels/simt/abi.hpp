// The functions of the emulator that compiled kernels call. Declarations and plain data only.
//
// The kernels are compiled twice, fast and checked, and both end in one binary together with the runtime. An inline
// function here would be merged across the three by the linker, and the fast kernels could run instrumented code; so
// there is none.
#pragma once

// The system headers that host.hpp needs, included before the kernels' namespace opens.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace simt {

struct Dim3 {
    uint32_t x, y, z;
};

// The part of a block that kernels read.
struct BlockView {
    Dim3 block_index;
    Dim3 block_size;
    Dim3 grid_size;
};

// The part of a thread that kernels read.
struct ThreadView {
    Dim3 thread_index;
    const BlockView* block;
};

// The thread that runs on this OS thread. Plain data with the fast access model: it is read at every threadIdx.
extern __thread ThreadView* current __attribute__((tls_model("initial-exec")));

// For instrumented code, where reading `current` itself would be reported as an access: the values never change for a
// thread, which `const` tells the compiler.
__attribute__((const)) Dim3 thread_index();
__attribute__((const)) Dim3 block_index();
__attribute__((const)) Dim3 block_size();
__attribute__((const)) Dim3 grid_size();

// ---- the table of kernels ----

enum Flavour { kFast = 0, kChecked = 1 };

struct Kernel {
    const char* symbol;
    void (*run)(const void* params);
    uint32_t params_size;
    uint32_t threads;
    const Kernel* next;
};

bool register_kernel(Flavour flavour, Kernel* kernel);

// ---- warps and blocks ---- `line` is the source line of the call: all lanes of a rendezvous must come from
// the same one.

void barrier(int line);
void sync_warp(int line);
// The value that lane `source` passes.
uint64_t shuffle(uint64_t bits, uint32_t source, int line);
uint32_t ballot(bool predicate, int line);
enum Reduction { kWarpSum, kWarpMax, kQuadSum, kQuadMax };
float reduce(float value, Reduction reduction, int line);

// ---- tensor cores ----

void ldmatrix(uint32_t* r, const void* row, bool transposed, int line);
// d: m * n fragments of 4, a: m of 4, b: n of 2, all of this lane.
void mma(float* d, const uint32_t* a, const uint32_t* b, int m, int n, int line);
constexpr int kMaxTileM = 8;
constexpr int kMaxTileN = 32;

// ---- memory ----

unsigned char* dynamic_smem();
// The same address for all threads of a block; `site` tells declarations apart.
void* static_smem(const void* site, size_t bytes);
uint32_t smem_offset(const void* shared);
void cp_async16(void* shared, const void* global, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);
[[noreturn]] void misaligned(const void* address, uint32_t bytes);
// Checked kernels move more than one number through these, because a compiler splits such copies before it instruments
// them.
void checked_load16(void* to, const void* from);
void checked_load8(void* to, const void* from);
void checked_store16(void* to, const void* from);
void checked_store8(void* to, const void* from);
uint32_t atomic_add32(void* address, uint32_t value);
uint64_t atomic_add64(void* address, uint64_t value);
void fence();

}  // namespace simt
