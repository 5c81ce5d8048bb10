// Attention of the few queries of a step of generation on a cache of keys and values, which are read once, where they
// lie: [batch, key_heads, room, D] with `keys` of `room` in use. The keys are cut into pieces of SPLIT, a block each, for
// the machine is wide and a step's queries are few; their results are put together in order (Dao et al. 2023,
// "Flash-Decoding"). A result does not depend on the sequences beside it.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int SPLIT = 256; // keys of a block
constexpr int ROWS = 4;    // of queries that share a key head, those of a block

// Block (pieces of keys, batch * key_heads, groups of ROWS rows): row r of a group of heads is query r % queries of head
// r / queries. `partial` is [rows of q, pieces, D + 2]: sums, the highest score, the sum of exponentials.
template <int D, typename T>
__device__ void part(const T *q, const T *k, const T *v, const unsigned char *mask, const float *bias, float *partial,
                     int room, Sizes s) {
    constexpr int N = 16 / sizeof(T);  // numbers of a lane
    constexpr int LANES = D / N;       // lanes of a key
    constexpr int AT_ONCE = WARP / LANES;
    __shared__ float merged[WARPS][ROWS][D + 2];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = lane % LANES * N;
    int group = s.heads / s.key_heads, sequence = blockIdx.y / s.key_heads, key_head = blockIdx.y % s.key_heads;
    int first = blockIdx.z * ROWS, rows = group * s.queries;
    k += (u64)blockIdx.y * room * D;
    v += (u64)blockIdx.y * room * D;
    if (mask) mask += (u64)sequence * s.keys;

    float query[ROWS][N], sum[ROWS][N] = {}, most[ROWS], total[ROWS] = {};
    u64 row_of[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int row = min(first + r, rows - 1);
        row_of[r] = ((u64)sequence * s.heads + key_head * group + row / s.queries) * s.queries + row % s.queries;
        load(query[r], q + row_of[r] * D + column);
        most[r] = NEVER;
    }
    int last = min(s.keys, (int)(blockIdx.x + 1) * SPLIT);
    for (int at = blockIdx.x * SPLIT + warp * AT_ONCE; at < last; at += WARPS * AT_ONCE) {
        int key = at + lane / LANES;
        float key_part[N] = {}, value[N] = {};
        if (key < last) {
            load(key_part, k + (u64)key * D + column);
            load(value, v + (u64)key * D + column);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float x = 0;
#pragma unroll
            for (int n = 0; n < N; n++) x += query[r][n] * key_part[n];
#pragma unroll
            for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
            int row = min(first + r, rows - 1), head = key_head * group + row / s.queries, i = row % s.queries;
            if (!seen(s, mask, s.queries, i, key)) continue;
            x = x * s.scale + added(s, bias, nullptr, head, i, key);
            float peak = fmaxf(most[r], x), shrink = expf(most[r] - peak), weight = expf(x - peak);
            most[r] = peak;
            total[r] = total[r] * shrink + weight;
#pragma unroll
            for (int n = 0; n < N; n++) sum[r][n] = sum[r][n] * shrink + weight * value[n];
        }
    }
    // Lanes with the same columns, then the warps.
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float peak = most[r];
#pragma unroll
        for (int apart = LANES; apart < WARP; apart *= 2) peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, apart));
        float shrink = expf(most[r] - peak), all = total[r] * shrink;
#pragma unroll
        for (int apart = LANES; apart < WARP; apart *= 2) all += __shfl_xor_sync(0xffffffffu, all, apart);
#pragma unroll
        for (int n = 0; n < N; n++) {
            float x = sum[r][n] * shrink;
#pragma unroll
            for (int apart = LANES; apart < WARP; apart *= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
            if (lane < LANES) merged[warp][r][column + n] = x;
        }
        if (lane == 0) {
            merged[warp][r][D] = peak;
            merged[warp][r][D + 1] = all;
        }
    }
    __syncthreads();
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= rows) break;
        float peak = NEVER;
        for (int w = 0; w < WARPS; w++) peak = fmaxf(peak, merged[w][r][D]);
        float *to = partial + (row_of[r] * gridDim.x + blockIdx.x) * (D + 2);
        for (int c = threadIdx.x; c < D + 2; c += THREADS) {
            float x = 0;
            for (int w = 0; w < WARPS; w++) x += merged[w][r][c] * expf(merged[w][r][D] - peak);
            to[c] = c == D ? peak : x;
        }
    }
}

// Block (row): the pieces of a row of q put together.
template <int D, typename T>
__device__ void combine(const float *partial, const float *sink, T *out, int pieces, Sizes s) {
    u64 row = blockIdx.x;
    partial += row * pieces * (D + 2);
    float peak = NEVER, total = 0, of_row;
    for (int p = 0; p < pieces; p++) peak = fmaxf(peak, partial[p * (D + 2) + D]);
    for (int p = 0; p < pieces; p++) total += partial[p * (D + 2) + D + 1] * expf(partial[p * (D + 2) + D] - peak);
    float factor = finish(peak, total, sink, row / s.queries % s.heads, of_row);
    for (int c = threadIdx.x; c < D; c += blockDim.x) {
        float x = 0;
        for (int p = 0; p < pieces; p++) x += partial[p * (D + 2) + c] * expf(partial[p * (D + 2) + D] - peak);
        out[row * D + c] = from_float<T>(x * factor);
    }
}

// Block (rows of k): k, [batch * key_heads, added, D], to place `at` of the cache, [batch * key_heads, room, D].
template <typename T> __device__ void append(const T *k, T *cache, int width, int added, int at, int room) {
    u64 to = ((u64)(blockIdx.x / added) * room + at + blockIdx.x % added) * width;
    for (int c = threadIdx.x; c < width; c += blockDim.x) cache[to + c] = k[(u64)blockIdx.x * width + c];
}

#define DECODE(T, suffix, D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        decode_part_##suffix##_##D(const T *q, const T *k, const T *v, const unsigned char *mask, const float *bias,   \
                                   float *partial, int room, Sizes s) {                                                \
        part<D>(q, k, v, mask, bias, partial, room, s);                                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        decode_combine_##suffix##_##D(const float *partial, const float *sink, T *out, int pieces, Sizes s) {          \
        combine<D>(partial, sink, out, pieces, s);                                                                     \
    }
#define APPEND(T, suffix)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        cache_append_##suffix(const T *k, T *cache, int width, int added, int at, int room) {                          \
        append(k, cache, width, added, at, room);                                                                      \
    }
DECODE(float, f32, 32)
DECODE(float, f32, 64)
DECODE(float, f32, 128)
DECODE(bf16, bf16, 32)
DECODE(bf16, bf16, 64)
DECODE(bf16, bf16, 128)
APPEND(float, f32)
APPEND(bf16, bf16)
