// A CUDA driver without a GPU, for tests: its memory is the heap, it fails where it is told to, and it writes down every call.
//
//   STUB_LOG       file that gets a line per call, with "-> CODE" behind calls that fail, and a last line about leaks
//   STUB_CODE      the result of the call that fails
//   STUB_CALL      which call fails, from 1; without it none does
//   STUB_SECONDS   how long it takes before (0); with STUB_CODE=0 it is only slow
//   STUB_FUNCTION  counts calls of this function only
//   STUB_VERSION   what cuDriverGetVersion says (13000)
//   STUB_DEVICES   number of GPUs (1)
//   STUB_MEMORY    bytes of each (4 GiB)
//   STUB_FILL      byte that every fill of memory writes, whatever it is told
//   STUB_NAME      their name (Stub GPU), STUB_MAJOR and STUB_MINOR their compute capability (8.6)
//
// Compiled with -DOLD it lacks a function, as an old driver does.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_IN_CAPTURE = 900,
};

static int calls, context_set, leaks_pinned, leaks_events, leaks_streams, leaks_modules, leaks_contexts, leaks_graphs;

// What was started while a stream is captured, or -1 outside of that.
static int captured = -1;

static const char* text_of(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

static long long number_of(const char* name, long long otherwise) {
    const char* value = getenv(name);
    return value && *value ? atoll(value) : otherwise;
}

static void write_line(const char* line) {
    const char* path = getenv("STUB_LOG");
    FILE* log = path ? fopen(path, "a") : NULL;
    if (!log) return;
    fprintf(log, "%s\n", line);
    fclose(log);
}

// Writes the call down, and says whether it is the one that fails.
static int enter(const char* function) {
    const char* only = text_of("STUB_FUNCTION", NULL);
    int fails = 0;
    if (!only || strcmp(only, function) == 0) fails = ++calls == number_of("STUB_CALL", 0);
    if (fails) sleep((unsigned)number_of("STUB_SECONDS", 0));
    char line[200];
    int code = fails ? (int)number_of("STUB_CODE", 999) : SUCCESS;
    snprintf(line, sizeof line, code ? "%s -> %d" : "%s", function, code);
    write_line(line);
    return code;
}

#define ENTER                         \
    do {                              \
        int code_ = enter(__func__);  \
        if (code_) return code_;      \
    } while (0)

// ---- memory ----

typedef struct Range {
    uint64_t start;
    size_t bytes;
    struct Range* next;
} Range;

static Range* ranges;

static size_t used_bytes(void) {
    size_t bytes = 0;
    for (Range* range = ranges; range; range = range->next) bytes += range->bytes;
    return bytes;
}

static size_t total_bytes(void) { return (size_t)number_of("STUB_MEMORY", 4ll << 30); }

static int is_inside(uint64_t start, size_t bytes) {
    for (Range* range = ranges; range; range = range->next) {
        if (start >= range->start && start + bytes <= range->start + range->bytes) return 1;
    }
    return 0;
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    ENTER;
    *total = total_bytes();
    *free_bytes = *total - used_bytes();
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    ENTER;
    if (!context_set) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > total_bytes() - used_bytes()) return OUT_OF_MEMORY;
    Range* range = malloc(sizeof *range);
    *range = (Range){(uint64_t)(uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256), bytes, ranges};
    memset((void*)(uintptr_t)range->start, 0, bytes);
    ranges = range;
    *address = range->start;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    ENTER;
    for (Range** link = &ranges; *link; link = &(*link)->next) {
        Range* range = *link;
        if (range->start != address) continue;
        *link = range->next;
        free((void*)(uintptr_t)range->start);
        free(range);
        return SUCCESS;
    }
    return INVALID_VALUE;
}

#ifndef OLD
int cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    ENTER;
    (void)flags;
    *memory = malloc(bytes);
    leaks_pinned++;
    return SUCCESS;
}
#endif

int cuMemFreeHost(void* memory) {
    ENTER;
    free(memory);
    leaks_pinned--;
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER;
    if (captured >= 0) return NOT_IN_CAPTURE;
    if (!context_set || !stream || !is_inside(to, bytes)) return INVALID_VALUE;
    memcpy((void*)(uintptr_t)to, from, bytes);
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER;
    if (captured >= 0) return NOT_IN_CAPTURE;
    if (!context_set || !stream || !is_inside(from, bytes)) return INVALID_VALUE;
    memcpy(to, (const void*)(uintptr_t)from, bytes);
    return SUCCESS;
}

int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void* stream) {
    ENTER;
    if (!context_set || !stream || !is_inside(to, bytes)) return INVALID_VALUE;
    if (captured >= 0) {
        captured++;
        return SUCCESS;
    }
    memset((void*)(uintptr_t)to, (int)number_of("STUB_FILL", byte), bytes);
    return SUCCESS;
}

// ---- driver, devices, context ----

int cuInit(unsigned flags) {
    ENTER;
    return flags ? INVALID_VALUE : SUCCESS;
}

int cuDriverGetVersion(int* version) {
    ENTER;
    *version = (int)number_of("STUB_VERSION", 13000);
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    ENTER;
    *count = (int)number_of("STUB_DEVICES", 1);
    return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
    ENTER;
    if (ordinal < 0 || ordinal >= number_of("STUB_DEVICES", 1)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char* name, int length, int device) {
    ENTER;
    (void)device;
    snprintf(name, (size_t)length, "%s", text_of("STUB_NAME", "Stub GPU"));
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, unsigned attribute, int device) {
    ENTER;
    (void)device;
    switch (attribute) {
        case 16: *value = 68; return SUCCESS;  // multiprocessors
        case 75: *value = (int)number_of("STUB_MAJOR", 8); return SUCCESS;
        case 76: *value = (int)number_of("STUB_MINOR", 6); return SUCCESS;
        case 97: *value = 99 << 10; return SUCCESS;  // shared memory of a block
        default: return INVALID_VALUE;
    }
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    ENTER;
    (void)device;
    *bytes = total_bytes();
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER;
    (void)device;
    *context = &context_set;
    leaks_contexts++;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    (void)device;
    leaks_contexts--;
    return SUCCESS;
}

int cuCtxSetCurrent(void* context) {
    ENTER;
    if (context != &context_set) return INVALID_CONTEXT;
    context_set = 1;
    return SUCCESS;
}

// ---- streams and events ----

int cuStreamCreate(void** stream, unsigned flags) {
    ENTER;
    (void)flags;
    *stream = malloc(1);
    leaks_streams++;
    return SUCCESS;
}

int cuStreamDestroy_v2(void* stream) {
    ENTER;
    free(stream);
    leaks_streams--;
    return SUCCESS;
}

int cuStreamSynchronize(void* stream) {
    ENTER;
    if (captured >= 0) return NOT_IN_CAPTURE;
    return stream ? SUCCESS : INVALID_VALUE;
}

int cuEventCreate(void** event, unsigned flags) {
    ENTER;
    (void)flags;
    *event = malloc(1);
    leaks_events++;
    return SUCCESS;
}

int cuEventDestroy_v2(void* event) {
    ENTER;
    free(event);
    leaks_events--;
    return SUCCESS;
}

int cuEventRecord(void* event, void* stream) {
    ENTER;
    return event && stream ? SUCCESS : INVALID_VALUE;
}

int cuEventSynchronize(void* event) {
    ENTER;
    return event ? SUCCESS : INVALID_VALUE;
}

int cuEventElapsedTime(float* milliseconds, void* first, void* last) {
    ENTER;
    (void)first, (void)last;
    *milliseconds = 1.5f;
    return SUCCESS;
}

// ---- graphs: how many launches they have is all that is known of them ----

int cuStreamBeginCapture_v2(void* stream, int mode) {
    ENTER;
    if (!stream || mode != 1 || captured >= 0) return INVALID_VALUE;
    captured = 0;
    return SUCCESS;
}

int cuStreamEndCapture(void* stream, void** graph) {
    ENTER;
    if (!stream || captured < 0) return INVALID_VALUE;
    int* made = malloc(sizeof *made);
    *made = captured;
    captured = -1;
    leaks_graphs++;
    *graph = made;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long flags) {
    ENTER;
    if (!graph || flags) return INVALID_VALUE;
    int* made = malloc(sizeof *made);
    *made = *(int*)graph;
    leaks_graphs++;
    *ready = made;
    return SUCCESS;
}

int cuGraphLaunch(void* ready, void* stream) {
    ENTER;
    return ready && stream && captured < 0 && *(int*)ready > 0 ? SUCCESS : INVALID_VALUE;
}

static int destroy_graph(void* graph) {
    free(graph);
    leaks_graphs--;
    return SUCCESS;
}

int cuGraphDestroy(void* graph) {
    ENTER;
    return destroy_graph(graph);
}

int cuGraphExecDestroy(void* ready) {
    ENTER;
    return destroy_graph(ready);
}

// ---- kernels ----

typedef struct Function {
    char name[100];
    unsigned allowed_smem;
} Function;

static Function functions[1000];
static int num_functions;

int cuModuleLoadData(void** module, const void* image) {
    ENTER;
    // The mark of a fatbin.
    if ((uintptr_t)image % 16 != 0 || *(const uint32_t*)image != 0xba55ed50u) return INVALID_VALUE;
    *module = functions;
    leaks_modules++;
    return SUCCESS;
}

int cuModuleUnload(void* module) {
    ENTER;
    leaks_modules--;
    return module == functions ? SUCCESS : INVALID_VALUE;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER;
    if (module != functions || num_functions == 1000) return NOT_FOUND;
    Function* new_function = &functions[num_functions++];
    // 48 KiB need no permission.
    *new_function = (Function){"", 48 << 10};
    snprintf(new_function->name, sizeof new_function->name, "%s", name);
    *function = new_function;
    return SUCCESS;
}

int cuFuncSetAttribute(void* function, unsigned attribute, int value) {
    ENTER;
    if (attribute != 8 || value > 99 << 10) return INVALID_VALUE;
    ((Function*)function)->allowed_smem = (unsigned)value;
    return SUCCESS;
}

int cuFuncLoad(void* function) {
    ENTER;
    return function && captured < 0 ? SUCCESS : INVALID_VALUE;
}

// The params of kernels/self_test.cu.
typedef struct SelfTestParams {
    const uint32_t* x;
    uint32_t* y;
    uint32_t factor;
    float addend;
    int64_t offset;
    uint32_t stride;
    uint32_t fault;
} SelfTestParams;

static void self_test(const SelfTestParams* p, unsigned blocks) {
    for (unsigned block = 0; block < blocks; block++) {
        uint32_t z[128];
        for (unsigned thread = 0; thread < 128; thread++) {
            z[thread] = p->factor * p->x[128 * block + thread] + (uint32_t)p->addend + (uint32_t)p->offset + block;
        }
        for (unsigned thread = 0; thread < 128; thread++) {
            p->y[128 * block + thread] = z[127 - thread] ^ z[127 - (thread ^ 1)];
        }
    }
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned smem, void* stream, void** params, void** extra) {
    ENTER;
    const Function* kernel = function;
    if (!context_set || !stream || extra || !params || block_x % 32 != 0 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    if (smem > kernel->allowed_smem) return INVALID_VALUE;
    if (captured >= 0) {
        captured++;
        return SUCCESS;
    }
    if (strcmp(kernel->name, "self_test") == 0) self_test(params[0], grid_x * grid_y * grid_z);
    return SUCCESS;
}

// What was not given back, when the process ends.
__attribute__((destructor)) static void at_exit(void) {
    char line[200];
    int memory = 0;
    for (Range* range = ranges; range; range = range->next) memory++;
    snprintf(line, sizeof line, "exit: memory %d pinned %d events %d streams %d modules %d contexts %d graphs %d", memory,
             leaks_pinned, leaks_events, leaks_streams, leaks_modules, leaks_contexts, leaks_graphs);
    if (calls) write_line(line);
}
