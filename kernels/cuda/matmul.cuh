// A block's 128 x 128 tile of a matrix product: bf16 on the tensor cores, float on the ordinary units, sums in float.
// Operands come 64 bytes of the inner dimension at a time, and the next are on their way from memory while these are
// multiplied. Any sizes; loads are of 16 bytes where rows are multiples of that.
#pragma once

#include "common.cuh"

constexpr int TILE = 128;
constexpr int THREADS = 256;
template <typename T> constexpr int WIDE = 16 / sizeof(T);   // numbers of a load
template <typename T> constexpr int INNER = 64 / sizeof(T);  // of the inner dimension at a time
template <typename T> constexpr int STRIDE = 80 / sizeof(T); // of shared rows: 8 of them lie in different banks
constexpr int PIECES = TILE * 4 / THREADS;                   // loads of a thread

template <typename T> struct Shared {
    alignas(16) T left[TILE][STRIDE<T>];
    alignas(16) T right[TILE][STRIDE<T>];
};

template <typename T>
__device__ __forceinline__ Several<T, WIDE<T>> load_piece(const T *from, int there, bool aligned) {
    Several<T, WIDE<T>> piece = {};
    if (aligned && there >= WIDE<T>) {
        piece = *reinterpret_cast<const Several<T, WIDE<T>> *>(from);
    } else {
#pragma unroll
        for (int i = 0; i < WIDE<T>; i++)
            if (i < there) piece.value[i] = from[i];
    }
    return piece;
}

// An operand stored [outer, inner].
template <typename T> struct Rows {
    const T *numbers;
    int outer, inner, first;
    Several<T, WIDE<T>> held[PIECES];

    __device__ __forceinline__ void fetch(int k) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS, row = first + i / 4, column = k + i % 4 * WIDE<T>;
            held[n] = load_piece(numbers + (u64)row * inner + column, row < outer ? inner - column : 0, inner % WIDE<T> == 0);
        }
    }
    __device__ __forceinline__ void put(T (*to)[STRIDE<T>]) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS;
            *reinterpret_cast<Several<T, WIDE<T>> *>(&to[i / 4][i % 4 * WIDE<T>]) = held[n];
        }
    }
};

// An operand stored [inner, outer].
template <typename T> struct Columns {
    const T *numbers;
    int outer, inner, first;
    Several<T, WIDE<T>> held[PIECES];

    __device__ __forceinline__ void fetch(int k) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS, row = k + i / (TILE / WIDE<T>), column = first + i % (TILE / WIDE<T>) * WIDE<T>;
            held[n] = load_piece(numbers + (u64)row * outer + column, row < inner ? outer - column : 0, outer % WIDE<T> == 0);
        }
    }
    __device__ __forceinline__ void put(T (*to)[STRIDE<T>]) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS;
#pragma unroll
            for (int e = 0; e < WIDE<T>; e++) to[i % (TILE / WIDE<T>) * WIDE<T> + e][i / (TILE / WIDE<T>)] = held[n].value[e];
        }
    }
};

// What a thread has of the tile's sums, and where.
template <typename T> struct Sums;

// Warps of 64 x 32, each 4 x 4 products of 16 x 8.
template <> struct Sums<bf16> {
    float sum[4][4][4] = {};

    __device__ __forceinline__ void multiply(Shared<bf16> &shared) {
        int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / WARP;
        int row = warp / 4 * 64, column = warp % 4 * 32;
#pragma unroll
        for (int k = 0; k < INNER<bf16>; k += 16) {
            u32 a[4][4], b[4][2];
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[m][i] = *reinterpret_cast<u32 *>(&shared.left[row + m * 16 + g + i % 2 * 8][k + 2 * t + i / 2 * 8]);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    b[n][i] = *reinterpret_cast<u32 *>(&shared.right[column + n * 8 + g][k + 2 * t + i * 8]);
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 4; n++) mma(sum[m][n], a[m], b[n]);
        }
    }
    // Calls each(row, column, value) for what this thread has, rows and columns within the tile.
    template <typename Each> __device__ __forceinline__ void for_each(Each each) {
        int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, warp = threadIdx.x / WARP;
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    each(warp / 4 * 64 + m * 16 + g + c / 2 * 8, warp % 4 * 32 + n * 8 + 2 * t + c % 2, sum[m][n][c]);
    }
};

// Threads of 8 x 8, 16 apart.
template <> struct Sums<float> {
    float sum[8][8] = {};

    __device__ __forceinline__ void multiply(Shared<float> &shared) {
        int row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll
        for (int k = 0; k < INNER<float>; k += 4) {
            float a[8][4];
#pragma unroll
            for (int m = 0; m < 8; m++) load(a[m], &shared.left[row + 16 * m][k]);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float b[4];
                load(b, &shared.right[column + 16 * n][k]);
#pragma unroll
                for (int m = 0; m < 8; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[m][n] += a[m][i] * b[i];
            }
        }
    }
    template <typename Each> __device__ __forceinline__ void for_each(Each each) {
#pragma unroll
        for (int m = 0; m < 8; m++)
#pragma unroll
            for (int n = 0; n < 8; n++) each(threadIdx.x / 16 + 16 * m, threadIdx.x % 16 + 16 * n, sum[m][n]);
    }
};

// The tile's sums over an inner dimension of this size. Shared memory may be used again at once.
template <typename T, typename Left, typename Right>
__device__ __forceinline__ void tile_product(Sums<T> &sums, Left left, Right right, int inner, Shared<T> &shared) {
    left.fetch(0);
    right.fetch(0);
    for (int k = 0; k < inner; k += INNER<T>) {
        left.put(shared.left);
        right.put(shared.right);
        __syncthreads();
        if (k + INNER<T> < inner) {
            left.fetch(k + INNER<T>);
            right.fetch(k + INNER<T>);
        }
        sums.multiply(shared);
        __syncthreads();
    }
}
