// What the runtime tells the checks and the counters. The callers look at worker.check and worker.stats first.
#pragma once

#include "state.hpp"

namespace simt {

void begin_launch_checks(Machine& machine);
void end_launch_checks(Machine& machine);
void free_checks(Worker& worker);
// The place that a trap at `pc` is due to: the access that a hook was told of last, if the trap was in the runtime.
const void* trap_pc(const Thread& thread, const void* pc);
void begin_block_checks(Worker& worker);
void end_block_checks(Worker& worker);
void block_synced(Worker& worker);
void warp_synced(Worker& worker, Warp& warp);
void static_smem_declared(Worker& worker, const StaticSmem& array);
void cp_async_issued(Thread& thread, unsigned char* to, const void* from, bool valid, const void* pc);
void cp_async_landed(Thread& thread, unsigned char* to, const void* pc);
void check_atomic(Thread& thread, void* address, uint32_t bytes, const void* pc);
void fenced(Thread& thread);
void ldmatrix_row(Thread& thread, const void* row, const void* pc);
void mma_done(Worker& worker, uint64_t tiles, const void* pc);

}  // namespace simt
