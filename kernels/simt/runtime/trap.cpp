// Turns traps of kernels and the time limit into errors of the launch.
//
// The handlers run on a stack of their own, because a trap may be the end of a fiber's stack. Outside of kernels they
// pass the signal on to whoever handled it before.

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.hpp"
#include "memory.hpp"
#include "state.hpp"

namespace simt {
namespace {

constexpr size_t kSignalStack = 64 * 1024;
constexpr int kTraps[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[65];
int time_signal = 0;

struct Watch {
    timer_t timer;
    bool armed;
    stack_t outer_stack;
};
__thread Watch watch __attribute__((tls_model("initial-exec")));

void pass_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& before = previous[signal];
    if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else {
        // The instruction runs again and takes the process down as if we had not been here.
        ::signal(signal, SIG_DFL);
    }
}

void describe_trap(const Worker& worker, int signal, const void* address, char* text, size_t size) {
    const auto at = static_cast<const unsigned char*>(address);
    const auto stacks = static_cast<size_t>(at - worker.stacks);
    const auto smem = static_cast<size_t>(at - worker.smem);
    char where[200];
    if (signal == SIGFPE) {
        snprintf(text, size, "division by zero");
    } else if (signal == SIGILL) {
        snprintf(text, size, "a place that the compiler knows cannot be reached, or a trap");
    } else if (stacks < kMaxThreads * kStackStride) {
        snprintf(text, size, "stack overflow: a thread has %zu bytes for local variables", kStackBytes);
    } else if (smem < kSmemWindow + kPage) {
        snprintf(text, size, "illegal access far outside of the block's shared memory");
    } else {
        describe_address(address, where, sizeof where);
        snprintf(text, size, "illegal access: %s", where);
    }
}

void on_trap(int signal, siginfo_t* info, void* context) {
    Worker* worker = current_worker();
    if (worker == nullptr || !worker->in_kernel) {
        pass_on(signal, info, context);
        return;
    }
    const int saved = errno;
    char text[300];
    describe_trap(*worker, signal, info->si_addr, text, sizeof text);
    describe_failure(*worker, current_thread(), interrupted_pc(context), text, current_thread()->pc);
    worker->in_kernel = false;
    current = nullptr;
    errno = saved;
    redirect_signal(context, worker->host);
}

void on_time(int, siginfo_t*, void* context) {
    Worker* worker = current_worker();
    if (worker == nullptr || !worker->in_kernel) return;
    if (worker->uninterruptible > 0) {
        // The timer comes again.
        return;
    }
    const int saved = errno;
    const void* pc = interrupted_pc(context);
    char threads[3000];
    describe_threads(*worker, current_thread(), pc, threads, sizeof threads);
    char text[3500];
    snprintf(text, sizeof text, "the time limit of %g s is over: %s", worker->machine->launch.options.watchdog_secs,
             threads);
    describe_failure(*worker, current_thread(), pc, text, current_thread()->pc);
    worker->in_kernel = false;
    current = nullptr;
    errno = saved;
    redirect_signal(context, worker->host);
}

}  // namespace

void install_handlers() {
    static const bool once = [] {
        time_signal = SIGRTMIN + 9;
        struct sigaction action = {};
        sigemptyset(&action.sa_mask);
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        action.sa_sigaction = on_trap;
        for (const int signal : kTraps) sigaction(signal, &action, &previous[signal]);
        action.sa_flags |= SA_RESTART;
        action.sa_sigaction = on_time;
        sigaction(time_signal, &action, &previous[time_signal]);
        return true;
    }();
    (void)once;
}

void enter_worker(Worker& worker, double seconds) {
    if (worker.signal_stack == nullptr) {
        worker.signal_stack = reserve(kSignalStack);
        make_usable(worker.signal_stack, kSignalStack);
    }
    stack_t stack = {};
    stack.ss_sp = worker.signal_stack;
    stack.ss_size = kSignalStack;
    sigaltstack(&stack, &watch.outer_stack);
    watch.armed = false;
    if (seconds <= 0) return;
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = time_signal;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    if (timer_create(CLOCK_MONOTONIC, &event, &watch.timer) != 0) return;
    const auto whole = static_cast<time_t>(seconds);
    struct itimerspec when = {};
    when.it_value.tv_sec = whole;
    when.it_value.tv_nsec = static_cast<long>((seconds - static_cast<double>(whole)) * 1e9) + 1;
    // Again and again, for the case that the first one comes at a bad moment.
    when.it_interval.tv_nsec = 20 * 1000 * 1000;
    timer_settime(watch.timer, 0, &when, nullptr);
    watch.armed = true;
}

void leave_worker(Worker&) {
    if (watch.armed) timer_delete(watch.timer);
    watch.armed = false;
    sigaltstack(&watch.outer_stack, nullptr);
}

}  // namespace simt
