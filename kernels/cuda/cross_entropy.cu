// The output layer and its loss, without the matrix of logits: forward keeps what each row's logits come to over tiles
// of the vocabulary; backward computes the logits again and writes their gradients for some rows at a time, which the
// products of matmul.cu turn into those of hidden and weight (as Liger Kernel, arXiv:2410.10989, section 3.2).
// Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7; z-loss: arXiv:2204.02311, section 5.
#include "matmul.cuh"

constexpr int SLICE = 32; // columns of the tile that are summed at a time

// Block (tiles of rows, tiles of the vocabulary): partial[row, tile] = {highest logit, sum of exp(logit - highest), sum
// of logits}; logit[row] is the target's. Targets outside the vocabulary have none.
template <typename T>
__device__ void statistics(const T *hidden, const T *weight, const u32 *targets, float *partial, float *logit, int rows,
                           int vocabulary, int dim) {
    __shared__ Shared<T> shared;
    __shared__ float some[TILE][SLICE + 1];
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Sums<T> sums;
    tile_product(sums, Rows<T>{hidden, rows, dim, row, {}}, Rows<T>{weight, vocabulary, dim, column, {}}, dim, shared);
    int mine = row + threadIdx.x; // a thread a row from here on
    u32 target = threadIdx.x < TILE && mine < rows ? targets[mine] : 0;
    float most = -INFINITY, total = 0, all = 0;
    for (int slice = 0; slice < TILE; slice += SLICE) {
        sums.for_each([&](int r, int c, float x) {
            if (c >= slice && c < slice + SLICE) some[r][c - slice] = x;
        });
        __syncthreads();
        if (threadIdx.x < TILE && mine < rows) {
            for (int c = 0; c < SLICE && column + slice + c < vocabulary; c++) {
                float x = some[threadIdx.x][c], peak = fmaxf(most, x);
                total = total * expf(most - peak) + expf(x - peak);
                most = peak;
                all += x;
                if (target == (u32)(column + slice + c)) logit[mine] = x;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < TILE && mine < rows) {
        float *to = partial + ((u64)mine * gridDim.y + blockIdx.y) * 3;
        to[0] = most;
        to[1] = total;
        to[2] = all;
    }
}

// A warp a row: its loss, and the logarithm of the softmax's denominator. An ignored row's loss is 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(const float *partial, const float *logit, const u32 *targets, float *log_total, float *losses,
                       int rows, int vocabulary, int tiles, u32 ignore, int ignores, float smoothing, float z_loss) {
    int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    partial += (u64)row * tiles * 3;
    float most = -INFINITY, total = 0, all = 0;
    for (int t = lane; t < tiles; t += WARP) most = fmaxf(most, partial[3 * t]);
    for (int apart = WARP / 2; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, apart));
    for (int t = lane; t < tiles; t += WARP) {
        total += partial[3 * t + 1] * expf(partial[3 * t] - most);
        all += partial[3 * t + 2];
    }
    total = warp_sum(total);
    all = warp_sum(all);
    if (lane != 0) return;
    float log_of = most + logf(total);
    log_total[row] = log_of;
    losses[row] = ignores && targets[row] == ignore
                      ? 0
                      : (1 - smoothing) * (log_of - logit[row]) + smoothing * (log_of - all / vocabulary) + z_loss * log_of * log_of;
}

// One block: the sum of the losses, in a fixed order.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_total(const float *losses, float *loss, int rows) {
    __shared__ double partial[THREADS];
    double sum = 0;
    for (int row = threadIdx.x; row < rows; row += THREADS) sum += losses[row];
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    sum = 0;
    for (int i = 0; i < THREADS; i++) sum += partial[i];
    *loss = (float)sum;
}

// Block (tiles of rows, tiles of the vocabulary): `out` [rows, vocabulary], the gradients of the logits times `factor`.
template <typename T>
__device__ void gradient(const T *hidden, const T *weight, const u32 *targets, const float *log_total, T *out, int rows,
                         int vocabulary, int dim, u32 ignore, int ignores, float smoothing, float z_loss, float factor) {
    __shared__ Shared<T> shared;
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Sums<T> sums;
    tile_product(sums, Rows<T>{hidden, rows, dim, row, {}}, Rows<T>{weight, vocabulary, dim, column, {}}, dim, shared);
    sums.for_each([=](int r, int c, float x) {
        r += row, c += column;
        if (r >= rows || c >= vocabulary) return;
        float of = 0;
        u32 target = targets[r];
        if (!ignores || target != ignore) {
            of = expf(x - log_total[r]) * (1 + 2 * z_loss * log_total[r]) - smoothing / vocabulary;
            if (target == (u32)c) of -= 1 - smoothing;
        }
        out[(u64)r * vocabulary + c] = from_float<T>(of * factor);
    });
}

#define CROSS_ENTROPY(T, suffix)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        cross_entropy_statistics_##suffix(const T *hidden, const T *weight, const u32 *targets, float *partial,        \
                                          float *logit, int rows, int vocabulary, int dim) {                           \
        statistics(hidden, weight, targets, partial, logit, rows, vocabulary, dim);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_gradient_##suffix(                             \
        const T *hidden, const T *weight, const u32 *targets, const float *log_total, T *out, int rows,                \
        int vocabulary, int dim, u32 ignore, int ignores, float smoothing, float z_loss, float factor) {               \
        gradient(hidden, weight, targets, log_total, out, rows, vocabulary, dim, ignore, ignores, smoothing, z_loss,   \
                 factor);                                                                                              \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
