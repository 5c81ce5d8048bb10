// Rows of a table, and the table's gradient without atomics: tokens sorted by id, each id's rows added up in the order
// of the tokens by the one block that owns it.
#include "common.cuh"

constexpr int THREADS = 128;

// Block (row): out[row] = table[ids[row]].
template <typename T> __device__ void gather(const T *table, const u32 *ids, T *out, int width) {
    const T *from = table + (u64)ids[blockIdx.x] * width;
    T *to = out + (u64)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += THREADS) to[i] = from[i];
}

// Block (segment): `order` holds the places of tokens, sorted by id and, within an id, by place; segment s of them,
// from starts[s] to starts[s + 1], is of one id. The rows of ids that do not occur are the caller's to clear.
template <typename T>
__device__ void scatter(const T *grad, const u32 *ids, const u32 *order, const u32 *starts, T *dtable, int width) {
    u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    T *to = dtable + (u64)ids[order[first]] * width;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        float sum = 0;
        for (u32 n = first; n < last; n++) sum += to_float(grad[(u64)order[n] * width + i]);
        to[i] = from_float<T>(sum);
    }
}

#define EMBEDDING(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        embedding_forward_##suffix(const T *table, const u32 *ids, T *out, int width) {                                \
        gather(table, ids, out, width);                                                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        embedding_backward_##suffix(const T *grad, const u32 *ids, const u32 *order, const u32 *starts, T *dtable,     \
                                    int width) {                                                                       \
        scatter(grad, ids, order, starts, dtable, width);                                                              \
    }
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
