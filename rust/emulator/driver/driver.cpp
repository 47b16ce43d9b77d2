// A CUDA driver whose card is the processor: those functions of libcuda.so.1 that the engine calls.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "all.cu"
#include "fibers.h"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NO_BINARY = 209,
    UNSUPPORTED_PTX = 222,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

typedef unsigned long long Address;

struct Settings {
    int major = 7, minor = 5, driver = 12000, started = SUCCESS;
    size_t memory = size_t{8} << 30;
    bool backwards = false;
    // The graph that fails, counted from 1, and all after it.
    unsigned long fails_at = ~0ul;
    std::string report;

    Settings() {
        if (const char *text = getenv("EMULATED_CUDA_CAPABILITY"))
            sscanf(text, "%d.%d", &major, &minor);
        if (const char *text = getenv("EMULATED_CUDA_MEMORY_MB"))
            memory = strtoull(text, nullptr, 10) << 20;
        if (const char *text = getenv("EMULATED_CUDA_DRIVER")) driver = atoi(text);
        if (const char *text = getenv("EMULATED_CUDA_STARTED")) started = atoi(text);
        if (const char *text = getenv("EMULATED_CUDA_FAILS_AT"))
            fails_at = strtoull(text, nullptr, 10);
        if (const char *text = getenv("EMULATED_CUDA_BACKWARDS")) backwards = *text == '1';
        if (const char *text = getenv("EMULATED_CUDA_REPORT")) report = text;
    }
};

struct Node {
    std::string name;
    std::function<void()> run;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Stream {
    Graph *capturing = nullptr;
};

struct Module {
    std::set<std::string> entries;
};

struct Function {
    std::string name;
    const emulated::Kernel *kernel;
};

struct Allocation {
    size_t bytes, mapped;
    char *base;
};

struct Card {
    Settings settings;
    std::recursive_mutex mutex;
    std::map<Address, Allocation> memory;
    size_t used = 0, used_most = 0;
    std::map<std::string, unsigned long> counts;
    std::set<std::string> lookups;
    std::map<std::string, Function> functions;

    ~Card() {
        if (settings.report.empty()) return;
        FILE *file = fopen(settings.report.c_str(), "a");
        if (!file) return;
        fprintf(file, "memory_most %zu\n", used_most);
        for (auto &[what, count] : counts) fprintf(file, "%s %lu\n", what.c_str(), count);
        for (auto &name : lookups) fprintf(file, "lookup %s\n", name.c_str());
        fclose(file);
    }

    void count(const std::string &what) { counts[what]++; }
};

Card &card() {
    static Card *instance = new Card;
    static struct AtExit {
        ~AtExit() { delete instance; }
    } at_exit;
    (void)at_exit;
    return *instance;
}

typedef std::lock_guard<std::recursive_mutex> Lock;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void submit(Stream *stream, Node node) {
    if (stream && stream->capturing) {
        stream->capturing->nodes.push_back(std::move(node));
    } else {
        card().count(node.name);
        node.run();
    }
}

}  // namespace

namespace emulated {

std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

}  // namespace emulated

extern "C" {

#define LOCKED Lock lock(card().mutex)

int cuInit(unsigned) { return card().settings.started; }

int cuDriverGetVersion(int *version) {
    *version = card().settings.driver;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int) {
    snprintf(name, length, "Emulated");
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 75:
            *value = card().settings.major;
            return SUCCESS;
        case 76:
            *value = card().settings.minor;
            return SUCCESS;
        case 16:
            *value = 36;
            return SUCCESS;  // multiprocessors
        default:
            *value = 0;
            return SUCCESS;
    }
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &card();
    return SUCCESS;
}
int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxGetCurrent(void **context) {
    *context = &card();
    return SUCCESS;
}
int cuCtxSynchronize() { return SUCCESS; }

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED;
    *total = card().settings.memory;
    *free = *total - card().used;
    return SUCCESS;
}

// Memory ends at a page that nobody may touch, so that what goes beyond it ends the process; it
// begins as numbers that are none.
int cuMemAlloc_v2(Address *address, size_t bytes) {
    LOCKED;
    if (bytes == 0) return INVALID_VALUE;
    const size_t granule = 512, taken = (bytes + granule - 1) / granule * granule;
    if (card().used + taken > card().settings.memory) return OUT_OF_MEMORY;
    const size_t data = (bytes + 15) / 16 * 16;
    const size_t mapped = (data + page() - 1) / page() * page();
    char *base = static_cast<char *>(mmap(nullptr, mapped + page(), PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(base + mapped, page(), PROT_NONE);
    char *from = base + mapped - data;
    memset(from, 0xff, data);
    *address = reinterpret_cast<Address>(from);
    card().memory[*address] = Allocation{taken, mapped + page(), base};
    card().used += taken;
    card().used_most = std::max(card().used_most, card().used);
    card().count("alloc");
    return SUCCESS;
}

int cuMemFree_v2(Address address) {
    LOCKED;
    auto found = card().memory.find(address);
    if (found == card().memory.end()) return INVALID_VALUE;
    munmap(found->second.base, found->second.mapped);
    card().used -= found->second.bytes;
    card().memory.erase(found);
    return SUCCESS;
}

int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    *pointer = malloc(bytes);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *pointer) {
    free(pointer);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    LOCKED;
    submit(stream, {"copy_to_device", [=] { memcpy(reinterpret_cast<void *>(to), from, bytes); }});
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    LOCKED;
    submit(stream, {"copy_to_host", [=] { memcpy(to, reinterpret_cast<void *>(from), bytes); }});
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    LOCKED;
    submit(stream, {"copy", [=] {
                        memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
                    }});
    return SUCCESS;
}
int cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
int cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}
int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream *stream) {
    LOCKED;
    submit(stream, {"memset", [=] { memset(reinterpret_cast<void *>(to), value, bytes); }});
    return SUCCESS;
}
int cuMemsetD8_v2(Address to, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(to, value, bytes, nullptr);
}

int cuStreamCreate(Stream **stream, unsigned) {
    *stream = new Stream;
    return SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
    delete stream;
    return SUCCESS;
}
int cuStreamSynchronize(Stream *) {
    LOCKED;
    card().count("synchronize");
    return SUCCESS;
}
int cuStreamBeginCapture_v2(Stream *stream, int) {
    stream->capturing = new Graph;
    return SUCCESS;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    *graph = stream->capturing;
    stream->capturing = nullptr;
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long) {
    *exec = new Graph(*graph);
    return SUCCESS;
}
int cuGraphDestroy(Graph *graph) {
    delete graph;
    return SUCCESS;
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(Graph *exec, Stream *) {
    LOCKED;
    card().count("graph");
    if (card().counts["graph"] >= card().settings.fails_at) return LAUNCH_FAILED;
    for (Node &node : exec->nodes) {
        card().count("graph_" + node.name);
        node.run();
    }
    return SUCCESS;
}

int cuEventCreate(void **event, unsigned) {
    *event = new int;
    return SUCCESS;
}
int cuEventRecord(void *, Stream *) { return SUCCESS; }
int cuEventElapsedTime(float *ms, void *, void *) {
    *ms = 1;
    return SUCCESS;
}
int cuEventDestroy_v2(void *event) {
    delete static_cast<int *>(event);
    return SUCCESS;
}

// The options are a buffer for what went wrong, and its size.
int cuModuleLoadDataEx(Module **module, const void *image, unsigned, int *, void **values) {
    LOCKED;
    const auto refused = [values](int error, const char *why) {
        snprintf(static_cast<char *>(values[0]), reinterpret_cast<size_t>(values[1]), "%s", why);
        return error;
    };
    const char *text = static_cast<const char *>(image);
    int version_major = 0, version_minor = 0, target = 0;
    const char *version = strstr(text, ".version "), *architecture = strstr(text, ".target sm_");
    if (!version || !architecture ||
        sscanf(version, ".version %d.%d", &version_major, &version_minor) != 2 ||
        sscanf(architecture, ".target sm_%d", &target) != 1)
        return refused(INVALID_IMAGE, "this is no PTX");
    const Settings &settings = card().settings;
    if (target > settings.major * 10 + settings.minor)
        return refused(NO_BINARY, "for a newer card");
    // CUDA 12.x reads PTX 8.x, 13.x reads 9.x.
    if (version_major * 10 + version_minor >
        (settings.driver / 1000 - 4) * 10 + settings.driver % 1000 / 10)
        return refused(UNSUPPORTED_PTX, "PTX of a newer CUDA");
    Module *loaded = new Module;
    for (const char *at = text; (at = strstr(at, ".entry ")); at += 7) {
        const char *name = at + 7;
        loaded->entries.insert(std::string(name, strcspn(name, "(\n ")));
    }
    *module = loaded;
    return SUCCESS;
}
int cuModuleUnload(Module *module) {
    delete module;
    return SUCCESS;
}
int cuModuleGetFunction(const Function **function, Module *module, const char *name) {
    LOCKED;
    card().lookups.insert(name);
    const auto found = emulated::kernels().find(name);
    if (!module->entries.count(name) || found == emulated::kernels().end()) return NOT_FOUND;
    *function = &card().functions.emplace(name, Function{name, &found->second}).first->second;
    return SUCCESS;
}

int cuLaunchKernel(const Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned, Stream *stream, void **parameters, void **) {
    LOCKED;
    const unsigned threads = bx * by * bz;
    if (threads == 0 || threads > 1024 || gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535)
        return INVALID_VALUE;
    if (threads > function->kernel->most_threads) return INVALID_VALUE;
    const emulated::Body body = function->kernel->bind(parameters);
    const bool backwards = card().settings.backwards;
    submit(stream, {"launch",
                    [=] { emulated::run(body, Index{gx, gy, gz}, Index{bx, by, bz}, backwards); }});
    return SUCCESS;
}

int cuGetErrorName(int error, const char **text) {
    switch (error) {
        case INVALID_VALUE:
            *text = "CUDA_ERROR_INVALID_VALUE";
            return SUCCESS;
        case NOT_FOUND:
            *text = "CUDA_ERROR_NOT_FOUND";
            return SUCCESS;
        case LAUNCH_FAILED:
            *text = "CUDA_ERROR_LAUNCH_FAILED";
            return SUCCESS;
        case UNKNOWN:
            *text = "CUDA_ERROR_UNKNOWN";
            return SUCCESS;
        default:
            *text = nullptr;
            return INVALID_VALUE;
    }
}
}
