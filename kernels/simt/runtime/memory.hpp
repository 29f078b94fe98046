// Device memory of the emulator: every buffer in fresh addresses that are never used again, its end next to a guard
// page.
#pragma once

#include "state.hpp"

namespace simt {

// The record of the checks for 4 bytes of memory, or for 1 byte if threads use parts of them. See check.cpp.
struct Cell;

struct Allocation {
    unsigned char* begin;
    size_t bytes;
    const Machine* machine;
    bool freed;
    // The mapping that can be accessed.
    unsigned char* mapping;
    size_t mapping_bytes;
    // Of the checks: one bit per byte that was written; cells of 4 bytes each; cells of single bytes. Null without
    // checks.
    uint8_t* written;
    Cell* words;
    Cell* bytes_of_words;
};

// Gives addresses back to the system.
void release(void* begin, size_t bytes);

// The buffer whose pages hold `address`, or whose guard page does; freed ones too. Null outside of all device memory.
Allocation* allocation_at(const void* address);

// Describes an address, for messages.
void describe_address(const void* address, char* text, size_t size);

// Null and a text if there is no memory.
unsigned char* allocate(const Machine& machine, size_t bytes, bool checks, std::string& error);
bool deallocate(const Machine& machine, void* address, std::string& error);
// Frees whatever the machine still holds.
void deallocate_all(const Machine& machine);
// The live buffer that holds all of [address, address + bytes), or null and a text.
Allocation* buffer_for(const Machine& machine, const void* address, size_t bytes, std::string& error);
void mark_written(Allocation& allocation, const void* address, size_t bytes);
void mark_unwritten(Allocation& allocation, const void* address, size_t bytes);
// After kernels ran without checks, their writes are not recorded.
void mark_all_written(const Machine& machine);
// Gives a buffer the memory of the checks.
void add_shadow(Allocation& allocation, bool is_written);

}  // namespace simt
