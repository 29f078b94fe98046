// The checks of instrumented kernels.

#include "check.hpp"

namespace simt {

void begin_launch_checks(Machine&) {}
void end_launch_checks(Machine&) {}
void free_checks(Worker&) {}
const void* trap_pc(const Thread&, const void* pc) { return pc; }
void begin_block_checks(Worker&) {}
void end_block_checks(Worker&) {}
void block_synced(Worker&) {}
void warp_synced(Worker&, Warp&) {}
void static_smem_declared(Worker&, const StaticSmem&) {}
void cp_async_issued(Thread&, unsigned char*, const void*, bool, const void*) {}
void cp_async_landed(Thread&, unsigned char*, const void*) {}
void check_atomic(Thread&, void*, uint32_t, const void*) {}
void fenced(Thread&) {}
void ldmatrix_row(Thread&, const void*, const void*) {}
void mma_done(Worker&, uint64_t, const void*) {}

void checked_load16(void* to, const void* from) { memcpy(to, from, 16); }
void checked_store16(void* to, const void* from) { memcpy(to, from, 16); }

void checked_store8(void* to, const void* from) { memcpy(to, from, 8); }

}  // namespace simt

extern "C" {
#define HOOK(name) void __tsan_##name(void*) {}
HOOK(read1) HOOK(read2) HOOK(read4) HOOK(read8) HOOK(read16)
HOOK(write1) HOOK(write2) HOOK(write4) HOOK(write8) HOOK(write16)
HOOK(unaligned_read2) HOOK(unaligned_read4) HOOK(unaligned_read8) HOOK(unaligned_read16)
HOOK(unaligned_write2) HOOK(unaligned_write4) HOOK(unaligned_write8) HOOK(unaligned_write16)
HOOK(func_entry)
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void*, size_t) {}
void __tsan_vptr_update(void**, void*) {}
}
