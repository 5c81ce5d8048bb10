// A GPU's block on the host: its threads are fibers of one thread of the system, each run in random order until it
// waits for others. So a barrier that is missing shows as a wrong result, one that not all threads reach as an abort.
// Blocks run one after another in random order; what is shared keeps the block's before. Not seen here: alignment,
// bank conflicts, races between blocks, and anything below a warp's instructions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::max;
using std::min;

namespace emulation {

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Copy {
    void *to;
    const void *from; // null: zeros
};

struct Fiber {
    ucontext_t context; // for its first steps; then `place`, which costs no call of the system
    jmp_buf place;
    bool started;
    std::vector<char> stack;
    State state;
    unsigned exchanges; // of the warp, so far
    std::vector<std::vector<Copy>> copies; // under way, in groups; the last is open
};

struct Exchange {
    unsigned char bytes[32][32]; // what each lane gives
};

static std::mt19937 random_order(1);
static std::vector<Fiber> fibers;
static std::vector<Exchange> exchanges; // two a warp, in turns: nobody overwrites what a slower lane still reads
static ucontext_t first_steps;
static jmp_buf scheduler;
static size_t current;
static std::function<void()> body;

inline void wait(State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

inline void enter() {
    body();
    fibers[current].state = DONE;
    _longjmp(scheduler, 1);
}

// Runs the current fiber until it waits or ends.
inline void resume() {
    if (_setjmp(scheduler)) return;
    if (fibers[current].started) _longjmp(fibers[current].place, 1);
    fibers[current].started = true;
    swapcontext(&first_steps, &fibers[current].context);
}

// Gives a value to the warp, and returns all lanes' values once each lane has given its own.
template <typename T> const Exchange &exchange(const T &value) {
    static_assert(sizeof(T) <= 32, "too large");
    Exchange &to = exchanges[current / 32 * 2 + fibers[current].exchanges++ % 2];
    memcpy(to.bytes[current % 32], &value, sizeof(T));
    wait(AT_WARP);
    return to;
}

template <typename T> T given(const Exchange &from, int lane) {
    T value;
    memcpy(&value, from.bytes[lane], sizeof(T));
    return value;
}

inline void fail(const char *what) {
    fprintf(stderr, "block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
    abort();
}

inline void run_block(unsigned threads) {
    for (size_t i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        fiber.stack.resize(128 << 10);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        fiber.state = READY;
        fiber.started = false;
        fiber.exchanges = 0;
        fiber.copies.assign(1, {});
    }
    std::vector<size_t> order;
    for (;;) {
        order.clear();
        for (size_t i = 0; i < threads; i++)
            if (fibers[i].state == READY) order.push_back(i);
        std::shuffle(order.begin(), order.end(), random_order);
        for (size_t i : order) {
            current = i;
            threadIdx = dim3(i % blockDim.x, i / blockDim.x);
            resume();
        }
        // Release about half of the warps whose lanes are all there, so that some run ahead of others; if there are
        // none, the block at its barrier.
        size_t done = 0, at_block = 0, whole = 0;
        for (size_t warp = 0; warp < threads; warp += 32) {
            size_t waiting = 0;
            for (size_t i = warp; i < warp + 32; i++) {
                waiting += fibers[i].state == AT_WARP;
                done += fibers[i].state == DONE;
                at_block += fibers[i].state == AT_BLOCK;
            }
            whole += waiting == 32;
            if (waiting == 32 && random_order() % 2)
                for (size_t i = warp; i < warp + 32; i++) fibers[i].state = READY;
        }
        if (whole > 0) continue;
        if (done == threads) return;
        if (at_block != threads) fail("threads wait for others that never come");
        for (size_t i = 0; i < threads; i++) fibers[i].state = READY;
    }
}

// kernel<<<grid, block>>>(arguments...)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    unsigned threads = block.x * block.y;
    if (threads % 32) fail("a block is whole warps");
    gridDim = grid;
    blockDim = block;
    if (fibers.size() < threads) fibers.resize(threads);
    if (exchanges.size() < threads / 16) exchanges.resize(threads / 16);
    body = [=] { kernel(arguments...); };
    std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), random_order);
    for (unsigned b : blocks) {
        blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
        run_block(threads);
    }
}

// Copies happen at once or when they are waited for, as soon or as late as they may.
inline void make(const Copy &copy) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}
inline void copy(void *to, const void *from, bool there) {
    Copy copy = {to, there ? from : nullptr};
    if (random_order() % 2) make(copy);
    else fibers[current].copies.back().push_back(copy);
}
inline void end_copies() { fibers[current].copies.emplace_back(); }
inline void finish_copies(size_t but) {
    auto &groups = fibers[current].copies;
    while (groups.size() > but + 1) {
        for (const Copy &copy : groups.front()) make(copy);
        groups.erase(groups.begin());
    }
}

inline float bf16_half(uint32_t pair, int upper) { return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16); }

inline void mma(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Operands { unsigned a[4], b[2]; } mine;
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    int lane = current % 32;
    const Exchange &all = exchange(mine);
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            Operands left = given<Operands>(all, row % 8 * 4 + k % 8 / 2);
            Operands right = given<Operands>(all, column * 4 + k % 8 / 2);
            sum[i] += bf16_half(left.a[row / 8 + k / 8 * 2], k % 2) * bf16_half(right.b[k / 8], k % 2);
        }
    }
}

} // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::AT_BLOCK); }
inline void __syncwarp() { emulation::exchange(0); }

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
    int lane = emulation::current % 32;
    return emulation::given<T>(emulation::exchange(value), lane ^ mask);
}

template <typename T> T __shfl_sync(unsigned, T value, int lane) {
    return emulation::given<T>(emulation::exchange(value), lane);
}
