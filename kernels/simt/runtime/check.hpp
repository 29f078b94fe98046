// Notifications of the runtime to the checks. The callers test worker.check first.
#pragma once

#include "state.hpp"

namespace simt {

void begin_launch_checks(Machine& machine);
void free_checks(Worker& worker);
void begin_block_checks(Worker& worker);
void block_synced(Worker& worker);
void warp_synced(Worker& worker, Warp& warp);
void static_smem_declared(Worker& worker, const StaticSmem& array);
void cp_async_issued(Thread& thread, unsigned char* to, const void* from, bool valid, const void* pc);
void cp_async_landed(Thread& thread, unsigned char* to, const void* pc);
// Of an atomic operation.
void check_atomic(Thread& thread, void* address, uint32_t bytes, const void* pc);
void fenced(Thread& thread);
void ldmatrix_row(Thread& thread, const void* row, const void* pc);

}  // namespace simt
