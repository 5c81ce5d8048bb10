// Products with weights in ggml's blocks, as a GGUF file holds them: 32 weights of a row, Q8_0 {f16 scale, 32 codes},
// Q4_0 {f16 scale, 16 bytes of two codes around 8}, Q4_1 {f16 scale, f16 minimum, 16 bytes}. A step of generation
// (`few`) waits for the weights to come from memory, each read once; a prompt (`many`) turns them into bf16 on their way
// to the tensor cores.
#include "matmul.cuh"

constexpr int BLOCK = 32;
constexpr int FEW = 4; // rows of the input that `few` takes at a time

// An f16's value.
__device__ __forceinline__ float widen(unsigned short bits) {
    u32 exponent = bits >> 10 & 31, fraction = bits & 1023, sign = (u32)(bits & 0x8000) << 16;
    if (exponent == 0) { // zero and what is too small for a leading 1: fraction * 2^-24
        float x = fraction * 5.9604645e-8f;
        return sign ? -x : x;
    }
    return __uint_as_float(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
}

// Blocks lie at multiples of two bytes.
__device__ __forceinline__ unsigned short short_at(const unsigned char *bytes) {
    return *reinterpret_cast<const unsigned short *>(bytes);
}

__device__ __forceinline__ void eight_bytes(const unsigned char *from, unsigned char (&to)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        unsigned short two = short_at(from + i);
        to[i] = two & 255;
        to[i + 1] = two >> 8;
    }
}

struct Q8_0 {
    static constexpr int BYTES = 34;
    // weights[0..8) of places [8 * part, 8 * part + 8).
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block));
        unsigned char codes[8];
        eight_bytes(block + 2 + 8 * part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * (signed char)codes[i];
    }
};

// Places below 16 are the lower halves of the bytes, those above the upper ones.
__device__ __forceinline__ void eight_nibbles(const unsigned char *from, int part, unsigned char (&to)[8]) {
    eight_bytes(from + part % 2 * 8, to);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = to[i] >> part / 2 * 4 & 15;
}

struct Q4_0 {
    static constexpr int BYTES = 18;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block));
        unsigned char codes[8];
        eight_nibbles(block + 2, part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * (codes[i] - 8);
    }
};

struct Q4_1 {
    static constexpr int BYTES = 20;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block)), minimum = widen(short_at(block + 2));
        unsigned char codes[8];
        eight_nibbles(block + 4, part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * codes[i] + minimum;
    }
};

// Block (groups of 8 rows of the weight, groups of FEW rows of x): out [rows, columns] = x [rows, inner] times the weight
// [columns, inner], a warp a row of the weight, four lanes a block. A row's result does not depend on the others.
template <typename Kind, typename T>
__device__ void few(const T *x, const unsigned char *weight, T *out, int rows, int columns, int inner) {
    int column = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (column >= columns) return;
    int first = blockIdx.y * FEW, blocks = inner / BLOCK;
    const unsigned char *row = weight + (u64)column * blocks * Kind::BYTES;
    float sum[FEW] = {};
    for (int b = lane / 4; b < blocks; b += WARP / 4) {
        float weights[8];
        Kind::read(row + (u64)b * Kind::BYTES, lane % 4, weights);
#pragma unroll
        for (int r = 0; r < FEW; r++) {
            if (first + r >= rows) break;
            const T *from = x + (u64)(first + r) * inner + b * BLOCK + lane % 4 * 8;
            float inputs[WIDE<T>];
#pragma unroll
            for (int at = 0; at < 8; at += WIDE<T>) {
                load(inputs, from + at);
#pragma unroll
                for (int i = 0; i < WIDE<T>; i++) sum[r] += weights[at + i] * inputs[i];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < FEW; r++) {
        float total = warp_sum(sum[r]);
        if (lane == 0 && first + r < rows) out[(u64)(first + r) * columns + column] = from_float<T>(total);
    }
}

// The weight as the right operand of a tile: INNER<bf16> is one block.
template <typename Kind> struct Blocks {
    const unsigned char *numbers;
    int outer, blocks, first;
    float held[PIECES][8];

    __device__ __forceinline__ void fetch(int k) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS, row = first + i / 4;
#pragma unroll
            for (int e = 0; e < 8; e++) held[n][e] = 0;
            if (row < outer) Kind::read(numbers + ((u64)row * blocks + k / BLOCK) * Kind::BYTES, i % 4, held[n]);
        }
    }
    __device__ __forceinline__ void put(bf16 (*to)[STRIDE<bf16>]) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS;
            store(&to[i / 4][i % 4 * 8], held[n]);
        }
    }
};

// Block (tiles of rows, tiles of columns).
template <typename Kind>
__device__ void many(const bf16 *x, const unsigned char *weight, bf16 *out, int rows, int columns, int inner) {
    __shared__ Shared<bf16> shared;
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Sums<bf16> sums;
    tile_product(sums, Rows<bf16>{x, rows, inner, row, {}}, Blocks<Kind>{weight, columns, inner / BLOCK, column, {}}, inner, shared);
    sums.for_each([=](int r, int c, float value) {
        r += row, c += column;
        if (r < rows && c < columns) out[(u64)r * columns + c] = to_bf16(value);
    });
}

// The rows that `ids` name, as numbers: a table of embeddings. Block (id).
template <typename Kind, typename T>
__device__ void rows_as_numbers(const unsigned char *weight, const u32 *ids, T *out, int inner) {
    const unsigned char *row = weight + (u64)ids[blockIdx.x] * (inner / BLOCK) * Kind::BYTES;
    for (int i = threadIdx.x; i < inner / 8; i += THREADS) {
        float weights[8];
        Kind::read(row + (u64)(i / 4) * Kind::BYTES, i % 4, weights);
#pragma unroll
        for (int e = 0; e < 8; e++) out[(u64)blockIdx.x * inner + i * 8 + e] = from_float<T>(weights[e]);
    }
}

#define FEW_ROWS(Kind, kind, T, suffix)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        quantised_few_##kind##_##suffix(const T *x, const unsigned char *weight, T *out, int rows, int columns,        \
                                        int inner) {                                                                   \
        few<Kind>(x, weight, out, rows, columns, inner);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        quantised_rows_##kind##_##suffix(const unsigned char *weight, const u32 *ids, T *out, int inner) {             \
        rows_as_numbers<Kind>(weight, ids, out, inner);                                                                \
    }
#define QUANTISED(Kind, kind)                                                                                          \
    FEW_ROWS(Kind, kind, float, f32)                                                                                   \
    FEW_ROWS(Kind, kind, bf16, bf16)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        quantised_many_##kind(const bf16 *x, const unsigned char *weight, bf16 *out, int rows, int columns,            \
                              int inner) {                                                                             \
        many<Kind>(x, weight, out, rows, columns, inner);                                                              \
    }
QUANTISED(Q8_0, q8_0)
QUANTISED(Q4_0, q4_0)
QUANTISED(Q4_1, q4_1)
