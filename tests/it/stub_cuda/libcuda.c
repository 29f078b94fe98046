// A CUDA driver without a GPU, for tests: its memory is the heap, it fails where it is told to, and it writes down every call.
//
//   STUB_LOG       file that gets a line per call, with "-> CODE" behind calls that fail, and a last line about leaks
//   STUB_CODE      the result of the call that fails
//   STUB_CALL      which call fails, from 1; without it none does
//   STUB_SECONDS   how long it takes before (0); with STUB_CODE=0 it is only slow
//   STUB_FUNCTION  counts calls of this function only
//   STUB_VERSION   what cuDriverGetVersion says (VERSION)
//   STUB_DEVICES   number of GPUs (1)
//   STUB_MEMORY    bytes of each (4 GiB)
//   STUB_FILL      byte that every fill of memory writes, whatever it is told
//   STUB_WAIT      where it is set, the first cuEventSynchronize waits until another thread starts a kernel; 60 s are an error
//   STUB_NAME      their name (Stub GPU), STUB_MAJOR and STUB_MINOR their compute capability (8.6)
//
// Compiled with -DVERSION=12020 it is the driver for CUDA 12.2: it lacks the functions that came later, refuses images that such a
// driver cannot load, and loads kernels when such a driver does. With -DJUDGE it is a program instead, which says what loading the
// image of a file ends with: judge FILE.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 13000
#endif

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    NOT_FOUND = 500,
    NOT_IN_CAPTURE = 900,
    TIMEOUT = 909,
};

static int calls, launches, context_set, leaks_pinned, leaks_events, leaks_streams, leaks_modules, leaks_contexts, leaks_graphs;

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
    if (!only || strcmp(only, function) == 0) fails = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == number_of("STUB_CALL", 0);
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

int cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    ENTER;
    (void)flags;
    *memory = malloc(bytes);
    leaks_pinned++;
    return SUCCESS;
}

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
    *version = (int)number_of("STUB_VERSION", VERSION);
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
    static int waits;
    if (text_of("STUB_WAIT", NULL) && waits++ == 0) {
        const int before = __atomic_load_n(&launches, __ATOMIC_SEQ_CST);
        int milliseconds = 0;
        while (__atomic_load_n(&launches, __ATOMIC_SEQ_CST) == before) {
            if (milliseconds++ == 60000) return TIMEOUT;
            usleep(1000);
        }
    }
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

// Since CUDA 11.4.
#if VERSION >= 11040
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long flags) {
    ENTER;
    if (!graph || flags) return INVALID_VALUE;
    int* made = malloc(sizeof *made);
    *made = *(int*)graph;
    leaks_graphs++;
    *ready = made;
    return SUCCESS;
}
#endif

int cuGraphLaunch(void* ready, void* stream) {
    ENTER;
    return ready && stream && captured < 0 && *(int*)ready > 0 ? SUCCESS : INVALID_VALUE;
}

int cuGraphUpload(void* ready, void* stream) {
    ENTER;
    return ready && stream && captured < 0 ? SUCCESS : INVALID_VALUE;
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

// ---- images: what compilers of several releases write, and which driver reads it ----

static int capability(void) { return 10 * (int)number_of("STUB_MAJOR", 8) + (int)number_of("STUB_MINOR", 6); }

// Machine code, by what readelf shows of the files of ptxas 11.8, 12.0, 12.8 and 13.0. For sm_90 and older, those of 11.8 to 12.8
// have a format with number 7 and the architecture in the lowest byte of the flags. The next format has number 8 and the
// architecture one byte further up: 12.8 writes it for sm_120, CUDA 13 for all, and NVIDIA promises code of CUDA 13 to drivers for
// CUDA 13 only.
static int judge_code(const unsigned char* image) {
    const uint16_t machine = *(const uint16_t*)(image + 18);
    const uint32_t flags = *(const uint32_t*)(image + 48);
    const int format = image[8], gpu = capability();
    if (image[4] != 2 || machine != 190) return INVALID_IMAGE;
    const int arch = format == 8 ? (int)(flags >> 8 & 255) : (int)(flags & 255);
    if (format == 8 && VERSION < (arch >= 100 ? 12080 : 13000)) return INVALID_IMAGE;
    if (format != 7 && format != 8) return INVALID_IMAGE;
    // Cards and systems on a chip (8.7, 8.8) do not share machine code.
    const int fits = arch / 10 == gpu / 10 && arch <= gpu && (arch == gpu || (gpu != 87 && gpu != 88));
    return fits ? SUCCESS : NO_BINARY_FOR_GPU;
}

// The newest PTX that the compiler in this driver reads: 78 is 7.8. From the list of releases in the manual of PTX.
static int newest_ptx(void) {
    static const int releases[][2] = {{13000, 90}, {12090, 88}, {12080, 87}, {12070, 86}, {12050, 85}, {12040, 84}, {12030, 83},
                                      {12020, 82}, {12010, 81}, {12000, 80}, {11080, 78}};
    for (size_t i = 0; i < sizeof releases / sizeof releases[0]; i++) {
        if (VERSION >= releases[i][0]) return releases[i][1];
    }
    return 0;
}

static int judge_ptx(const char* text) {
    const char *version = strstr(text, "\n.version "), *target = strstr(text, "\n.target sm_");
    int major, minor;
    if (!version || !target || sscanf(version, "\n.version %d.%d", &major, &minor) != 2) return INVALID_PTX;
    if (10 * major + minor > newest_ptx()) return UNSUPPORTED_PTX_VERSION;
    // A hint that came with 8.3.
    if (10 * major + minor < 83 && strstr(text, "used_bytes_mask")) return INVALID_PTX;
    return atoi(target + strlen("\n.target sm_")) <= capability() ? SUCCESS : NO_BINARY_FOR_GPU;
}

// Nothing else is loaded: no file of several images, whose compression an older driver may not know.
static int judge(const void* image) {
    if (memcmp(image, "\x7f" "ELF", 4) == 0) return judge_code(image);
    if (memcmp(image, "//", 2) == 0 || memcmp(image, ".version", 8) == 0) return judge_ptx(image);
    return INVALID_IMAGE;
}

#ifdef JUDGE
int main(int argc, char** argv) {
    static char image[1 << 24];
    FILE* file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file || fread(image, 1, sizeof image - 1, file) < 64) return 2;
    printf("%d\n", judge(image));
    return 0;
}
#endif

// ---- kernels ----

typedef struct Function {
    char name[100];
    unsigned allowed_smem;
    // Whether its code is on the GPU. Loading it is nothing for a time in which launches are recorded.
    int loaded;
    int carveout;
} Function;

static Function functions[1000];
static int num_functions;

int cuModuleLoadData(void** module, const void* image) {
    ENTER;
    if (!context_set || captured >= 0 || (uintptr_t)image % 16 != 0) return INVALID_VALUE;
    int result = judge(image);
    if (result) return result;
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
    // Until cuFuncLoad came, a kernel was loaded at the latest when it was looked up.
    const int loaded = VERSION < 12040;
    if (loaded && captured >= 0) return NOT_IN_CAPTURE;
    // 48 KiB need no permission.
    *new_function = (Function){"", 48 << 10, loaded, 0};
    snprintf(new_function->name, sizeof new_function->name, "%s", name);
    *function = new_function;
    return SUCCESS;
}

int cuFuncSetAttribute(void* function, unsigned attribute, int value) {
    ENTER;
    Function* kernel = function;
    if (attribute == 9) {
        // Once is enough, and only all of it is asked for.
        if (value != 100 || kernel->carveout) return INVALID_VALUE;
        kernel->carveout = value;
        return SUCCESS;
    }
    if (attribute != 8 || value > 99 << 10) return INVALID_VALUE;
    kernel->allowed_smem = (unsigned)value;
    return SUCCESS;
}

// Since CUDA 12.4.
#if VERSION >= 12040
int cuFuncLoad(void* function) {
    ENTER;
    if (!function || captured >= 0) return INVALID_VALUE;
    ((Function*)function)->loaded = 1;
    return SUCCESS;
}
#endif

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
    Function* kernel = function;
    if (!context_set || !stream || extra || !params || block_x % 32 != 0 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    if (smem > kernel->allowed_smem) return INVALID_VALUE;
    if (captured >= 0 && !kernel->loaded) return NOT_IN_CAPTURE;
    kernel->loaded = 1;
    // A card would run such a kernel with fewer blocks than were planned.
    if (smem > 48 << 10 && !kernel->carveout) return INVALID_VALUE;
    __atomic_add_fetch(&launches, 1, __ATOMIC_SEQ_CST);
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
