// Attention without the matrix of scores (Dao 2023, arXiv:2307.08691): bf16 in, sums in float on the tensor cores.
// Masks: causal, sliding window, keys left out, and a sink; a bias, also by buckets; RETRO's chunks; heads of queries
// share heads of keys.
//
// Query i stands at position i + offset among the keys. Backward has no atomics: one kernel owns rows of dq, another
// rows of dk and dv, over all query heads of a key head, a third tiles of the bias's gradient over all sequences; each
// computes the scores again.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 64;  // rows of the tile that a block owns: 16 a warp
constexpr int STEP = 32;  // rows of the other side that pass by at a time
constexpr int PAD = 8;    // numbers between shared rows, so that 8 rows lie in different banks

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

// The same past the registers; see `copy_async`.
template <int ROWS, int D>
__device__ __forceinline__ void fetch_rows(bf16 (*to)[D + PAD], const bf16 *from, int first, int rows) {
    for (int i = threadIdx.x; i < ROWS * D / 8; i += THREADS) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        bool there = first + row < rows;
        copy_async(&to[row][column], from + (there ? (u64)(first + row) * D + column : 0), there);
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

// The warp's 16 rows of `tile`, to stay in registers; and `product` with them.
template <int D> __device__ __forceinline__ void hold(u32 (&held)[D / 16][4], bf16 (*tile)[D + PAD], int row) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) rows_of(held[k], tile, row, k * 16);
}
template <int N, int D>
__device__ __forceinline__ void product(float (&sum)[N / 8][4], const u32 (&held)[D / 16][4], bf16 (*right)[D + PAD]) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            u32 b[2];
            columns_of(b, right, n * 8, k * 16);
            mma(sum[n], held[k], b);
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

// Block (tiles of queries, sequences of keys * heads).
template <int D>
__device__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias,
                        const u32 *buckets, const float *sink, bf16 *out, float *log_sum, Sizes s) {
    // Two stages: the next keys and values are on their way while these are used. The queries pass through the keys' place
    // on their way to registers.
    static_assert(TILE == 2 * STEP, "the queries fill both stages");
    alignas(16) __shared__ bf16 keys[2 * STEP][D + PAD];
    alignas(16) __shared__ bf16 values[2 * STEP][D + PAD];
    Place p = place_of(s, blockIdx.y);
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    if (first >= p.rows) return;
    q += p.row * D;
    k += key_rows_of(s, p) * D;
    v += key_rows_of(s, p) * D;
    if (mask) mask += (u64)p.sequence * s.keys;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    load_rows<TILE, D>(keys, q, first, p.rows);
    __syncthreads();
    u32 queries[D / 16][4];
    hold<D>(queries, keys, row);
    __syncthreads();

    float sum[D / 8][4] = {}, most[2] = {NEVER, NEVER}, total[2] = {0, 0};
    int from, to;
    key_range(s, first, min(first + TILE, p.rows), STEP, from, to);
    auto fetch = [&](int stage, int at) {
        fetch_rows<STEP, D>(keys + stage * STEP, k, at, s.keys);
        fetch_rows<STEP, D>(values + stage * STEP, v, at, s.keys);
        copies_end();
    };
    if (from < to) fetch(0, from);
    for (int at = from, stage = 0; at < to; at += STEP, stage ^= 1) {
        if (at + STEP < to) {
            fetch(stage ^ 1, at + STEP);
            copies_done<1>();
        } else {
            copies_done<0>();
        }
        __syncthreads();
        float score[STEP / 8][4];
        product<STEP, D>(score, queries, keys + stage * STEP);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = first + row + g + half * 8;
            float peak = most[half];
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = score[n][half * 2 + j];
                    int key = at + n * 8 + 2 * t + j;
                    x = seen(s, mask, p.rows, i, key) ? x * s.scale + added(s, bias, buckets, p.head, i, key) : NEVER;
                    peak = fmaxf(peak, x);
                }
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
            float shrink = expf(most[half] - peak), more = 0;
            most[half] = peak;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = score[n][half * 2 + j];
                    x = x == NEVER ? 0 : expf(x - peak);
                    more += x;
                }
            total[half] = total[half] * shrink + more;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) sum[n][half * 2 + j] *= shrink;
        }
        accumulate<STEP, D>(sum, score, values + stage * STEP);
        __syncthreads(); // before the next copies land here
    }

    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        float of_row;
        factor[half] = finish(most[half], total[half], sink, p.head, of_row);
        int i = first + row + g + half * 8;
        if (t == 0 && i < p.rows) log_sum[p.row + i] = of_row;
    }
    write<D>(out + p.row * D, sum, factor, first + row, p.rows);
}

// Block (tiles of queries, sequences of keys * heads): dq = scale * (p * (grad v' - delta)) k.
template <int D>
__device__ void backward_q(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias,
                           const u32 *buckets, const bf16 *grad, const float *log_sum, const float *delta, bf16 *dq,
                           Sizes s) {
    alignas(16) __shared__ bf16 tile[TILE][D + PAD]; // the queries, then their gradients' turn for the other product
    alignas(16) __shared__ bf16 keys[STEP][D + PAD];
    alignas(16) __shared__ bf16 values[STEP][D + PAD];
    Place p = place_of(s, blockIdx.y);
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    if (first >= p.rows) return;
    k += key_rows_of(s, p) * D;
    v += key_rows_of(s, p) * D;
    if (mask) mask += (u64)p.sequence * s.keys;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    // The gradients stay in registers as operands.
    load_rows<TILE, D>(tile, grad + p.row * D, first, p.rows);
    __syncthreads();
    u32 grads[D / 16][4];
    hold<D>(grads, tile, row);
    __syncthreads();
    load_rows<TILE, D>(tile, q + p.row * D, first, p.rows);

    float sum[D / 8][4] = {};
    int from, to;
    key_range(s, first, min(first + TILE, p.rows), STEP, from, to);
    for (int at = from; at < to; at += STEP) {
        __syncthreads();
        load_rows<STEP, D>(keys, k, at, s.keys);
        load_rows<STEP, D>(values, v, at, s.keys);
        __syncthreads();
        float score[STEP / 8][4], inner[STEP / 8][4];
        product<STEP, D>(score, tile, row, keys);
        product<STEP, D>(inner, grads, values);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int i = first + row + g + c / 2 * 8, j = at + n * 8 + 2 * t + c % 2;
                if (seen(s, mask, p.rows, i, j)) {
                    float x = score[n][c] * s.scale + added(s, bias, buckets, p.head, i, j);
                    score[n][c] = expf(x - log_sum[p.row + i]) * (inner[n][c] - delta[p.row + i]);
                } else {
                    score[n][c] = 0;
                }
            }
        accumulate<STEP, D>(sum, score, keys);
    }
    float factor[2] = {s.scale, s.scale};
    write<D>(dq + p.row * D, sum, factor, first + row, p.rows);
}

// Block (tiles of keys, sequences of keys * key_heads): dv = p' grad and dk = scale * (p * (grad v' - delta))' q, summed
// over the query heads in their order.
template <int D>
__device__ void backward_kv(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias,
                            const u32 *buckets, const bf16 *grad, const float *log_sum, const float *delta, bf16 *dk,
                            bf16 *dv, Sizes s) {
    alignas(16) __shared__ bf16 tile[TILE][D + PAD];
    alignas(16) __shared__ bf16 queries[STEP][D + PAD];
    alignas(16) __shared__ bf16 grads[STEP][D + PAD];
    int group = s.heads / s.key_heads, sequence = blockIdx.y / s.key_heads, key_head = blockIdx.y % s.key_heads;
    u64 all = (u64)blockIdx.y * s.keys * D;
    if (mask) mask += (u64)sequence * s.keys;
    int first = blockIdx.x * TILE, row = threadIdx.x / WARP * 16;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    load_rows<TILE, D>(tile, v + all, first, s.keys);
    __syncthreads();
    u32 values[D / 16][4];
    hold<D>(values, tile, row);
    __syncthreads();
    load_rows<TILE, D>(tile, k + all, first, s.keys);

    float sum_k[D / 8][4] = {}, sum_v[D / 8][4] = {};
    for (int h = 0; h < group; h++) {
        Place p = place_of(s, sequence * s.heads + key_head * group + h);
        int from, to;
        query_range(s, p.rows, first, min(first + TILE, s.keys), STEP, from, to);
        for (int at = from; at < to; at += STEP) {
            __syncthreads();
            load_rows<STEP, D>(queries, q + p.row * D, at, p.rows);
            load_rows<STEP, D>(grads, grad + p.row * D, at, p.rows);
            __syncthreads();
            float weight[STEP / 8][4], inner[STEP / 8][4];
            product<STEP, D>(weight, tile, row, queries); // keys by rows, queries by columns
            product<STEP, D>(inner, values, grads);
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int j = first + row + g + c / 2 * 8, i = at + n * 8 + 2 * t + c % 2;
                    bool counts = seen(s, mask, p.rows, i, j);
                    float x = counts ? weight[n][c] * s.scale + added(s, bias, buckets, p.head, i, j) : 0;
                    weight[n][c] = counts ? expf(x - log_sum[p.row + i]) : 0;
                    inner[n][c] = counts ? weight[n][c] * (inner[n][c] - delta[p.row + i]) : 0;
                }
            accumulate<STEP, D>(sum_v, weight, grads);
            accumulate<STEP, D>(sum_k, inner, queries);
        }
    }
    float one[2] = {1, 1}, factor[2] = {s.scale, s.scale};
    write<D>(dv + all, sum_v, one, first + row, s.keys);
    write<D>(dk + all, sum_k, factor, first + row, s.keys);
}

// Block (tiles of queries, tiles of keys, heads): the bias's gradient, p * (grad v' - delta) added up over the sequences
// in their order.
template <int D>
__device__ void backward_bias(const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias,
                              const u32 *buckets, const bf16 *grad, const float *log_sum, const float *delta,
                              float *dbias, int sequences, Sizes s) {
    alignas(16) __shared__ bf16 left[TILE][D + PAD];
    alignas(16) __shared__ bf16 right[STEP][D + PAD];
    int first = blockIdx.x * TILE, at = blockIdx.y * STEP, row = threadIdx.x / WARP * 16;
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float sum[STEP / 8][4] = {};
    for (int sequence = 0; sequence < sequences; sequence++) {
        Place p = place_of(s, sequence * s.heads + blockIdx.z);
        u64 keys = key_rows_of(s, p);
        float score[STEP / 8][4], inner[STEP / 8][4];
        __syncthreads();
        load_rows<TILE, D>(left, q + p.row * D, first, p.rows);
        load_rows<STEP, D>(right, k + keys * D, at, s.keys);
        __syncthreads();
        product<STEP, D>(score, left, row, right);
        __syncthreads();
        load_rows<TILE, D>(left, grad + p.row * D, first, p.rows);
        load_rows<STEP, D>(right, v + keys * D, at, s.keys);
        __syncthreads();
        product<STEP, D>(inner, left, row, right);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int i = first + row + g + c / 2 * 8, j = at + n * 8 + 2 * t + c % 2;
                if (!seen(s, mask ? mask + (u64)sequence * s.keys : nullptr, p.rows, i, j)) continue;
                float x = score[n][c] * s.scale + added(s, bias, buckets, p.head, i, j);
                sum[n][c] += expf(x - log_sum[p.row + i]) * (inner[n][c] - delta[p.row + i]);
            }
    }
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int i = first + row + g + c / 2 * 8, j = at + n * 8 + 2 * t + c % 2;
            if (i < s.queries && j < s.keys) dbias[((u64)blockIdx.z * s.queries + i) * s.keys + j] = sum[n][c];
        }
}

// Block (slices of the bias, heads): the table's gradient over ENTRIES places of [queries, keys], to
// partial[slice, head, columns]. A thread owns columns, so that places are added in their order.
constexpr int ENTRIES = 1 << 15;

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_table_partial(const float *dbias, const u32 *buckets, float *partial, Sizes s) {
    __shared__ u32 column[THREADS];
    __shared__ float value[THREADS];
    u64 places = (u64)s.queries * s.keys, begin = (u64)blockIdx.x * ENTRIES;
    u64 end = begin + ENTRIES < places ? begin + ENTRIES : places;
    for (int first = 0; first < s.columns; first += THREADS) {
        float sum = 0;
        for (u64 at = begin; at < end; at += THREADS) {
            u64 i = at + threadIdx.x;
            __syncthreads();
            column[threadIdx.x] = i < end ? buckets[i] : 0;
            value[threadIdx.x] = i < end ? dbias[blockIdx.y * places + i] : 0;
            __syncthreads();
            for (int n = 0; n < THREADS; n++)
                if (column[n] == first + threadIdx.x) sum += value[n];
        }
        int mine = first + threadIdx.x;
        if (mine < s.columns) partial[((u64)blockIdx.x * s.heads + blockIdx.y) * s.columns + mine] = sum;
    }
}

// The slices' sums, a thread an entry of the table.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_table_total(const float *partial, float *dtable, int slices, int entries) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= entries) return;
    float sum = 0;
    for (int slice = 0; slice < slices; slice++) sum += partial[(u64)slice * entries + i];
    dtable[i] = sum;
}

// The sink's gradient, a block a head: minus the sum over its queries of the sink's weight times delta.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_sink(const float *sink, const float *log_sum, const float *delta, float *dsink, int batch, Sizes s) {
    __shared__ float partial[WARPS][1];
    int head = blockIdx.x, last = min(s.tokens, s.shift + s.chunks * s.queries);
    float sum[1] = {0};
    for (int b = 0; b < batch; b++) {
        u64 all = ((u64)b * s.heads + head) * s.tokens;
        for (int i = s.shift + threadIdx.x; i < last; i += THREADS)
            sum[0] -= expf(sink[head] - log_sum[all + i]) * delta[all + i];
    }
    block_sum(sum, partial);
    if (threadIdx.x == 0) dsink[head] = sum[0];
}

#define ATTENTION(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_bf16_##D(                                  \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias, const u32 *buckets, \
        const float *sink, bf16 *out, float *log_sum, Sizes s) {                                                       \
        forward<D>(q, k, v, mask, bias, buckets, sink, out, log_sum, s);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        attention_delta_bf16_##D(const bf16 *out, const bf16 *grad, float *delta, int rows) {                          \
        delta_of<D, WARPS>(out, grad, delta, rows);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_bf16_##D(                               \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias, const u32 *buckets, \
        const bf16 *grad, const float *log_sum, const float *delta, bf16 *dq, Sizes s) {                               \
        backward_q<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dq, s);                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_bf16_##D(                              \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias, const u32 *buckets, \
        const bf16 *grad, const float *log_sum, const float *delta, bf16 *dk, bf16 *dv, Sizes s) {                     \
        backward_kv<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dk, dv, s);                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_bias_bf16_##D(                            \
        const bf16 *q, const bf16 *k, const bf16 *v, const unsigned char *mask, const float *bias, const u32 *buckets, \
        const bf16 *grad, const float *log_sum, const float *delta, float *dbias, int sequences, Sizes s) {            \
        backward_bias<D>(q, k, v, mask, bias, buckets, grad, log_sum, delta, dbias, sequences, s);                     \
    }
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
