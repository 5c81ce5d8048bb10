// Attention in float, for where bf16 is too coarse: as attention.cu, with the ordinary units, whose products are exact
// to float. Four neighbouring lanes share a row.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = THREADS / 4; // rows of the tile that a block owns
constexpr int STEP = 8;           // rows of the other side that pass by at a time
constexpr int PAD = 4;            // numbers between shared rows, so that 8 rows lie in different banks
constexpr int MINE = STEP / 4;    // of them, those of a lane

// ROWS rows of D numbers to shared memory, 16 bytes at a time; zeros beyond the last row.
template <int ROWS, int D>
__device__ __forceinline__ void load_rows(float (*to)[D + PAD], const float *from, int first, int rows) {
    for (int i = threadIdx.x; i < ROWS * D / 4; i += THREADS) {
        int row = i / (D / 4), column = i % (D / 4) * 4;
        float four[4] = {};
        if (first + row < rows) load(four, from + (u64)(first + row) * D + column);
        store(&to[row][column], four);
    }
}

// sum[n] = this lane's row of `left` times row c + 4n of `right`.
template <int D>
__device__ __forceinline__ void product(float (&sum)[MINE], float (*left)[D + PAD], float (*right)[D + PAD]) {
    int row = threadIdx.x / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < MINE; n++) sum[n] = 0;
#pragma unroll 4
    for (int k = 0; k < D; k += 4) {
        float a[4];
        load(a, &left[row][k]);
#pragma unroll
        for (int n = 0; n < MINE; n++) {
            float b[4];
            load(b, &right[c + 4 * n][k]);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n] += a[i] * b[i];
        }
    }
}

// sum += the row's weights, of which each of the four lanes has its own, times the rows of `right`. A lane has columns
// 4c.. of every 16.
template <int D>
__device__ __forceinline__ void accumulate(float (&sum)[D / 16][4], const float (&weight)[MINE], float (*right)[D + PAD]) {
    int c = threadIdx.x % 4, first = threadIdx.x % WARP - c;
#pragma unroll
    for (int j = 0; j < STEP; j++) {
        float w = __shfl_sync(0xffffffffu, weight[j / 4], first + j % 4);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            float b[4];
            load(b, &right[j][n * 16 + c * 4]);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] += w * b[i];
        }
    }
}

template <int D>
__device__ __forceinline__ void write(float *to, float (&sum)[D / 16][4], float factor, int row, int rows) {
    if (row >= rows) return;
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] *= factor;
        store(to + (u64)row * D + n * 16 + threadIdx.x % 4 * 4, sum[n]);
    }
}

template <int D>
__device__ void forward(const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,
                        const u32 *buckets, const float *sink, float *out, float *log_sum, Sizes s) {
    alignas(16) __shared__ float query[TILE][D + PAD];
    alignas(16) __shared__ float keys[STEP][D + PAD];
    alignas(16) __shared__ float values[STEP][D + PAD];
    Place p = place_of(s, blockIdx.y);
    int first = blockIdx.x * TILE, i = first + threadIdx.x / 4, c = threadIdx.x % 4;
    if (first >= p.rows) return;
    k += key_rows_of(s, p) * D;
    v += key_rows_of(s, p) * D;
    if (mask) mask += (u64)p.sequence * s.keys;
    load_rows<TILE, D>(query, q + p.row * D, first, p.rows);
    float sum[D / 16][4] = {}, most = NEVER, total = 0;
    int from, to;
    key_range(s, first, min(first + TILE, p.rows), STEP, from, to);
    for (int at = from; at < to; at += STEP) {
        __syncthreads();
        load_rows<STEP, D>(keys, k, at, s.keys);
        load_rows<STEP, D>(values, v, at, s.keys);
        __syncthreads();
        float x[MINE], peak = most;
        product<D>(x, query, keys);
#pragma unroll
        for (int n = 0; n < MINE; n++) {
            int j = at + c + 4 * n;
            x[n] = seen(s, mask, p.rows, i, j) ? x[n] * s.scale + added(s, bias, buckets, p.head, i, j) : NEVER;
            peak = fmaxf(peak, x[n]);
        }
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
        float shrink = expf(most - peak);
        most = peak;
        total *= shrink;
#pragma unroll
        for (int n = 0; n < MINE; n++) {
            x[n] = x[n] == NEVER ? 0 : expf(x[n] - peak);
            total += x[n];
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[n][e] *= shrink;
        accumulate<D>(sum, x, values);
    }
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    float of_row, factor = finish(most, total, sink, p.head, of_row);
    if (c == 0 && i < p.rows) log_sum[p.row + i] = of_row;
    write<D>(out + p.row * D, sum, factor, i, p.rows);
}

template <int D>
__device__ void backward_q(const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,
                           const u32 *buckets, const float *grad, const float *log_sum, const float *delta, float *dq,
                           Sizes s) {
    alignas(16) __shared__ float queries[TILE][D + PAD];
    alignas(16) __shared__ float grads[TILE][D + PAD];
    alignas(16) __shared__ float keys[STEP][D + PAD];
    alignas(16) __shared__ float values[STEP][D + PAD];
    Place p = place_of(s, blockIdx.y);
    int first = blockIdx.x * TILE, i = first + threadIdx.x / 4, c = threadIdx.x % 4;
    if (first >= p.rows) return;
    k += key_rows_of(s, p) * D;
    v += key_rows_of(s, p) * D;
    if (mask) mask += (u64)p.sequence * s.keys;
    load_rows<TILE, D>(queries, q + p.row * D, first, p.rows);
    load_rows<TILE, D>(grads, grad + p.row * D, first, p.rows);
    float sum[D / 16][4] = {};
    int from, to;
    key_range(s, first, min(first + TILE, p.rows), STEP, from, to);
    for (int at = from; at < to; at += STEP) {
        __syncthreads();
        load_rows<STEP, D>(keys, k, at, s.keys);
        load_rows<STEP, D>(values, v, at, s.keys);
        __syncthreads();
        float x[MINE], inner[MINE];
        product<D>(x, queries, keys);
        product<D>(inner, grads, values);
#pragma unroll
        for (int n = 0; n < MINE; n++) {
            int j = at + c + 4 * n;
            if (seen(s, mask, p.rows, i, j)) {
                float score = x[n] * s.scale + added(s, bias, buckets, p.head, i, j);
                x[n] = expf(score - log_sum[p.row + i]) * (inner[n] - delta[p.row + i]);
            } else {
                x[n] = 0;
            }
        }
        accumulate<D>(sum, x, keys);
    }
    write<D>(dq + p.row * D, sum, s.scale, i, p.rows);
}

template <int D>
__device__ void backward_kv(const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,
                            const u32 *buckets, const float *grad, const float *log_sum, const float *delta, float *dk,
                            float *dv, Sizes s) {
    alignas(16) __shared__ float keys[TILE][D + PAD];
    alignas(16) __shared__ float values[TILE][D + PAD];
    alignas(16) __shared__ float queries[STEP][D + PAD];
    alignas(16) __shared__ float grads[STEP][D + PAD];
    int group = s.heads / s.key_heads, sequence = blockIdx.y / s.key_heads, key_head = blockIdx.y % s.key_heads;
    u64 all = (u64)blockIdx.y * s.keys * D;
    if (mask) mask += (u64)sequence * s.keys;
    int first = blockIdx.x * TILE, j = first + threadIdx.x / 4, c = threadIdx.x % 4;
    load_rows<TILE, D>(keys, k + all, first, s.keys);
    load_rows<TILE, D>(values, v + all, first, s.keys);
    float sum_k[D / 16][4] = {}, sum_v[D / 16][4] = {};
    for (int h = 0; h < group; h++) {
        Place p = place_of(s, sequence * s.heads + key_head * group + h);
        int from, to;
        query_range(s, p.rows, first, min(first + TILE, s.keys), STEP, from, to);
        for (int at = from; at < to; at += STEP) {
            __syncthreads();
            load_rows<STEP, D>(queries, q + p.row * D, at, p.rows);
            load_rows<STEP, D>(grads, grad + p.row * D, at, p.rows);
            __syncthreads();
            float weight[MINE], inner[MINE];
            product<D>(weight, keys, queries);
            product<D>(inner, values, grads);
#pragma unroll
            for (int n = 0; n < MINE; n++) {
                int i = at + c + 4 * n;
                bool counts = seen(s, mask, p.rows, i, j);
                float x = counts ? weight[n] * s.scale + added(s, bias, buckets, p.head, i, j) : 0;
                weight[n] = counts ? expf(x - log_sum[p.row + i]) : 0;
                inner[n] = counts ? weight[n] * (inner[n] - delta[p.row + i]) : 0;
            }
            accumulate<D>(sum_v, weight, grads);
            accumulate<D>(sum_k, inner, queries);
        }
    }
    write<D>(dv + all, sum_v, 1, j, s.keys);
    write<D>(dk + all, sum_k, s.scale, j, s.keys);
}

// Block (tiles of queries, tiles of keys, heads).
template <int D>
__device__ void backward_bias(const float *q, const float *k, const float *v, const unsigned char *mask,
                              const float *bias, const u32 *buckets, const float *grad, const float *log_sum,
                              const float *delta, float *dbias, int sequences, Sizes s) {
    alignas(16) __shared__ float queries[TILE][D + PAD];
    alignas(16) __shared__ float grads[TILE][D + PAD];
    alignas(16) __shared__ float keys[STEP][D + PAD];
    alignas(16) __shared__ float values[STEP][D + PAD];
    int first = blockIdx.x * TILE, at = blockIdx.y * STEP, i = first + threadIdx.x / 4, c = threadIdx.x % 4;
    float sum[MINE] = {};
    for (int sequence = 0; sequence < sequences; sequence++) {
        Place p = place_of(s, sequence * s.heads + blockIdx.z);
        u64 rows = key_rows_of(s, p);
        float x[MINE], inner[MINE];
        __syncthreads();
        load_rows<TILE, D>(queries, q + p.row * D, first, p.rows);
        load_rows<TILE, D>(grads, grad + p.row * D, first, p.rows);
        load_rows<STEP, D>(keys, k + rows * D, at, s.keys);
        load_rows<STEP, D>(values, v + rows * D, at, s.keys);
        __syncthreads();
        product<D>(x, queries, keys);
        product<D>(inner, grads, values);
#pragma unroll
        for (int n = 0; n < MINE; n++) {
            int j = at + c + 4 * n;
            if (!seen(s, mask ? mask + (u64)sequence * s.keys : nullptr, p.rows, i, j)) continue;
            float score = x[n] * s.scale + added(s, bias, buckets, p.head, i, j);
            sum[n] += expf(score - log_sum[p.row + i]) * (inner[n] - delta[p.row + i]);
        }
    }
#pragma unroll
    for (int n = 0; n < MINE; n++) {
        int j = at + c + 4 * n;
        if (i < s.queries && j < s.keys) dbias[((u64)blockIdx.z * s.queries + i) * s.keys + j] = sum[n];
    }
}

#define ATTENTION(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_f32_##D(                                   \
        const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,                  \
        const u32 *buckets, const float *sink, float *out, float *log_sum, Sizes s) {                                  \
        forward<D>(q, k, v, mask, bias, buckets, sink, out, log_sum, s);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        attention_delta_f32_##D(const float *out, const float *grad, float *delta, int rows) {                         \
        delta_of<D, WARPS>(out, grad, delta, rows);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_f32_##D(                                \
        const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,                  \
        const u32 *buckets, const float *grad, const float *log_sum, const float *delta, float *dq, Sizes s) {         \
        backward_q<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dq, s);                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_f32_##D(                               \
        const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,                  \
        const u32 *buckets, const float *grad, const float *log_sum, const float *delta, float *dk, float *dv,         \
        Sizes s) {                                                                                                     \
        backward_kv<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dk, dv, s);                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_bias_f32_##D(                             \
        const float *q, const float *k, const float *v, const unsigned char *mask, const float *bias,                  \
        const u32 *buckets, const float *grad, const float *log_sum, const float *delta, float *dbias, int sequences,  \
        Sizes s) {                                                                                                     \
        backward_bias<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dbias, sequences, s);                     \
    }
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
