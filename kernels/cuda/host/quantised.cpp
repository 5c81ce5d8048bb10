// Products with weights in blocks against double; what a block holds is worked out here from ggml's description.
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

template <typename T, typename Few, typename Table>
void check(const char *name, int kind, Few few_kernel, Table rows_kernel, void (*many_kernel)(const T *, const unsigned char *, T *, int, int, int)) {
    int rows = between(1, many_kernel ? 140 : 9), columns = between(1, 150), blocks = between(1, 9), inner = blocks * BLOCK;
    std::string shape = std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(inner);
    int bytes[] = {Q8_0::BYTES, Q4_0::BYTES, Q4_1::BYTES};
    std::vector<unsigned char> weight(columns * blocks * bytes[kind]);
    std::vector<double> values(columns * inner);
    for (int b = 0; b < columns * blocks; b++) {
        unsigned char *block = weight.data() + b * bytes[kind];
        float scale = between(-2047, 2047) / (between(0, 3) ? 16384.0f : 16777216.0f), minimum = between(-1023, 1023) / 1024.0f;
        if (std::abs(scale) < 6e-5f) scale = std::lround(scale * 16777216.0f) % 1024 / 16777216.0f;
        unsigned short bits = half_of(scale);
        memcpy(block, &bits, 2);
        if (kind == 2) {
            bits = half_of(minimum);
            memcpy(block + 2, &bits, 2);
        }
        for (int i = 0; i < BLOCK; i++) {
            double &value = values[b * BLOCK + i];
            if (kind == 0) {
                int code = between(-128, 127);
                block[2 + i] = code;
                value = scale * code;
            } else {
                int code = between(0, 15);
                unsigned char &byte = block[(kind == 2 ? 4 : 2) + i % 16];
                byte = i < 16 ? code : byte | code << 4;
                value = kind == 2 ? scale * code + minimum : scale * (code - 8);
            }
        }
    }
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
#define CHECK(kind, number)                                                                                            \
    check<float>(#kind "_f32", number, quantised_few_##kind##_f32, quantised_rows_##kind##_f32, nullptr);              \
    check<bf16>(#kind "_bf16", number, quantised_few_##kind##_bf16, quantised_rows_##kind##_bf16, nullptr);            \
    check<bf16>(#kind "_bf16", number, quantised_few_##kind##_bf16, quantised_rows_##kind##_bf16, quantised_many_##kind);
        CHECK(q8_0, 0)
        CHECK(q4_0, 1)
        CHECK(q4_1, 2)
    }
    return failures != 0;
}
