// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), Adafactor (Shazeer and Stern 2018,
// arXiv:1804.04235, algorithms 4 and 5) and the norm of all gradients that both are clipped by. Sums are of fixed parts in
// a fixed order. Weights in bf16 have a copy in float, `master`, which is what is stepped.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 64; // whose part of a column's sum is one block's

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.4e38f; }

#define FOR_EACH(i) for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS)

// partial[block] = its part of the sum of squares.
template <typename T> __device__ void squares(const T *x, float *partial, u64 count) {
    __shared__ float shared[THREADS / WARP][1];
    float sum[1] = {0};
    FOR_EACH(i) sum[0] += to_float(x[i]) * to_float(x[i]);
    block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

__device__ __forceinline__ double sum_of(const float *partial, int parts) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) sum += partial[i];
    shared[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < THREADS; i++) sum += shared[i];
    __syncthreads();
    return sum;
}

// One block: result = {what clipping at `clip` leaves of a gradient (0: no clipping), the norm}. The first is not a
// number where the norm is none; then nothing is stepped.
extern "C" __global__ void __launch_bounds__(THREADS)
    clip_factor(const float *partial, float *result, int parts, float clip) {
    double norm = sqrt(sum_of(partial, parts));
    if (threadIdx.x != 0) return;
    bool known = norm <= 3.4e38;
    result[0] = !known ? __uint_as_float(0x7fc00000u) : clip > 0 && norm > clip ? (float)(clip / norm) : 1;
    result[1] = (float)norm;
}

struct Adam {
    float beta1, beta2;
    float rest1, rest2; // to 1, which the difference of floats has to five digits only
    float eps;
    float rate;       // the learning rate over the correction of the first moment
    float correction; // of the root of the second moment
    float keep;       // what weight decay leaves
};

template <typename T>
__device__ void adamw(T *weight, float *master, const T *grad, float *first, float *second, const float *clip, Adam a, u64 count) {
    float factor = clip[0];
    if (!finite(factor)) return;
    FOR_EACH(i) {
        float g = to_float(grad[i]) * factor, w = master ? master[i] : to_float(weight[i]);
        float m = a.beta1 * first[i] + a.rest1 * g, v = a.beta2 * second[i] + a.rest2 * g * g;
        first[i] = m;
        second[i] = v;
        w = w * a.keep - a.rate * m / (sqrtf(v) * a.correction + a.eps);
        if (master) master[i] = w;
        weight[i] = from_float<T>(w);
    }
}

// Adafactor. Of a matrix [outer, rows, columns] the second moment is row [outer, rows] and column [outer, columns].
struct Factors {
    int rows, columns;
    float keep, eps; // of the running means; added to squares
};

// A block a row: the running mean of its squares.
template <typename T> __device__ void row_means(const T *grad, float *row, const float *clip, Factors f) {
    __shared__ float shared[THREADS / WARP][1];
    float factor = clip[0], sum[1] = {0};
    if (!finite(factor)) return;
    grad += (u64)blockIdx.x * f.columns;
    for (int c = threadIdx.x; c < f.columns; c += THREADS) {
        float g = to_float(grad[c]) * factor;
        sum[0] += g * g + f.eps;
    }
    block_sum(sum, shared);
    if (threadIdx.x == 0) row[blockIdx.x] = f.keep * row[blockIdx.x] + (1 - f.keep) * sum[0] / f.columns;
}

// Block (columns, parts of ROWS rows, outer): partial [outer, parts, columns] sums of squares.
template <typename T> __device__ void column_parts(const T *grad, float *partial, const float *clip, Factors f) {
    int column = blockIdx.x * THREADS + threadIdx.x;
    float factor = clip[0], sum = 0;
    if (column >= f.columns || !finite(factor)) return;
    int last = (int)(blockIdx.y + 1) * ROWS < f.rows ? (int)(blockIdx.y + 1) * ROWS : f.rows;
    for (int row = blockIdx.y * ROWS; row < last; row++) {
        float g = to_float(grad[((u64)blockIdx.z * f.rows + row) * f.columns + column]) * factor;
        sum += g * g + f.eps;
    }
    partial[((u64)blockIdx.z * gridDim.y + blockIdx.y) * f.columns + column] = sum;
}

// Block (columns, outer).
extern "C" __global__ void __launch_bounds__(THREADS)
    adafactor_columns(const float *partial, float *column, const float *clip, int parts, Factors f) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= f.columns || !finite(clip[0])) return;
    float sum = 0;
    for (int p = 0; p < parts; p++) sum += partial[((u64)blockIdx.y * parts + p) * f.columns + c];
    u64 at = (u64)blockIdx.y * f.columns + c;
    column[at] = f.keep * column[at] + (1 - f.keep) * sum / f.rows;
}

// Block (outer): the mean of the row means, by which they are divided, so that their product with the column means has
// the right scale.
extern "C" __global__ void __launch_bounds__(THREADS) adafactor_scale(const float *row, float *scale, int rows) {
    __shared__ float shared[THREADS / WARP][1];
    float sum[1] = {0};
    for (int r = threadIdx.x; r < rows; r += THREADS) sum[0] += row[(u64)blockIdx.x * rows + r];
    block_sum(sum, shared);
    if (threadIdx.x == 0) scale[blockIdx.x] = sum[0] / rows;
}

// A vector's second moment is of every number.
template <typename T> __device__ void whole(const T *grad, float *moment, const float *clip, float keep, float eps, u64 count) {
    float factor = clip[0];
    if (!finite(factor)) return;
    FOR_EACH(i) {
        float g = to_float(grad[i]) * factor;
        moment[i] = keep * moment[i] + (1 - keep) * (g * g + eps);
    }
}

// The update of number i before its rate; `scale` is null for a vector, whose moment is `row`.
__device__ __forceinline__ float update_of(float g, u64 i, const float *row, const float *column, const float *scale, Factors f) {
    if (!scale) return g / sqrtf(row[i]);
    u64 line = i / f.columns, matrix = line / f.rows;
    return g / sqrtf(row[line] / scale[matrix]) / sqrtf(column[matrix * f.columns + i % f.columns]);
}

// partial[2 * block..] = its parts of the sums of squares of update and weight.
template <typename T>
__device__ void sizes(const T *weight, const float *master, const T *grad, const float *row, const float *column,
                      const float *scale, const float *clip, float *partial, Factors f, u64 count) {
    __shared__ float shared[THREADS / WARP][2];
    float sum[2] = {0, 0}, factor = clip[0];
    FOR_EACH(i) {
        float u = update_of(to_float(grad[i]) * factor, i, row, column, scale, f);
        float w = master ? master[i] : to_float(weight[i]);
        sum[0] += u * u;
        sum[1] += w * w;
    }
    block_sum(sum, shared);
    if (threadIdx.x < 2) partial[threadIdx.x * gridDim.x + blockIdx.x] = sum[threadIdx.x];
}

// One block: the rate of a tensor of `count` numbers. `least`: of the root mean square that the learning rate is relative
// to, 0 where it is not; `most`: of that of the update.
extern "C" __global__ void __launch_bounds__(THREADS)
    adafactor_rate(const float *partial, float *rate, int parts, float lr, float least, float most, u64 count) {
    double update = sqrt(sum_of(partial, parts) / count), weight = sqrt(sum_of(partial + parts, parts) / count);
    if (threadIdx.x != 0) return;
    double relative = least > 0 ? (weight > least ? weight : least) : 1;
    *rate = (float)(lr * relative / (update > most ? update / most : 1));
}

template <typename T>
__device__ void adafactor(T *weight, float *master, const T *grad, const float *row, const float *column,
                          const float *scale, const float *clip, const float *rate, float keep, Factors f, u64 count) {
    float factor = clip[0];
    if (!finite(factor)) return;
    FOR_EACH(i) {
        float u = update_of(to_float(grad[i]) * factor, i, row, column, scale, f);
        float w = (master ? master[i] : to_float(weight[i])) * keep - *rate * u;
        if (master) master[i] = w;
        weight[i] = from_float<T>(w);
    }
}

#define OPTIMISER(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) squares_##suffix(const T *x, float *partial, u64 count) {    \
        squares(x, partial, count);                                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        adamw_##suffix(T *weight, float *master, const T *grad, float *first, float *second, const float *clip,        \
                       Adam a, u64 count) {                                                                            \
        adamw(weight, master, grad, first, second, clip, a, count);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        adafactor_rows_##suffix(const T *grad, float *row, const float *clip, Factors f) {                             \
        row_means(grad, row, clip, f);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        adafactor_column_parts_##suffix(const T *grad, float *partial, const float *clip, Factors f) {                 \
        column_parts(grad, partial, clip, f);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        adafactor_whole_##suffix(const T *grad, float *moment, const float *clip, float keep, float eps, u64 count) {  \
        whole(grad, moment, clip, keep, eps, count);                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) adafactor_sizes_##suffix(                                    \
        const T *weight, const float *master, const T *grad, const float *row, const float *column,                    \
        const float *scale, const float *clip, float *partial, Factors f, u64 count) {                                 \
        sizes(weight, master, grad, row, column, scale, clip, partial, f, count);                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) adafactor_##suffix(                                          \
        T *weight, float *master, const T *grad, const float *row, const float *column, const float *scale,            \
        const float *clip, const float *rate, float keep, Factors f, u64 count) {                                      \
        adafactor(weight, master, grad, row, column, scale, clip, rate, keep, f, count);                               \
    }
OPTIMISER(float, f32)
OPTIMISER(bf16, bf16)
