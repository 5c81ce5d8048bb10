// Products with weights in ggml's blocks, as a GGUF file holds them. 32 weights of a row: Q8_0 {f16 scale, 32 codes}, Q4_0
// {f16 scale, 16 bytes of two codes around 8}, Q4_1 {f16 scale, f16 minimum, 16 bytes}, Q5_0 and Q5_1 as these with 4 bytes
// of fifth bits before the codes. 256 weights: Q4_K, Q5_K and Q6_K, whose groups have small integers as scales. A step of
// generation (`few`) waits for the weights to come from memory, each read once; a prompt (`many`) turns them into bf16 on
// their way to the tensor cores.
#include "matmul.cuh"

constexpr int BLOCK = 32; // weights that a step of `few` and `many` takes, of a block or a part of one
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
    static constexpr int BYTES = 34, WEIGHTS = 32;
    // weights[0..8) of the block's places [8 * part, 8 * part + 8).
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
    static constexpr int BYTES = 18, WEIGHTS = 32;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block));
        unsigned char codes[8];
        eight_nibbles(block + 2, part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * (codes[i] - 8);
    }
};

struct Q4_1 {
    static constexpr int BYTES = 20, WEIGHTS = 32;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block)), minimum = widen(short_at(block + 2));
        unsigned char codes[8];
        eight_nibbles(block + 4, part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * codes[i] + minimum;
    }
};

// Adds the fifth bits of eight codes, the bits of one byte.
__device__ __forceinline__ void fifth_bits(unsigned char bits, unsigned char (&codes)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) codes[i] |= (bits >> i & 1) << 4;
}

struct Q5_0 {
    static constexpr int BYTES = 22, WEIGHTS = 32;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block));
        unsigned char codes[8];
        eight_nibbles(block + 6, part, codes);
        fifth_bits(block[2 + part], codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * (codes[i] - 16);
    }
};

struct Q5_1 {
    static constexpr int BYTES = 24, WEIGHTS = 32;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        float scale = widen(short_at(block)), minimum = widen(short_at(block + 2));
        unsigned char codes[8];
        eight_nibbles(block + 8, part, codes);
        fifth_bits(block[4 + part], codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = scale * codes[i] + minimum;
    }
};

// Q4_K and Q5_K: eight groups of 32 with a scale and a minimum of 6 bits each, in 12 bytes: of the first four groups the
// lower 6 bits of bytes 0 to 3 and 4 to 7; of the others the halves of bytes 8 to 11, and above them what those left.
struct Group {
    float scale, minimum;
    __device__ __forceinline__ Group(const unsigned char *block, int group) {
        const unsigned char *packed = block + 4;
        int scales, minima;
        if (group < 4) {
            scales = packed[group] & 63;
            minima = packed[group + 4] & 63;
        } else {
            scales = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
            minima = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
        }
        scale = widen(short_at(block)) * scales;
        minimum = widen(short_at(block + 2)) * minima;
    }
};

// Two groups share 32 bytes, the first the lower halves.
__device__ __forceinline__ void group_nibbles(const unsigned char *from, int part, unsigned char (&to)[8]) {
    int group = part / 4;
    eight_bytes(from + group / 2 * 32 + part % 4 * 8, to);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = to[i] >> group % 2 * 4 & 15;
}

struct Q4_K {
    static constexpr int BYTES = 144, WEIGHTS = 256;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        Group group(block, part / 4);
        unsigned char codes[8];
        group_nibbles(block + 16, part, codes);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = group.scale * codes[i] - group.minimum;
    }
};

struct Q5_K {
    static constexpr int BYTES = 176, WEIGHTS = 256;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        Group group(block, part / 4);
        unsigned char codes[8], fifth[8];
        group_nibbles(block + 48, part, codes);
        eight_bytes(block + 16 + part % 4 * 8, fifth); // a bit for each group
#pragma unroll
        for (int i = 0; i < 8; i++)
            weights[i] = group.scale * (codes[i] | (fifth[i] >> part / 4 & 1) << 4) - group.minimum;
    }
};

// Halves of 128: 64 bytes of lower halves of codes, then for both 32 bytes each of their upper two bits; a signed scale
// for 16 weights.
struct Q6_K {
    static constexpr int BYTES = 210, WEIGHTS = 256;
    __device__ static __forceinline__ void read(const unsigned char *block, int part, float (&weights)[8]) {
        int half = part / 16, at = part % 16 * 8;
        float scale = widen(short_at(block + 208)) * (signed char)block[192 + part / 2];
        unsigned char low[8], high[8];
        eight_bytes(block + half * 64 + at % 64, low);
        eight_bytes(block + 128 + half * 32 + at % 32, high);
#pragma unroll
        for (int i = 0; i < 8; i++)
            weights[i] = scale * (((low[i] >> at / 64 * 4 & 15) | (high[i] >> at / 32 * 2 & 3) << 4) - 32);
    }
};

// Eight weights of a row from place 8 * eighth on.
template <typename Kind>
__device__ __forceinline__ void read_eight(const unsigned char *row, int eighth, float (&weights)[8]) {
    constexpr int EIGHTHS = Kind::WEIGHTS / 8;
    Kind::read(row + (u64)(eighth / EIGHTHS) * Kind::BYTES, eighth % EIGHTHS, weights);
}

// Row `row` of a weight of rows of `inner`.
template <typename Kind>
__device__ __forceinline__ const unsigned char *row_of(const unsigned char *weight, int row, int inner) {
    return weight + (u64)row * (inner / Kind::WEIGHTS) * Kind::BYTES;
}

// Block (groups of 8 rows of the weight, groups of FEW rows of x): out [rows, columns] = x [rows, inner] times the weight
// [columns, inner], a warp a row of the weight, four lanes 32 weights. A row's result does not depend on the others.
template <typename Kind, typename T>
__device__ void few(const T *x, const unsigned char *weight, T *out, int rows, int columns, int inner) {
    int column = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (column >= columns) return;
    int first = blockIdx.y * FEW, blocks = inner / BLOCK;
    const unsigned char *row = row_of<Kind>(weight, column, inner);
    float sum[FEW] = {};
    for (int b = lane / 4; b < blocks; b += WARP / 4) {
        float weights[8];
        read_eight<Kind>(row, b * 4 + lane % 4, weights);
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

// The weight as the right operand of a tile: INNER<bf16> is BLOCK.
template <typename Kind> struct Blocks {
    const unsigned char *numbers;
    int outer, inner, first;
    float held[PIECES][8];

    __device__ __forceinline__ void fetch(int k) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS, row = first + i / 4;
#pragma unroll
            for (int e = 0; e < 8; e++) held[n][e] = 0;
            if (row < outer) read_eight<Kind>(row_of<Kind>(numbers, row, inner), k / 8 + i % 4, held[n]);
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
    tile_product(sums, Rows<bf16>{x, rows, inner, row, {}}, Blocks<Kind>{weight, columns, inner, column, {}}, inner, shared);
    sums.for_each([=](int r, int c, float value) {
        r += row, c += column;
        if (r < rows && c < columns) out[(u64)r * columns + c] = to_bf16(value);
    });
}

// The rows that `ids` name, as numbers: a table of embeddings. Block (id).
template <typename Kind, typename T>
__device__ void rows_as_numbers(const unsigned char *weight, const u32 *ids, T *out, int inner) {
    const unsigned char *row = row_of<Kind>(weight, ids[blockIdx.x], inner);
    for (int i = threadIdx.x; i < inner / 8; i += THREADS) {
        float weights[8];
        read_eight<Kind>(row, i, weights);
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
QUANTISED(Q5_0, q5_0)
QUANTISED(Q5_1, q5_1)
QUANTISED(Q4_K, q4_k)
QUANTISED(Q5_K, q5_k)
QUANTISED(Q6_K, q6_k)
