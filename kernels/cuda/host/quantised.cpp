// Products with weights in blocks against double; blocks are packed here from ggml's description of them.
#include "../quantised.cu"
#include "reference.h"

// f16 of a number that it has exactly.
static unsigned short half_of(float x) {
    u32 bits = __float_as_uint(x);
    int exponent = (int)(bits >> 23 & 255) - 112;
    unsigned short sign = bits >> 16 & 0x8000;
    if (exponent <= 0) return sign | (unsigned short)std::lround(std::abs(x) * 16777216.0);
    return sign | exponent << 10 | (bits >> 13 & 1023);
}

static void put_half(unsigned char *to, float x) {
    unsigned short bits = half_of(x);
    memcpy(to, &bits, 2);
}

// Small, at times too small for a leading 1.
static float random_scale() {
    float scale = between(-2047, 2047) / (between(0, 3) ? 16384.0f : 16777216.0f);
    return std::abs(scale) < 6e-5f ? std::lround(scale * 16777216.0f) % 1024 / 16777216.0f : scale;
}

// Packs a block of random codes and scales, and says what they stand for.
template <typename Kind> struct Pack;

template <int BITS, bool MINIMUM> static void pack_32(unsigned char *block, double *values) {
    float scale = random_scale(), minimum = between(-1023, 1023) / 1024.0f;
    put_half(block, scale);
    if (MINIMUM) put_half(block + 2, minimum);
    unsigned char *fifth = block + (MINIMUM ? 4 : 2), *nibbles = fifth + (BITS == 5 ? 4 : 0);
    u32 high = 0;
    for (int i = 0; i < 32; i++) {
        u32 code = between(0, (1 << BITS) - 1);
        unsigned char &byte = nibbles[i % 16];
        byte = i < 16 ? code & 15 : byte | (code & 15) << 4;
        high |= code >> 4 << i;
        values[i] = MINIMUM ? (double)scale * code + minimum : (double)scale * ((int)code - (1 << (BITS - 1)));
    }
    if (BITS == 5) memcpy(fifth, &high, 4);
}

template <> struct Pack<Q8_0> {
    static void random(unsigned char *block, double *values) {
        float scale = random_scale();
        put_half(block, scale);
        for (int i = 0; i < 32; i++) values[i] = (double)scale * (signed char)(block[2 + i] = between(-128, 127));
    }
};
template <> struct Pack<Q4_0> { static constexpr auto random = pack_32<4, false>; };
template <> struct Pack<Q4_1> { static constexpr auto random = pack_32<4, true>; };
template <> struct Pack<Q5_0> { static constexpr auto random = pack_32<5, false>; };
template <> struct Pack<Q5_1> { static constexpr auto random = pack_32<5, true>; };

// block_q4_K {d, dmin, scales[12], qs[128]} and block_q5_K, with qh[32] before qs.
template <int BITS> static void pack_k(unsigned char *block, double *values) {
    float unit = random_scale(), least = between(-1023, 1023) / 4096.0f;
    memset(block, 0, BITS == 4 ? 144 : 176);
    put_half(block, unit);
    put_half(block + 2, least);
    unsigned char *packed = block + 4, *high = block + 16, *low = block + (BITS == 4 ? 16 : 48);
    for (int group = 0; group < 8; group++) {
        int scale = between(0, 63), minimum = between(0, 63);
        if (group < 4) {
            packed[group] |= scale;
            packed[group + 4] |= minimum;
        } else {
            packed[group + 4] |= (scale & 15) | (minimum & 15) << 4;
            packed[group - 4] |= scale >> 4 << 6;
            packed[group] |= minimum >> 4 << 6;
        }
        for (int i = 0; i < 32; i++) {
            int code = between(0, (1 << BITS) - 1);
            low[group / 2 * 32 + i] |= (code & 15) << group % 2 * 4;
            if (BITS == 5) high[i] |= (code >> 4) << group;
            values[group * 32 + i] = (double)unit * scale * code - (double)least * minimum;
        }
    }
}
template <> struct Pack<Q4_K> { static constexpr auto random = pack_k<4>; };
template <> struct Pack<Q5_K> { static constexpr auto random = pack_k<5>; };

// block_q6_K {ql[128], qh[64], scales[16], d}: of each 128 weights, the first 64 have the lower halves of 64 bytes and the
// others the upper ones; the four quarters take two bits each of 32 bytes.
template <> struct Pack<Q6_K> {
    static void random(unsigned char *block, double *values) {
        float unit = random_scale();
        memset(block, 0, 210);
        put_half(block + 208, unit);
        for (int i = 0; i < 256; i++) {
            if (i % 16 == 0) block[192 + i / 16] = between(-128, 127);
            int code = between(0, 63), half = i / 128, quarter = i % 128 / 32;
            block[half * 64 + quarter % 2 * 32 + i % 32] |= (code & 15) << quarter / 2 * 4;
            block[128 + half * 32 + i % 32] |= (code >> 4) << quarter * 2;
            values[i] = (double)unit * (signed char)block[192 + i / 16] * (code - 32);
        }
    }
};

template <typename Kind, typename T, typename Few, typename Table>
void check(const char *name, Few few_kernel, Table rows_kernel, void (*many_kernel)(const T *, const unsigned char *, T *, int, int, int)) {
    constexpr bool super = Kind::WEIGHTS == 256;
    int rows = between(1, many_kernel ? super ? 40 : 140 : 9), columns = between(1, super ? 70 : 150);
    int blocks = between(1, super ? 3 : 9), inner = blocks * Kind::WEIGHTS;
    std::string shape = std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(inner);
    std::vector<unsigned char> weight(columns * blocks * Kind::BYTES);
    std::vector<double> values(columns * inner);
    for (int b = 0; b < columns * blocks; b++)
        Pack<Kind>::random(weight.data() + b * Kind::BYTES, values.data() + b * Kind::WEIGHTS);
    auto x = Array<T>::normal(rows * inner), out = Array<T>::poison(rows * columns);
    std::vector<double> y(rows * columns);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < inner; i++) y[r * columns + c] += x[r * inner + i] * values[c * inner + i];
    if (many_kernel)
        emulation::launch(many_kernel, dim3((rows + TILE - 1) / TILE, (columns + TILE - 1) / TILE), THREADS, x.data(), weight.data(), out.data(), rows, columns, inner);
    else
        emulation::launch(few_kernel, dim3((columns + 7) / 8, (rows + FEW - 1) / FEW), THREADS, x.data(), weight.data(), out.data(), rows, columns, inner);
    compare(name, shape + (many_kernel ? " many" : " few"), out, y);
    std::vector<u32> ids(5);
    for (auto &id : ids) id = between(0, columns - 1);
    auto table = Array<T>::poison(5 * inner);
    emulation::launch(rows_kernel, 5, THREADS, weight.data(), ids.data(), table.data(), inner);
    std::vector<double> expected;
    for (u32 id : ids) expected.insert(expected.end(), values.begin() + id * inner, values.begin() + (id + 1) * inner);
    compare(name, shape + " rows", table, expected);
}

int main() {
    for (int i = 0; i < 4; i++) {
#define CHECK(Kind, kind)                                                                                              \
    check<Kind, float>(#kind "_f32", quantised_few_##kind##_f32, quantised_rows_##kind##_f32, nullptr);                \
    check<Kind, bf16>(#kind "_bf16", quantised_few_##kind##_bf16, quantised_rows_##kind##_bf16, nullptr);              \
    check<Kind, bf16>(#kind "_bf16", quantised_few_##kind##_bf16, quantised_rows_##kind##_bf16, quantised_many_##kind);
        CHECK(Q8_0, q8_0)
        CHECK(Q4_0, q4_0)
        CHECK(Q4_1, q4_1)
        CHECK(Q5_0, q5_0)
        CHECK(Q5_1, q5_1)
        CHECK(Q4_K, q4_k)
        CHECK(Q5_K, q5_k)
        CHECK(Q6_K, q6_k)
    }
    return failures != 0;
}
