// As much of CUDA's driver as our programs call, without a GPU: memory is the host's, new memory is full of values that are
// not numbers, and kernels are run by the emulation of a block (../emulation.h), one after another. So the code around
// kernels runs as on a GPU: which kernel is called, with which arguments, for how many blocks. The kernels of a source
// are in a library of its own beside this one.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include <dlfcn.h>

typedef int Result; // CUresult
constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500;

typedef bool (*Kernel)(const char *name, const unsigned *grid, const unsigned *block, void **arguments);

struct Module {
    std::string source;
    Kernel kernel;
    std::map<std::string, struct Function *> functions;
};

struct Function {
    Module *module;
    std::string name;
};

static std::mutex one; // kernels at a time
static long launches;

static std::string folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void *>(&folder), &info);
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/') + 1);
}

#define API extern "C" __attribute__((visibility("default"))) Result

API cuInit(unsigned) { return SUCCESS; }
API cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
API cuDeviceGet(int *device, int ordinal) { return ordinal ? INVALID_VALUE : (*device = 0, SUCCESS); }
API cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "no GPU: kernels emulated"), SUCCESS; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    // Compute capability 9.0, warps of 32, pools of memory, and for the rest what is large enough.
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : attribute == 115 ? 1 : 1024;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &one, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void **context) { return *context = &one, SUCCESS; }
API cuCtxSetCurrent(void *) { return SUCCESS; }
API cuCtxSynchronize() { return SUCCESS; }
API cuStreamCreate(void **stream, unsigned) { return *stream = &launches, SUCCESS; }
API cuStreamDestroy_v2(void *) { return SUCCESS; }
API cuStreamSynchronize(void *) { return SUCCESS; }
API cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
API cuStreamIsCapturing(void *, int *status) { return *status = 0, SUCCESS; }
API cuEventCreate(void **event, unsigned) { return *event = &launches, SUCCESS; }
API cuEventRecord(void *, void *) { return SUCCESS; }
API cuEventSynchronize(void *) { return SUCCESS; }
API cuEventDestroy_v2(void *) { return SUCCESS; }
API cuGetErrorName(Result, const char **name) { return *name = "an error of the emulated driver", SUCCESS; }
API cuGetErrorString(Result result, const char **text) {
    *text = result == NOT_FOUND ? "not found" : result == OUT_OF_MEMORY ? "out of memory" : "not done by the emulated driver";
    return SUCCESS;
}

API cuMemAlloc_v2(void **at, size_t bytes) {
    *at = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!*at) return OUT_OF_MEMORY;
    memset(*at, 0xff, bytes);
    return SUCCESS;
}
API cuMemAllocAsync(void **at, size_t bytes, void *) { return cuMemAlloc_v2(at, bytes); }
API cuMemFree_v2(void *at) { return free(at), SUCCESS; }
API cuMemFreeAsync(void *at, void *) { return free(at), SUCCESS; }
API cuMemGetInfo_v2(size_t *available, size_t *total) { return *available = *total = size_t(1) << 34, SUCCESS; }
API cuMemsetD8Async(void *at, unsigned char value, size_t bytes, void *) { return memset(at, value, bytes), SUCCESS; }
API cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { return memcpy(to, from, bytes), SUCCESS; }
API cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *) { return memcpy(to, from, bytes), SUCCESS; }
API cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { return memmove(to, from, bytes), SUCCESS; }

// An image is the name of its source and the end of a line, as scripts/nvcc_stand_in.sh makes it; candle's begin with PTX.
API cuModuleLoadData(Module **module, const char *image) {
    std::string source = *image == '.' ? "candle" : std::string(image, strcspn(image, "\n"));
    std::string library = folder() + source + ".so";
    void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        fprintf(stderr, "emulated driver: %s\n", dlerror());
        return NOT_FOUND;
    }
    *module = new Module{source, reinterpret_cast<Kernel>(dlsym(handle, "sidenote_kernel")), {}};
    return SUCCESS;
}
API cuModuleUnload(Module *) { return SUCCESS; }
API cuModuleGetFunction(Function **function, Module *module, const char *name) {
    std::lock_guard<std::mutex> guard(one);
    if (!module->kernel(name, nullptr, nullptr, nullptr)) {
        fprintf(stderr, "emulated driver: no kernel %s in %s\n", name, module->source.c_str());
        return NOT_FOUND;
    }
    Function *&known = module->functions[name];
    if (!known) known = new Function{module, name};
    *function = known;
    return SUCCESS;
}
API cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared,
                   void *, void **arguments, void **) {
    std::lock_guard<std::mutex> guard(one);
    unsigned grid[] = {x, y, z}, block[] = {a, b, c};
    if (!x || !y || !z || y > 65535 || z > 65535 || a * b * c > 1024 || (shared && function->module->source != "candle"))
        return INVALID_VALUE;
    launches++;
    function->module->kernel(function->name.c_str(), grid, block, arguments);
    return SUCCESS;
}
