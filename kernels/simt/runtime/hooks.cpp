// The callbacks of instrumented kernels. The compiler inserts a call before every access to memory that other threads
// might see; with the sanitizer's own library they would look for races of OS threads, here they are the checks and
// counters of the emulator.

#include "checker.hpp"
#include "stats.hpp"

namespace simt {
namespace {

inline void on_access(const void* address, uint32_t bytes, Access access, const void* pc) {
    Thread* thread = current_thread();
    // Initialisers of the kernels' file run outside of any thread.
    if (thread == nullptr) return;
    if (__builtin_expect(reinterpret_cast<uintptr_t>(address) % bytes != 0, 0)) {
        fail(pc, "misaligned %u-byte access at %p; the address must be a multiple of %u", bytes, address, bytes);
    }
    if (thread->worker->check) check_access(*thread, address, bytes, access, pc);
    if (thread->worker->stats) count_access(*thread, address, bytes, pc);
}

// Accesses that the compiler knows to be less aligned than their size, and copies of structs.
inline void on_bytes(const void* address, size_t bytes, Access access, const void* pc) {
    Thread* thread = current_thread();
    if (thread == nullptr) return;
    if (thread->worker->check) check_access(*thread, address, static_cast<uint32_t>(bytes), access, pc);
    if (thread->worker->stats && bytes <= 16) count_access(*thread, address, static_cast<uint32_t>(bytes), pc);
}

}  // namespace

void checked_load16(void* to, const void* from) {
    on_access(from, 16, Access::kRead, SIMT_CALLER);
    memcpy(to, from, 16);
}

void checked_load8(void* to, const void* from) {
    on_access(from, 8, Access::kRead, SIMT_CALLER);
    memcpy(to, from, 8);
}

void checked_store16(void* to, const void* from) {
    on_access(to, 16, Access::kWrite, SIMT_CALLER);
    memcpy(to, from, 16);
}

void checked_store8(void* to, const void* from) {
    on_access(to, 8, Access::kWrite, SIMT_CALLER);
    memcpy(to, from, 8);
}

}  // namespace simt

#define SIMT_HOOKS(bytes) \
    void __tsan_read##bytes(void* address) { simt::on_access(address, bytes, simt::Access::kRead, SIMT_CALLER); } \
    void __tsan_write##bytes(void* address) { simt::on_access(address, bytes, simt::Access::kWrite, SIMT_CALLER); } \
    void __tsan_unaligned_read##bytes(void* address) { \
        simt::on_bytes(address, bytes, simt::Access::kRead, SIMT_CALLER); \
    } \
    void __tsan_unaligned_write##bytes(void* address) { \
        simt::on_bytes(address, bytes, simt::Access::kWrite, SIMT_CALLER); \
    }

extern "C" {

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
    simt::on_bytes(address, bytes, simt::Access::kRead, SIMT_CALLER);
}
void __tsan_write_range(void* address, size_t bytes) {
    simt::on_bytes(address, bytes, simt::Access::kWrite, SIMT_CALLER);
}
void __tsan_vptr_read(void** address) { simt::on_bytes(address, sizeof *address, simt::Access::kRead, SIMT_CALLER); }
void __tsan_vptr_update(void** address, void*) {
    simt::on_bytes(address, sizeof *address, simt::Access::kWrite, SIMT_CALLER);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

}  // extern "C"
