// Switching between stacks.

#include "fiber.hpp"

#include <ucontext.h>

namespace simt {

#if defined(SIMT_USES_UCONTEXT)

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

void prepare_context(Context& context, unsigned char* low, unsigned char* high, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = low;
    context.state.uc_stack.ss_size = static_cast<size_t>(high - low);
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

void redirect_signal(void*, Context& to) { setcontext(&to.state); }

#else

// Saves what a called function must keep, swaps the stacks, restores. The second entry only restores.
asm(R"(
    .text
    .p2align 4
    .globl simt_switch
    .hidden simt_switch
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    .globl simt_resume
    .hidden simt_resume
simt_resume:
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, . - simt_switch
)");

extern "C" void simt_switch(void** save, void* load);
extern "C" void simt_resume();

void switch_context(Context& from, Context& to) { simt_switch(&from.stack_pointer, to.stack_pointer); }

void prepare_context(Context& context, unsigned char*, unsigned char* high, void (*entry)()) {
    // Six zero registers, the entry as return address, and a zero where the entry would find its own caller.
    auto top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(high) & ~uintptr_t{15});
    *--top = 0;
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; i++) *--top = 0;
    context.stack_pointer = top;
}

void redirect_signal(void* signal_context, Context& to) {
    auto& registers = static_cast<ucontext_t*>(signal_context)->uc_mcontext.gregs;
    registers[REG_RSI] = reinterpret_cast<greg_t>(to.stack_pointer);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&simt_resume);
    // Functions are entered with the direction flag clear.
    registers[REG_EFL] &= ~greg_t{0x400};
}

#endif

const void* interrupted_pc(void* signal_context) {
    auto& machine = static_cast<ucontext_t*>(signal_context)->uc_mcontext;
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return reinterpret_cast<const void*>(machine.pc);
#else
    (void)machine;
    return nullptr;
#endif
}

}  // namespace simt
