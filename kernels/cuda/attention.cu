// Attention without the matrix of scores (Dao 2023, arXiv:2307.08691): bf16 in, sums in float on the tensor cores.
// Masks: causal, sliding window, keys left out, and a sink; heads of queries share heads of keys.
//
// q and out are [batch, heads, queries, D], k and v [batch, key_heads, keys, D]; `log_sum` [batch, heads, queries] is
// what backward needs of the softmax. Query i stands at position i + offset among the keys. Backward has no atomics: one
// kernel owns rows of dq, another rows of dk and dv, over all query heads of a key head; both compute the scores again.
#include "common.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 64;  // rows of the tile that a block owns: 16 a warp
constexpr int STEP = 32;  // rows of the other side that pass by at a time
constexpr int PAD = 8;    // numbers between shared rows, so that 8 rows lie in different banks
constexpr float NEVER = -1e30f;

struct Sizes {
    int heads, key_heads, queries, keys;
    int offset;  // position of query 0 among the keys
    int causal;  // keys after a query's position are masked
    int window;  // so many positions, the query's own included, are seen; 0: all
    float scale;
};

__device__ __forceinline__ bool seen(const Sizes &s, const unsigned char *mask, int query, int key) {
    if (query >= s.queries || key >= s.keys) return false;
    int position = query + s.offset;
    if (s.causal && key > position) return false;
    if (s.window && key <= position - s.window) return false;
    return !mask || mask[key];
}

// The keys that some query in [first, last) can see are within [from, to).
__device__ __forceinline__ void key_range(const Sizes &s, int first, int last, int &from, int &to) {
    from = 0;
    to = s.keys;
    if (s.causal) to = min(to, last + s.offset);
    if (s.window) from = max(0, first + s.offset - s.window + 1) / STEP * STEP;
}

// ROWS rows of D numbers to shared memory, 16 bytes at a time; zeros beyond the last row.
template <int ROWS, int D>
__device__ __forceinline__ void load_rows(bf16 (*to)[D + PAD], const bf16 *from, int first, int rows) {
    for (int i = threadIdx.x; i < ROWS * D / 8; i += THREADS) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        Several<bf16, 8> eight = {};
        if (first + row < rows)
            eight = *reinterpret_cast<const Several<bf16, 8> *>(from + (u64)(first + row) * D + column);
        *reinterpret_cast<Several<bf16, 8> *>(&to[row][column]) = eight;
    }
}

// Operands of `mma` out of shared memory. `rows_of`: 16 rows and 16 columns as its left operand; `columns_of`: rows
// [n, n+8) and columns [k, k+16) as its right one, transposed; `across`: rows [k, k+16) and columns [n, n+8) as they are.
template <int S> __device__ __forceinline__ void rows_of(u32 (&a)[4], bf16 (*x)[S], int row, int k) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = *reinterpret_cast<const u32 *>(&x[row + g + i % 2 * 8][k + 2 * t + i / 2 * 8]);
}
template <int S> __device__ __forceinline__ void columns_of(u32 (&b)[2], bf16 (*x)[S], int n, int k) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = *reinterpret_cast<const u32 *>(&x[n + g][k + 2 * t + i * 8]);
}
template <int S> __device__ __forceinline__ void across(u32 (&b)[2], bf16 (*x)[S], int k, int n) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = pack(x[k + 2 * t + i * 8][n + g], x[k + 2 * t + i * 8 + 1][n + g]);
}

// sum[N / 8][4] = the warp's 16 rows of `left` times the N rows of `right`, transposed.
template <int N, int D>
__device__ __forceinline__ void product(float (&sum)[N / 8][4], bf16 (*left)[D + PAD], int row, bf16 (*right)[D + PAD]) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        u32 a[4];
        rows_of(a, left, row, k);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            u32 b[2];
            columns_of(b, right, n * 8, k);
            mma(sum[n], a, b);
        }
    }
}

// sum[D / 8][4] += the 16 x N of `weights`, as `product` left them, times the N rows of `right`.
template <int N, int D>
__device__ __forceinline__ void accumulate(float (&sum)[D / 8][4], float (&weights)[N / 8][4], bf16 (*right)[D + PAD]) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        // Two neighbouring 16 x 8 results are one 16 x 16 operand: the lanes hold the same places.
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = pack(weights[2 * k + i / 2][i % 2 * 2], weights[2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            u32 b[2];
            across(b, right, k * 16, n * 8);
            mma(sum[n], a, b);
        }
    }
}

// Writes the warp's 16 rows, of which `rows` in all exist.
template <int D>
__device__ __forceinline__ void write(bf16 *to, float (&sum)[D / 8][4], const float (&factor)[2], int row, int rows) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + g + half * 8;
        if (r >= rows) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<u32 *>(to + (u64)r * D + n * 8 + 2 * t) =
                pack(sum[n][half * 2] * factor[half], sum[n][half * 2 + 1] * factor[half]);
    }
}

// Block (tiles of queries, batch * heads).
template <int D>
__device__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *sink,
                        bf16 *out, float *log_sum, Sizes s) {
    alignas(16) __shared__ bf16 query[TILE][D + PAD];
    alignas(16) __shared__ bf16 keys[STEP][D + PAD];
    alignas(16) __shared__ bf16 values[STEP][D + PAD];
    int head = blockIdx.y % s.heads, batch = blockIdx.y / s.heads;
    u64 key_head = (u64)batch * s.key_heads + head / (s.heads / s.key_heads);
    q += (u64)blockIdx.y * s.queries * D;
    k += key_head * s.keys * D;
    v += key_head * s.keys * D;
    if (mask) mask += (u64)batch * s.keys;
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    load_rows<TILE, D>(query, q, first, s.queries);

    float sum[D / 8][4] = {}, most[2] = {NEVER, NEVER}, total[2] = {0, 0};
    int from, to;
    key_range(s, first, min(first + TILE, s.queries), from, to);
    for (int at = from; at < to; at += STEP) {
        __syncthreads();
        load_rows<STEP, D>(keys, k, at, s.keys);
        load_rows<STEP, D>(values, v, at, s.keys);
        __syncthreads();
        float score[STEP / 8][4];
        product<STEP, D>(score, query, row, keys);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = first + row + g + half * 8;
            float peak = most[half];
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = score[n][half * 2 + j];
                    x = seen(s, mask, i, at + n * 8 + 2 * t + j) ? x * s.scale : NEVER;
                    peak = fmaxf(peak, x);
                }
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
            float shrink = expf(most[half] - peak), added = 0;
            most[half] = peak;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = score[n][half * 2 + j];
                    x = x == NEVER ? 0 : expf(x - peak);
                    added += x;
                }
            total[half] = total[half] * shrink + added;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) sum[n][half * 2 + j] *= shrink;
        }
        accumulate<STEP, D>(sum, score, values);
    }

    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        float rescale = 1, all = total[half];
        if (sink) { // a score without a value
            float peak = fmaxf(most[half], sink[head]);
            rescale = expf(most[half] - peak);
            all = all * rescale + expf(sink[head] - peak);
            most[half] = peak;
        }
        factor[half] = all > 0 ? rescale / all : 0; // a query that sees nothing gets zeros
        int i = first + row + g + half * 8;
        if (t == 0 && i < s.queries)
            log_sum[(u64)blockIdx.y * s.queries + i] = all > 0 ? most[half] + logf(all) : -NEVER;
    }
    write<D>(out + (u64)blockIdx.y * s.queries * D, sum, factor, first + row, s.queries);
}

// delta[row] = the sum of out * grad over a row, a warp a row.
template <int D>
__device__ void delta_of(const bf16 *out, const bf16 *grad, float *delta, int rows) {
    int row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    float sum = 0;
    for (int i = threadIdx.x % WARP * 2; i < D; i += WARP * 2) {
        float a[2], b[2];
        load(a, out + (u64)row * D + i);
        load(b, grad + (u64)row * D + i);
        sum += a[0] * b[0] + a[1] * b[1];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[row] = sum;
}

// Block (tiles of queries, batch * heads): dq = scale * (p * (grad v' - delta)) k.
template <int D>
__device__ void backward_q(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const bf16 *grad,
                           const float *log_sum, const float *delta, bf16 *dq, Sizes s) {
    alignas(16) __shared__ bf16 tile[TILE][D + PAD]; // the queries, then their gradients' turn for the other product
    alignas(16) __shared__ bf16 keys[STEP][D + PAD];
    alignas(16) __shared__ bf16 values[STEP][D + PAD];
    int head = blockIdx.y % s.heads, batch = blockIdx.y / s.heads;
    u64 key_head = (u64)batch * s.key_heads + head / (s.heads / s.key_heads), all = (u64)blockIdx.y * s.queries;
    k += key_head * s.keys * D;
    v += key_head * s.keys * D;
    if (mask) mask += (u64)batch * s.keys;
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    // The gradients stay in registers as operands.
    load_rows<TILE, D>(tile, grad + all * D, first, s.queries);
    __syncthreads();
    u32 grads[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++) rows_of(grads[i], tile, row, i * 16);
    __syncthreads();
    load_rows<TILE, D>(tile, q + all * D, first, s.queries);

    float sum[D / 8][4] = {};
    int from, to;
    key_range(s, first, min(first + TILE, s.queries), from, to);
    for (int at = from; at < to; at += STEP) {
        __syncthreads();
        load_rows<STEP, D>(keys, k, at, s.keys);
        load_rows<STEP, D>(values, v, at, s.keys);
        __syncthreads();
        float score[STEP / 8][4], inner[STEP / 8][4] = {};
        product<STEP, D>(score, tile, row, keys);
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) {
                u32 b[2];
                columns_of(b, values, n * 8, i * 16);
                mma(inner[n], grads[i], b);
            }
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int i = first + row + g + c / 2 * 8, j = at + n * 8 + 2 * t + c % 2;
                score[n][c] = seen(s, mask, i, j)
                                  ? expf(score[n][c] * s.scale - log_sum[all + i]) * (inner[n][c] - delta[all + i])
                                  : 0;
            }
        accumulate<STEP, D>(sum, score, keys);
    }
    float factor[2] = {s.scale, s.scale};
    write<D>(dq + all * D, sum, factor, first + row, s.queries);
}

// Block (tiles of keys, batch * key_heads): dv = p' grad and dk = scale * (p * (grad v' - delta))' q, summed over the
// query heads in their order.
template <int D>
__device__ void backward_kv(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const bf16 *grad,
                            const float *log_sum, const float *delta, bf16 *dk, bf16 *dv, Sizes s) {
    alignas(16) __shared__ bf16 tile[TILE][D + PAD];
    alignas(16) __shared__ bf16 queries[STEP][D + PAD];
    alignas(16) __shared__ bf16 grads[STEP][D + PAD];
    int group = s.heads / s.key_heads, batch = blockIdx.y / s.key_heads, key_head = blockIdx.y % s.key_heads;
    u64 all = (u64)blockIdx.y * s.keys * D;
    if (mask) mask += (u64)batch * s.keys;
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    load_rows<TILE, D>(tile, v + all, first, s.keys);
    __syncthreads();
    u32 values[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++) rows_of(values[i], tile, row, i * 16);
    __syncthreads();
    load_rows<TILE, D>(tile, k + all, first, s.keys);

    float sum_k[D / 8][4] = {}, sum_v[D / 8][4] = {};
    int last = min(first + TILE, s.keys);
    int from = s.causal ? max(0, first - s.offset) / STEP * STEP : 0;
    int to = s.window ? min(s.queries, last - 1 - s.offset + s.window) : s.queries;
    for (int h = 0; h < group; h++) {
        u64 head = (u64)batch * s.heads + key_head * group + h;
        for (int at = from; at < to; at += STEP) {
            __syncthreads();
            load_rows<STEP, D>(queries, q + head * s.queries * D, at, s.queries);
            load_rows<STEP, D>(grads, grad + head * s.queries * D, at, s.queries);
            __syncthreads();
            float weight[STEP / 8][4], inner[STEP / 8][4] = {};
            product<STEP, D>(weight, tile, row, queries); // keys by rows, queries by columns
#pragma unroll
            for (int i = 0; i < D / 16; i++)
#pragma unroll
                for (int n = 0; n < STEP / 8; n++) {
                    u32 b[2];
                    columns_of(b, grads, n * 8, i * 16);
                    mma(inner[n], values[i], b);
                }
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int j = first + row + g + c / 2 * 8, i = at + n * 8 + 2 * t + c % 2;
                    u64 of = head * s.queries + i;
                    bool counts = seen(s, mask, i, j);
                    weight[n][c] = counts ? expf(weight[n][c] * s.scale - log_sum[of]) : 0;
                    inner[n][c] = counts ? weight[n][c] * (inner[n][c] - delta[of]) : 0;
                }
            accumulate<STEP, D>(sum_v, weight, grads);
            accumulate<STEP, D>(sum_k, inner, queries);
        }
    }
    float one[2] = {1, 1}, factor[2] = {s.scale, s.scale};
    write<D>(dv + all, sum_v, one, first + row, s.keys);
    write<D>(dk + all, sum_k, factor, first + row, s.keys);
}

// The sink's gradient, a block a head: minus the sum over its queries of the sink's weight times delta.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_sink(const float *sink, const float *log_sum, const float *delta, float *dsink, int batch, Sizes s) {
    __shared__ float partial[WARPS][1];
    int head = blockIdx.x;
    float sum[1] = {0};
    for (int b = 0; b < batch; b++) {
        u64 all = ((u64)b * s.heads + head) * s.queries;
        for (int i = threadIdx.x; i < s.queries; i += THREADS)
            sum[0] -= expf(sink[head] - log_sum[all + i]) * delta[all + i];
    }
    block_sum(sum, partial);
    if (threadIdx.x == 0) dsink[head] = sum[0];
}

#define ATTENTION(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##D(                                       \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *sink, bf16 *out,          \
        float *log_sum, Sizes s) {                                                                                     \
        forward<D>(q, k, v, mask, sink, out, log_sum, s);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        attention_delta_##D(const bf16 *out, const bf16 *grad, float *delta, int rows) {                               \
        delta_of<D>(out, grad, delta, rows);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##D(                                    \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const bf16 *grad,                      \
        const float *log_sum, const float *delta, bf16 *dq, Sizes s) {                                                 \
        backward_q<D>(q, k, v, mask, grad, log_sum, delta, dq, s);                                                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##D(                                   \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const bf16 *grad,                      \
        const float *log_sum, const float *delta, bf16 *dk, bf16 *dv, Sizes s) {                                       \
        backward_kv<D>(q, k, v, mask, grad, log_sum, delta, dk, dv, s);                                                \
    }
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
