// Matrix products: of a linear layer forward (nt: x [rows, inner], weight [columns, inner]), and backward to its input
// (nn: the right [inner, columns]) and its weight (tn: the left [inner, rows], the right [inner, columns]).
#include "matmul.cuh"

// Block (tiles of rows, tiles of columns): out [rows, columns], plus `residual` where there is one.
template <typename T, typename Left, typename Right>
__device__ void product(const T *left, const T *right, const T *residual, T *out, int rows, int columns, int inner) {
    __shared__ Shared<T> shared;
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Sums<T> sums;
    tile_product(sums, Left{left, rows, inner, row, {}}, Right{right, columns, inner, column, {}}, inner, shared);
    sums.for_each([=](int r, int c, float x) {
        r += row, c += column;
        if (r >= rows || c >= columns) return;
        u64 at = (u64)r * columns + c;
        out[at] = from_float<T>(x + (residual ? to_float(residual[at]) : 0));
    });
}

// The same into sums in float, which are added to.
template <typename T>
__device__ void product_added(const T *left, const T *right, float *out, int rows, int columns, int inner) {
    __shared__ Shared<T> shared;
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Sums<T> sums;
    tile_product(sums, Columns<T>{left, rows, inner, row, {}}, Columns<T>{right, columns, inner, column, {}}, inner, shared);
    sums.for_each([=](int r, int c, float x) {
        r += row, c += column;
        if (r < rows && c < columns) out[(u64)r * columns + c] += x;
    });
}

#define MATMUL(T, suffix, name, Left, Right)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        matmul_##name##_##suffix(const T *left, const T *right, const T *residual, T *out, int rows, int columns,      \
                                 int inner) {                                                                          \
        product<T, Left<T>, Right<T>>(left, right, residual, out, rows, columns, inner);                               \
    }
#define ADDED(T, suffix)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        matmul_tn_added_##suffix(const T *left, const T *right, float *out, int rows, int columns, int inner) {        \
        product_added(left, right, out, rows, columns, inner);                                                         \
    }
MATMUL(float, f32, nt, Rows, Rows)
MATMUL(float, f32, nn, Rows, Columns)
MATMUL(float, f32, tn, Columns, Columns)
MATMUL(bf16, bf16, nt, Rows, Rows)
MATMUL(bf16, bf16, nn, Rows, Columns)
MATMUL(bf16, bf16, tn, Columns, Columns)
ADDED(float, f32)
ADDED(bf16, bf16)

extern "C" __global__ void __launch_bounds__(THREADS) round_bf16(const float *from, bf16 *to, u64 count) {
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) to[i] = to_bf16(from[i]);
}
