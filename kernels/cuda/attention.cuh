// What attention in bf16 (attention.cu), in float (attention_f32.cu) and of few queries (decode.cu) share: sizes, which
// keys a query sees, where its rows lie, what is added to its scores.
//
// q and out are [batch, heads, tokens, D], k and v [batch * chunks, key_heads, keys, D]; `log_sum` [batch, heads, tokens]
// is what backward needs of the softmax. Plain attention has one chunk of all tokens. RETRO's chunked cross-attention
// (Borgeaud et al. 2022, arXiv:2112.04426, section 2.4) deals the tokens from `shift` on out to its chunks, `queries`
// each, the last maybe fewer; the rows of the other tokens are the caller's to clear.
#pragma once

#include "common.cuh"

constexpr float NEVER = -1e30f;

struct Sizes {
    int heads, key_heads, queries, keys;
    int offset;  // position of query 0 among the keys
    int causal;  // keys after a query's position are masked
    int window;  // so many positions, the query's own included, are seen; 0: all
    float scale;
    int tokens, chunks, shift;
    int columns; // of the table of a relative bias, [heads, columns]
};

// Where the queries of one head lie that read one sequence of keys.
struct Place {
    int sequence, head;
    u64 row; // the first, of all rows of q
    int rows;
};

// `index` counts heads, then sequences of keys.
__device__ __forceinline__ Place place_of(const Sizes &s, int index) {
    Place p;
    p.sequence = index / s.heads;
    p.head = index % s.heads;
    int start = s.shift + p.sequence % s.chunks * s.queries;
    p.row = ((u64)(p.sequence / s.chunks) * s.heads + p.head) * s.tokens + start;
    p.rows = max(0, min(s.queries, s.tokens - start));
    return p;
}

__device__ __forceinline__ u64 key_rows_of(const Sizes &s, const Place &p) {
    return ((u64)p.sequence * s.key_heads + p.head / (s.heads / s.key_heads)) * s.keys;
}

__device__ __forceinline__ bool seen(const Sizes &s, const unsigned char *mask, int rows, int query, int key) {
    if (query >= rows || key >= s.keys) return false;
    int position = query + s.offset;
    if (s.causal && key > position) return false;
    if (s.window && key <= position - s.window) return false;
    return !mask || mask[key];
}

// What is added to a score: bias[head, query, key], or of a relative bias table[head, buckets[query, key]].
__device__ __forceinline__ float added(const Sizes &s, const float *bias, const u32 *buckets, int head, int query, int key) {
    if (!bias) return 0;
    u64 at = (u64)query * s.keys + key;
    if (buckets) return bias[(u64)head * s.columns + buckets[at]];
    return bias[(u64)head * s.queries * s.keys + at];
}

// The keys that some query in [first, last) can see are within [from, to); `from` is a multiple of `step`.
__device__ __forceinline__ void key_range(const Sizes &s, int first, int last, int step, int &from, int &to) {
    from = 0;
    to = s.keys;
    if (s.causal) to = min(to, last + s.offset);
    if (s.window) from = max(0, first + s.offset - s.window + 1) / step * step;
}

// The queries that can see some key in [first, last), of `rows`, likewise.
__device__ __forceinline__ void query_range(const Sizes &s, int rows, int first, int last, int step, int &from, int &to) {
    from = s.causal ? max(0, first - s.offset) / step * step : 0;
    to = s.window ? min(rows, last - 1 - s.offset + s.window) : rows;
}

// How much a row's sums shrink, and its logarithm of the sum, once all keys have been seen: `most` is the highest score,
// `total` the sum of exp(score - most). A sink is a score without a value. A query that sees nothing gets zeros.
__device__ __forceinline__ float finish(float most, float total, const float *sink, int head, float &log_sum) {
    float rescale = 1;
    if (sink) {
        float peak = fmaxf(most, sink[head]);
        rescale = expf(most - peak);
        total = total * rescale + expf(sink[head] - peak);
        most = peak;
    }
    log_sum = total > 0 ? most + logf(total) : -NEVER;
    return total > 0 ? rescale / total : 0;
}

// delta[row] = the sum of out * grad over a row, a warp a row.
template <int D, int WARPS, typename T>
__device__ void delta_of(const T *out, const T *grad, float *delta, int rows) {
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
