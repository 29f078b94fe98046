// The functions that emulated.rs calls. Those that can fail return 0 or 1 and leave the reason in simt_error.

#include "memory.hpp"
#include "state.hpp"

using simt::Machine;

namespace {

thread_local std::string last_error;

int fail_with(const std::string& text) {
    last_error = text;
    return 1;
}

unsigned char* pointer(uint64_t address) { return reinterpret_cast<unsigned char*>(address); }

}  // namespace

extern "C" {

Machine* simt_open() { return new Machine; }

void simt_close(Machine* machine) {
    simt::close_machine(*machine);
    delete machine;
}

// Copies the latest reason of this thread, at most `size` bytes; returns its length.
size_t simt_error(char* text, size_t size) {
    memcpy(text, last_error.data(), last_error.size() < size ? last_error.size() : size);
    return last_error.size();
}

int simt_alloc(Machine* machine, size_t bytes, int checks, uint64_t* address) {
    std::string error;
    unsigned char* begin = simt::allocate(*machine, bytes, checks != 0, error);
    *address = reinterpret_cast<uint64_t>(begin);
    return begin != nullptr ? 0 : fail_with(error);
}

int simt_free(Machine* machine, uint64_t address) {
    std::string error;
    return simt::deallocate(*machine, pointer(address), error) ? 0 : fail_with(error);
}

int simt_write(Machine* machine, uint64_t to, const void* from, size_t bytes) {
    std::string error;
    simt::Allocation* buffer = simt::buffer_for(*machine, pointer(to), bytes, error);
    if (buffer == nullptr) return fail_with(error);
    memcpy(pointer(to), from, bytes);
    simt::mark_written(*buffer, pointer(to), bytes);
    return 0;
}

int simt_read(Machine* machine, uint64_t from, void* to, size_t bytes) {
    std::string error;
    if (simt::buffer_for(*machine, pointer(from), bytes, error) == nullptr) return fail_with(error);
    memcpy(to, pointer(from), bytes);
    return 0;
}

int simt_set(Machine* machine, uint64_t to, int byte, size_t bytes) {
    std::string error;
    simt::Allocation* buffer = simt::buffer_for(*machine, pointer(to), bytes, error);
    if (buffer == nullptr) return fail_with(error);
    memset(pointer(to), byte, bytes);
    simt::mark_written(*buffer, pointer(to), bytes);
    return 0;
}

// As simt_set with 0xff, and the bytes count as never written.
int simt_poison(Machine* machine, uint64_t to, size_t bytes) {
    std::string error;
    simt::Allocation* buffer = simt::buffer_for(*machine, pointer(to), bytes, error);
    if (buffer == nullptr) return fail_with(error);
    memset(pointer(to), 0xff, bytes);
    simt::mark_unwritten(*buffer, pointer(to), bytes);
    return 0;
}

// Number `index` of the sums so far; false at the end.
bool simt_counts(const Machine* machine, size_t index, const char** symbol, const void** pc, simt::Counts* counts) {
    if (index >= machine->counts.size()) return false;
    const simt::PlaceCounts& place = machine->counts[index];
    *symbol = place.kernel->symbol;
    *pc = place.pc;
    *counts = place.counts;
    return true;
}

void simt_clear_counts(Machine* machine) { machine->counts.clear(); }

int simt_launch(Machine* machine, const simt::Options* options, const char* symbol, const uint32_t* grid,
                uint32_t threads, uint32_t dynamic_smem, const void* params, size_t params_size) {
    std::string error;
    const int code = simt::launch(*machine, *options, symbol, grid, threads, dynamic_smem, params, params_size, error);
    return code == 0 ? 0 : fail_with(error);
}

}  // extern "C"
