// The kernels of one source, to be called by name as a driver does: SOURCE is its file, KERNELS their names in KERNEL().
#include SOURCE

#include <utility>

template <typename... Parameters, size_t... I>
static void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, void **arguments, std::index_sequence<I...>) {
    emulation::launch(kernel, grid, block, *static_cast<Parameters *>(arguments[I])...);
}

template <typename... Parameters>
static void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, void **arguments) {
    run(kernel, grid, block, arguments, std::index_sequence_for<Parameters...>());
}

// Whether there is such a kernel; runs it where there are arguments.
extern "C" __attribute__((visibility("default"))) bool
sidenote_kernel(const char *name, const unsigned *grid, const unsigned *block, void **arguments) {
#define KERNEL(kernel)                                                                                                 \
    if (!strcmp(name, #kernel)) {                                                                                      \
        if (grid) run(kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), arguments);        \
        return true;                                                                                                   \
    }
    KERNELS
    return false;
}
