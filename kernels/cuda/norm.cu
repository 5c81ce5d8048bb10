// Normalisation over the rows of a matrix: root mean square, or with mean and bias; with the residual sum before it.
// Backward recomputes the statistics from the rows. Weight gradients: partial sums of ROWS rows each, added up in order.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int ROWS = 64;

// A row's mean (0 for the root mean square) and the inverse of its deviation.
template <bool MEAN, int N, typename T>
__device__ __forceinline__ void statistics(const T *x, int width, float eps, float &mean, float &inverse,
                                           float (*partial)[1]) {
    float sum[1] = {0};
    mean = 0;
    if (MEAN) {
        for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
            float v[N];
            load(v, x + i);
#pragma unroll
            for (int n = 0; n < N; n++) sum[0] += v[n];
        }
        block_sum(sum, partial);
        mean = sum[0] / width;
        sum[0] = 0;
    }
    for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N];
        load(v, x + i);
#pragma unroll
        for (int n = 0; n < N; n++) sum[0] += (v[n] - mean) * (v[n] - mean);
    }
    block_sum(sum, partial);
    inverse = rsqrtf(sum[0] / width + eps);
}

// A block a row. With a residual, x + residual is written to `total` and normalised.
template <bool MEAN, int N, typename T>
__device__ void forward(const T *x, const T *residual, const T *weight, const T *bias, T *total, T *out, int width,
                        float eps) {
    __shared__ float partial[THREADS / WARP][1];
    u64 at = (u64)blockIdx.x * width;
    const T *row = x + at;
    if (residual) {
        for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
            float a[N], b[N];
            load(a, x + at + i);
            load(b, residual + at + i);
#pragma unroll
            for (int n = 0; n < N; n++) a[n] += b[n];
            store(total + at + i, a);
        }
        row = total + at; // each thread reads again what it wrote itself
    }
    float mean, inverse;
    statistics<MEAN, N>(row, width, eps, mean, inverse, partial);
    for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], w[N], b[N] = {};
        load(v, row + i);
        load(w, weight + i);
        if (MEAN) load(b, bias + i);
#pragma unroll
        for (int n = 0; n < N; n++) v[n] = (v[n] - mean) * inverse * w[n] + b[n];
        store(out + at + i, v);
    }
}

// A block a row: with y = (x - mean) inverse and g = grad weight, dx = inverse (g - mean(g) - y mean(g y)); the
// statistics are kept for the weight's gradient. `through`, where there is one, is a gradient of x from elsewhere.
template <bool MEAN, int N, typename T>
__device__ void backward(const T *x, const T *weight, const T *grad, const T *through, T *dx, float *kept, int width,
                         float eps) {
    __shared__ float one[THREADS / WARP][1];
    __shared__ float two[THREADS / WARP][2];
    u64 at = (u64)blockIdx.x * width;
    float mean, inverse;
    statistics<MEAN, N>(x + at, width, eps, mean, inverse, one);
    float sums[2] = {0, 0};
    for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], w[N], g[N];
        load(v, x + at + i);
        load(w, weight + i);
        load(g, grad + at + i);
#pragma unroll
        for (int n = 0; n < N; n++) {
            sums[0] += g[n] * w[n];
            sums[1] += g[n] * w[n] * (v[n] - mean) * inverse;
        }
    }
    block_sum(sums, two);
    float of_g = MEAN ? sums[0] / width : 0, of_gy = sums[1] / width;
    for (int i = threadIdx.x * N; i < width; i += THREADS * N) {
        float v[N], w[N], g[N], t[N] = {};
        load(v, x + at + i);
        load(w, weight + i);
        load(g, grad + at + i);
        if (through) load(t, through + at + i);
#pragma unroll
        for (int n = 0; n < N; n++)
            v[n] = t[n] + inverse * (g[n] * w[n] - of_g - (v[n] - mean) * inverse * of_gy);
        store(dx + at + i, v);
    }
    if (threadIdx.x == 0) {
        kept[2 * blockIdx.x] = mean;
        kept[2 * blockIdx.x + 1] = inverse;
    }
}

// Block (columns of THREADS, rows of ROWS): partial gradients [row blocks, 2, width] of weight and bias.
template <typename T>
__device__ void weight_partial(const T *x, const T *grad, const float *kept, float *partial, int rows, int width) {
    int column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.y * ROWS, last = first + ROWS < rows ? first + ROWS : rows;
    float weight = 0, bias = 0;
    for (int row = first; row < last; row++) {
        u64 at = (u64)row * width + column;
        float g = to_float(grad[at]);
        weight += g * (to_float(x[at]) - kept[2 * row]) * kept[2 * row + 1];
        bias += g;
    }
    partial[(u64)(2 * blockIdx.y) * width + column] = weight;
    partial[(u64)(2 * blockIdx.y + 1) * width + column] = bias;
}

// Sums of the partial gradients, a thread a column; `bias` may be null.
template <typename T>
__device__ void weight_total(const float *partial, T *weight, T *bias, int blocks, int width) {
    int column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= width) return;
    float sums[2] = {0, 0};
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 2; i++) sums[i] += partial[(u64)(2 * b + i) * width + column];
    weight[column] = from_float<T>(sums[0]);
    if (bias) bias[column] = from_float<T>(sums[1]);
}

// The names end in the storage and in how many numbers a load moves: 16 bytes, or one number where rows are not
// multiples of that.
#define NORM(name, mean, T, suffix, n)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_forward_##suffix(                                     \
        const T *x, const T *residual, const T *weight, const T *bias, T *total, T *out, int width, float eps) {       \
        forward<mean, n>(x, residual, weight, bias, total, out, width, eps);                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_backward_##suffix(                                    \
        const T *x, const T *weight, const T *grad, const T *through, T *dx, float *kept, int width, float eps) {      \
        backward<mean, n>(x, weight, grad, through, dx, kept, width, eps);                                             \
    }
#define WEIGHT(T, suffix)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) norm_weight_partial_##suffix(                                \
        const T *x, const T *grad, const float *kept, float *partial, int rows, int width) {                           \
        weight_partial(x, grad, kept, partial, rows, width);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) norm_weight_total_##suffix(                                  \
        const float *partial, T *weight, T *bias, int blocks, int width) {                                             \
        weight_total(partial, weight, bias, blocks, width);                                                            \
    }
NORM(rms_norm, false, float, f32x4, 4)
NORM(rms_norm, false, float, f32x1, 1)
NORM(rms_norm, false, bf16, bf16x8, 8)
NORM(rms_norm, false, bf16, bf16x1, 1)
NORM(layer_norm, true, float, f32x4, 4)
NORM(layer_norm, true, float, f32x1, 1)
NORM(layer_norm, true, bf16, bf16x8, 8)
NORM(layer_norm, true, bf16, bf16x1, 1)
WEIGHT(float, f32)
WEIGHT(bf16, bf16)
