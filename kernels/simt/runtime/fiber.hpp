// Switching between stacks: about 5 ns in assembly on x86-64, by ucontext (50 times slower) elsewhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

// The state of a suspended fiber.
struct Context {
#if defined(SIMT_USES_UCONTEXT)
    ucontext_t state;
#else
    void* stack_pointer;
#endif
};

// Suspends the caller into `from` and goes on at `to`.
void switch_context(Context& from, Context& to);

// A context that calls `entry` on the stack [low, high); `entry` never returns.
void prepare_context(Context& context, unsigned char* low, unsigned char* high, void (*entry)());

// In a signal handler: makes the interrupted flow of control go on at `to` instead.
void redirect_signal(void* signal_context, Context& to);

// The instruction that a signal interrupted, or null where that is not known.
const void* interrupted_pc(void* signal_context);

}  // namespace simt
