// What is done to each number, or each pair, for itself: activations, gates, dropout, the rotary embedding.
#include "common.cuh"

constexpr int THREADS = 256;

enum Activation { SILU, GELU, GELU_TANH, RELU };

// The activation of x and its derivative.
__device__ __forceinline__ void activation_of(int kind, float x, float &value, float &slope) {
    if (kind == SILU) {
        float sigmoid = 1 / (1 + expf(-x));
        value = x * sigmoid;
        slope = sigmoid * (1 + x * (1 - sigmoid));
    } else if (kind == GELU) {
        float share = 0.5f * (1 + erff(x * 0.70710678f));
        value = x * share;
        slope = share + x * 0.39894228f * expf(-0.5f * x * x);
    } else if (kind == GELU_TANH) {
        float t = tanhf(0.79788456f * (x + 0.044715f * x * x * x));
        value = 0.5f * x * (1 + t);
        slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * x * x);
    } else {
        value = fmaxf(x, 0.0f);
        slope = x > 0 ? 1 : 0;
    }
}

// Numbers of this thread: `count` in all, N at a time, fewer at the end.
#define FOR_EACH(i) for (u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * N; i < count; i += (u64)gridDim.x * THREADS * N)

template <int N, typename T>
__device__ __forceinline__ void load_some(float (&to)[N], const T *from, u64 at, u64 count) {
    if (at + N <= count) {
        load(to, from + at);
    } else {
#pragma unroll
        for (int n = 0; n < N; n++) to[n] = at + n < count ? to_float(from[at + n]) : 0;
    }
}

template <int N, typename T>
__device__ __forceinline__ void store_some(T *to, const float (&from)[N], u64 at, u64 count) {
    if (at + N <= count) {
        store(to + at, from);
    } else {
#pragma unroll
        for (int n = 0; n < N; n++)
            if (at + n < count) to[at + n] = from_float<T>(from[n]);
    }
}

// out = activation(x), or activation(x) * up where there is `up`.
template <int N, typename T> __device__ void gated_forward(const T *x, const T *up, T *out, int kind, u64 count) {
    FOR_EACH(i) {
        float a[N], b[N], slope;
        load_some(a, x, i, count);
        if (up) load_some(b, up, i, count);
#pragma unroll
        for (int n = 0; n < N; n++) {
            activation_of(kind, a[n], a[n], slope);
            if (up) a[n] *= b[n];
        }
        store_some(out, a, i, count);
    }
}

template <int N, typename T>
__device__ void gated_backward(const T *x, const T *up, const T *grad, T *dx, T *dup, int kind, u64 count) {
    FOR_EACH(i) {
        float a[N], b[N], g[N], value, slope;
        load_some(a, x, i, count);
        load_some(g, grad, i, count);
        if (up) load_some(b, up, i, count);
#pragma unroll
        for (int n = 0; n < N; n++) {
            activation_of(kind, a[n], value, slope);
            a[n] = g[n] * slope * (up ? b[n] : 1);
            b[n] = g[n] * value;
        }
        store_some(dx, a, i, count);
        if (up) store_some(dup, b, i, count);
    }
}

// Philox 4x32-10 (Salmon et al. 2011): four random words of a counter and a key.
__device__ __forceinline__ void philox(u32 (&x)[4], u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)x[0] * 0xD2511F53u, c = (u64)x[2] * 0xCD9E8D57u;
        u32 next[4] = {(u32)(c >> 32) ^ x[1] ^ key0, (u32)c, (u32)(a >> 32) ^ x[3] ^ key1, (u32)a};
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = next[i];
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Number i goes where word i % 4 of block i / 4 is below the threshold, as on the CPU; the others are multiplied by
// `keep`. Backward is the same of the gradient.
template <typename T> __device__ void dropout(const T *x, T *out, u32 threshold, float keep, u64 seed, u64 count) {
    constexpr int N = 4;
    FOR_EACH(i) {
        u32 words[4] = {(u32)(i / 4), (u32)(i / 4 >> 32), 0, 0};
        philox(words, (u32)seed, (u32)(seed >> 32));
        float a[N];
        load_some(a, x, i, count);
#pragma unroll
        for (int n = 0; n < N; n++) a[n] = words[n] < threshold ? 0 : a[n] * keep;
        store_some(out, a, i, count);
    }
}

// Component c of the first `half` of a head of `dim` turns with component c + half; what lies behind stays. x is
// [batch, heads, tokens, dim], cos and sin are [tokens, half] or, `own`, [batch, tokens, half]; sign -1 turns back,
// which is the gradient. A warp a row.
template <typename T>
__device__ void turn(const T *x, const float *cosine, const float *sine, T *out, int heads, int tokens, int dim,
                     int half, int own, float sign, u64 rows) {
    u64 row = (u64)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    u64 angles = (row % tokens + (own ? row / tokens / heads * tokens : 0)) * half;
    x += row * dim;
    out += row * dim;
    for (int c = threadIdx.x % WARP; c < half; c += WARP) {
        float a = to_float(x[c]), b = to_float(x[c + half]), cs = cosine[angles + c], sn = sign * sine[angles + c];
        out[c] = from_float<T>(a * cs - b * sn);
        out[c + half] = from_float<T>(b * cs + a * sn);
    }
    for (int c = 2 * half + threadIdx.x % WARP; c < dim; c += WARP) out[c] = x[c];
}

// Heads [batch, heads, tokens, dim] out of the columns of [batch, tokens, stride] from `first` on, or back into them; N at
// a time, of which all sizes are multiples.
template <int N, typename T>
__device__ void move_heads(const T *from, T *to, int heads, int tokens, int dim, int stride, int first, int back, u64 count) {
    FOR_EACH(i) {
        u64 row = i / dim, sequence = row / tokens / heads;
        u64 at = (sequence * tokens + row % tokens) * stride + first + row / tokens % heads * dim + i % dim;
        u64 source = back ? i : at, target = back ? at : i;
        *reinterpret_cast<Several<T, N> *>(to + target) = *reinterpret_cast<const Several<T, N> *>(from + source);
    }
}

#define POINTWISE(T, suffix, n)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        gated_forward_##suffix(const T *x, const T *up, T *out, int kind, u64 count) {                                 \
        gated_forward<n>(x, up, out, kind, count);                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        gated_backward_##suffix(const T *x, const T *up, const T *grad, T *dx, T *dup, int kind, u64 count) {          \
        gated_backward<n>(x, up, grad, dx, dup, kind, count);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        move_heads_##suffix(const T *from, T *to, int heads, int tokens, int dim, int stride, int first, int back,     \
                            u64 count) {                                                                               \
        move_heads<n>(from, to, heads, tokens, dim, stride, first, back, count);                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        dropout_##suffix(const T *x, T *out, u32 threshold, float keep, u64 seed, u64 count) {                         \
        dropout(x, out, threshold, keep, seed, count);                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        rotary_##suffix(const T *x, const float *cosine, const float *sine, T *out, int heads, int tokens, int dim,    \
                        int half, int own, float sign, u64 rows) {                                                     \
        turn(x, cosine, sine, out, heads, tokens, dim, half, own, sign, rows);                                         \
    }
POINTWISE(float, f32, 4)
POINTWISE(bf16, bf16, 8)
