// Device memory of the emulator.

#include "memory.hpp"

#include <stdio.h>
#include <sys/mman.h>

#include <map>

#include "cell.hpp"

namespace simt {
namespace {

// Addresses are allocated in slots and never reused; 4 TiB are enough for a process.
constexpr size_t kArena = size_t{1} << 42;
constexpr size_t kSlot = size_t{1} << 16;
constexpr size_t kAlignment = 256;
// Larger buffers are not filled with NaN, so that tests can have buffers larger than memory and touch a part.
constexpr size_t kLargestFilled = size_t{1} << 28;

struct Arena {
    std::mutex lock;
    unsigned char* begin = nullptr;
    size_t used = 0;
    // By slot, written under the lock before the buffer is returned to a caller.
    Allocation** slots = nullptr;
    std::map<const unsigned char*, Allocation*> live;
};

Arena& arena() {
    // Never destroyed: kernels of other threads may still run while the process ends.
    static Arena* const arena = [] {
        auto made = new Arena;
        made->begin = static_cast<unsigned char*>(reserve(kArena));
        made->slots =
            static_cast<Allocation**>(mmap(nullptr, kArena / kSlot * sizeof(Allocation*), PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        return made;
    }();
    return *arena;
}

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

void* map_zeros(size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

// One more than needed, so that an access across the end has records to look at.
size_t words_of(const Allocation& allocation) { return (allocation.bytes + 3) / 4 + 1; }

void drop(Allocation& allocation) {
    // The addresses stay reserved, so that any later access traps.
    mmap(allocation.mapping, allocation.mapping_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (allocation.words != nullptr) {
        release(allocation.written, words_of(allocation) / 2 + 1);
        release(allocation.words, words_of(allocation) * sizeof(Cell));
        release(allocation.bytes_of_words, words_of(allocation) * 4 * sizeof(Cell));
    }
    allocation.written = nullptr;
    allocation.words = allocation.bytes_of_words = nullptr;
    allocation.freed = true;
}

}  // namespace

void* reserve(size_t bytes) {
    void* begin = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return begin == MAP_FAILED ? nullptr : begin;
}

void make_usable(void* begin, size_t bytes) { mprotect(begin, bytes, PROT_READ | PROT_WRITE); }

void release(void* begin, size_t bytes) { munmap(begin, bytes); }

Allocation* allocation_at(const void* address) {
    const Arena& all = arena();
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - all.begin);
    return offset < kArena ? __atomic_load_n(&all.slots[offset / kSlot], __ATOMIC_ACQUIRE) : nullptr;
}

void describe_address(const void* address, char* text, size_t size) {
    const Allocation* allocation = allocation_at(address);
    const auto at = static_cast<const unsigned char*>(address);
    if (allocation == nullptr) {
        snprintf(text, size, "%p is not in device memory", address);
        return;
    }
    if (at >= allocation->begin + allocation->bytes) {
        // The next buffer begins in the first slot after this one's.
        const unsigned char* past = allocation->mapping + allocation->mapping_bytes;
        const Allocation* next = allocation_at(past + (kSlot - static_cast<size_t>(past - arena().begin) % kSlot));
        const bool is_nearer = next != nullptr && next->begin - at < at - (allocation->begin + allocation->bytes);
        if (is_nearer) allocation = next;
    }
    const char* kind = allocation->freed ? "freed buffer" : "buffer";
    if (at < allocation->begin) {
        snprintf(text, size, "%zu bytes before a %s of %zu bytes", static_cast<size_t>(allocation->begin - at), kind,
                 allocation->bytes);
    } else if (at >= allocation->begin + allocation->bytes) {
        snprintf(text, size, "%zu bytes past the end of a %s of %zu bytes",
                 static_cast<size_t>(at - allocation->begin) - allocation->bytes, kind, allocation->bytes);
    } else {
        snprintf(text, size, "offset %zu of a %s of %zu bytes", static_cast<size_t>(at - allocation->begin), kind,
                 allocation->bytes);
    }
}

unsigned char* allocate(const Machine& machine, size_t bytes, bool checks, std::string& error) {
    const size_t padded = round_up(bytes, kAlignment);
    const size_t mapping_bytes = round_up(padded, kPage);
    Arena& all = arena();
    if (all.begin == nullptr || all.slots == MAP_FAILED) {
        error = "the system gives the emulator no address space";
        return nullptr;
    }
    auto allocation = new Allocation{};
    {
        const std::lock_guard guard(all.lock);
        const size_t region = round_up(mapping_bytes + kPage, kSlot);
        if (region > kArena || all.used + region > kArena) {
            delete allocation;
            error = "the emulator's 4 TiB of addresses are used up";
            return nullptr;
        }
        allocation->mapping = all.begin + all.used;
        all.used += region;
        for (size_t i = 0; i < region / kSlot; i++) {
            __atomic_store_n(&all.slots[static_cast<size_t>(allocation->mapping - all.begin) / kSlot + i], allocation,
                             __ATOMIC_RELEASE);
        }
        allocation->mapping_bytes = mapping_bytes;
        allocation->begin = allocation->mapping + mapping_bytes - padded;
        allocation->bytes = bytes;
        allocation->machine = &machine;
        all.live.emplace(allocation->begin, allocation);
    }
    if (mapping_bytes > 0 && mprotect(allocation->mapping, mapping_bytes, PROT_READ | PROT_WRITE) != 0) {
        error = "the system gives no memory for a buffer of " + std::to_string(bytes) + " bytes";
        std::string ignored;
        deallocate(machine, allocation->begin, ignored);
        return nullptr;
    }
    if (mapping_bytes <= kLargestFilled) memset(allocation->mapping, 0xff, mapping_bytes);
    if (checks) add_shadow(*allocation, false);
    return allocation->begin;
}

bool deallocate(const Machine& machine, void* address, std::string& error) {
    Arena& all = arena();
    const std::lock_guard guard(all.lock);
    const auto found = all.live.find(static_cast<unsigned char*>(address));
    if (found == all.live.end() || found->second->machine != &machine) {
        char text[200];
        describe_address(address, text, sizeof text);
        error = std::string("free of an address that is not the start of a buffer: ") + text;
        return false;
    }
    drop(*found->second);
    all.live.erase(found);
    return true;
}

void deallocate_all(const Machine& machine) {
    Arena& all = arena();
    const std::lock_guard guard(all.lock);
    for (auto entry = all.live.begin(); entry != all.live.end();) {
        if (entry->second->machine == &machine) {
            drop(*entry->second);
            entry = all.live.erase(entry);
        } else {
            ++entry;
        }
    }
}

Allocation* buffer_for(const Machine& machine, const void* address, size_t bytes, std::string& error) {
    Allocation* allocation = allocation_at(address);
    const auto at = static_cast<const unsigned char*>(address);
    const bool inside = allocation != nullptr && !allocation->freed && allocation->machine == &machine &&
                        at >= allocation->begin && static_cast<size_t>(at - allocation->begin) <= allocation->bytes &&
                        bytes <= allocation->bytes - static_cast<size_t>(at - allocation->begin);
    if (inside) return allocation;
    char text[200];
    describe_address(address, text, sizeof text);
    error = "a copy of " + std::to_string(bytes) + " bytes at " + text;
    return nullptr;
}

void add_shadow(Allocation& allocation, bool is_written) {
    if (allocation.words != nullptr) return;
    const size_t words = words_of(allocation);
    // Zero pages that cost nothing until they are touched; zero means never written and never accessed.
    void* written = map_zeros(words / 2 + 1);
    void* cells = map_zeros(words * sizeof(Cell));
    void* byte_cells = map_zeros(words * 4 * sizeof(Cell));
    if (written == MAP_FAILED || cells == MAP_FAILED || byte_cells == MAP_FAILED) return;
    allocation.written = static_cast<uint8_t*>(written);
    allocation.bytes_of_words = static_cast<Cell*>(byte_cells);
    allocation.words = static_cast<Cell*>(cells);
    if (is_written) mark_written(allocation, allocation.begin, allocation.bytes);
}

void mark_written(Allocation& allocation, const void* address, size_t bytes) {
    if (allocation.written == nullptr) return;
    size_t at = static_cast<size_t>(static_cast<const unsigned char*>(address) - allocation.begin);
    const size_t end = at + bytes;
    for (; at < end && at % 8 != 0; at++) allocation.written[at / 8] |= static_cast<uint8_t>(1u << at % 8);
    const size_t whole = (end - at) / 8;
    if (at < end) memset(allocation.written + at / 8, 0xff, whole);
    for (at += whole * 8; at < end; at++) allocation.written[at / 8] |= static_cast<uint8_t>(1u << at % 8);
}

void mark_unwritten(Allocation& allocation, const void* address, size_t bytes) {
    if (allocation.written == nullptr) return;
    const auto begin = static_cast<size_t>(static_cast<const unsigned char*>(address) - allocation.begin);
    for (size_t at = begin; at < begin + bytes;) {
        if (at % 8 == 0 && begin + bytes - at >= 8) {
            const size_t whole = (begin + bytes - at) / 8;
            memset(allocation.written + at / 8, 0, whole);
            at += whole * 8;
        } else {
            allocation.written[at / 8] &= static_cast<uint8_t>(~(1u << at % 8));
            at++;
        }
    }
}

void mark_all_written(const Machine& machine) {
    Arena& all = arena();
    const std::lock_guard guard(all.lock);
    for (auto& entry : all.live) {
        if (entry.second->machine == &machine) mark_written(*entry.second, entry.second->begin, entry.second->bytes);
    }
}

}  // namespace simt
