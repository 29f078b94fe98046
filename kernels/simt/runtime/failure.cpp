// Messages of failed launches. Places in the code are written as <pc:0x...>, which places.rs turns into file
// and line.
//
// Everything here uses fixed memory: it also runs in signal handlers.

#include <stdarg.h>
#include <stdio.h>

#include "state.hpp"

namespace simt {

const char* op_name(Op op) {
    static const char* const kNames[] = {"nothing", "__syncthreads",    "__syncwarp",  "a shuffle",
                                         "ballot",  "a warp reduction", "ldmatrix_x4", "ldmatrix_x4_trans",
                                         "mma"};
    static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(Op::kCount), "a name for each");
    return kNames[static_cast<uint32_t>(op)];
}

void describe_failure(Worker& worker, const Thread* thread, const void* pc, const char* text, const void* fallback) {
    if (worker.failure.set) return;
    worker.failure.set = true;
    const Dim3 b = worker.block_index;
    char who[64] = "";
    if (thread != nullptr) snprintf(who, sizeof who, ", thread %u", thread->index);
    char where[64] = "";
    if (fallback != nullptr) {
        snprintf(where, sizeof where, ", <pc:%p %p>", pc, fallback);
    } else if (pc != nullptr) {
        snprintf(where, sizeof where, ", <pc:%p>", pc);
    }
    snprintf(worker.failure.text, sizeof worker.failure.text, "kernel %s, block (%u, %u, %u)%s%s: %s",
             worker.kernel->symbol, b.x, b.y, b.z, who, where, text);
}

void fail(const void* pc, const char* format, ...) {
    Thread* thread = current_thread();
    // The time limit must not cut the message short.
    thread->worker->uninterruptible++;
    char text[4000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    describe_failure(*thread->worker, thread, pc, text);
    leave_kernel(*thread->worker);
}

void describe_shared(const Worker& worker, const void* address, char* text, size_t size) {
    const auto at = static_cast<const unsigned char*>(address);
    const StaticSmem* nearest = nullptr;
    for (uint32_t i = 0; i < worker.static_smem_count; i++) {
        if (at >= worker.static_smem[i].begin) nearest = &worker.static_smem[i];
    }
    if (nearest != nullptr && static_cast<size_t>(at - nearest->begin) < kSmemHalf) {
        snprintf(text, size, "offset %td of a STATIC_SMEM array of %zu bytes", at - nearest->begin, nearest->bytes);
    } else {
        snprintf(text, size, "offset %td of %u bytes of dynamic shared memory", at - worker.dynamic_smem,
                 worker.dynamic_smem_bytes);
    }
}

void describe_threads(const Worker& worker, const Thread* running, const void* pc, char* text, size_t size) {
    struct Group {
        ThreadState state;
        Op op;
        const void* pc;
        uint32_t count, first;
    } groups[12];
    uint32_t used = 0, left_out = 0;
    for (uint32_t i = 0; i < worker.threads; i++) {
        const Thread& thread = worker.thread[i];
        const bool waits = thread.state == ThreadState::kWaiting && (thread.warp->runnable & thread.lane_bit) == 0;
        Group group{waits || thread.state != ThreadState::kWaiting ? thread.state : ThreadState::kReady,
                    waits ? thread.op : Op::kNone, waits ? thread.pc : nullptr, 1, i};
        if (&thread == running) group.pc = pc;
        uint32_t at = 0;
        while (at < used && (groups[at].state != group.state || groups[at].op != group.op || groups[at].pc != group.pc))
            at++;
        if (at < used) {
            groups[at].count++;
        } else if (used < 12) {
            groups[used++] = group;
        } else {
            left_out++;
        }
    }
    size_t length = 0;
    text[0] = 0;
    const auto add = [&](const char* format, auto... values) {
        if (length < size) length += static_cast<size_t>(snprintf(text + length, size - length, format, values...));
    };
    for (uint32_t i = 0; i < used; i++) {
        const Group& group = groups[i];
        add("%s%u thread%s (%s%u) ", i == 0 ? "" : ", ", group.count, group.count == 1 ? "" : "s",
            group.count == 1 ? "" : "first: ", group.first);
        if (group.state == ThreadState::kWaiting) {
            add("in %s at <pc:%p>", op_name(group.op), group.pc);
        } else if (group.state == ThreadState::kDone) {
            add("returned");
        } else if (group.pc != nullptr) {
            add("at <pc:%p>", group.pc);
        } else {
            add(group.state == ThreadState::kUnstarted ? "not started" : "ready to go on");
        }
    }
    if (left_out > 0) add(", %u others", left_out);
}

}  // namespace simt
