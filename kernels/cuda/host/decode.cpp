// Attention of few queries on a cache against double, and the cache itself.
#include "../decode.cu"
#include "reference.h"

template <int D, typename T, typename Part, typename Combine, typename Append>
void check(Part part_kernel, Combine combine_kernel, Append append_kernel) {
    Sizes s = {};
    int batch = between(1, 3), group = between(1, 6);
    s.key_heads = between(1, 2);
    s.heads = s.key_heads * group;
    s.queries = s.tokens = between(0, 2) ? 1 : between(2, 5);
    s.keys = s.queries + between(0, 520);
    s.chunks = 1;
    s.offset = s.keys - s.queries;
    s.causal = 1;
    s.window = between(0, 1) ? between(1, 300) : 0;
    s.scale = 1 / std::sqrt((float)D);
    bool masked = between(0, 1), biased = between(0, 1), sunk = between(0, 1);
    int room = s.keys + between(0, 70), kv_rows = batch * s.key_heads;
    std::string shape = "D=" + std::to_string(D) + " heads " + std::to_string(s.heads) + "/" + std::to_string(s.key_heads) +
                        " " + std::to_string(s.queries) + " x " + std::to_string(s.keys) + " window " +
                        std::to_string(s.window) + (masked ? " mask" : "") + (biased ? " bias" : "") + (sunk ? " sink" : "");
    size_t rows = (size_t)batch * s.heads * s.queries;
    auto q = Array<T>::normal(rows * D), k = Array<T>::normal((size_t)kv_rows * s.keys * D), v = Array<T>::normal(k.size());
    auto keys = Array<T>::poison((size_t)kv_rows * room * D), values = keys;
    int before = between(0, s.keys - 1); // in two parts
    for (auto [from, to] : {std::pair(&k, &keys), std::pair(&v, &values)})
        for (auto [first, last] : {std::pair(0, before), std::pair(before, s.keys)}) {
            Array<T> some;
            for (int r = 0; r < kv_rows; r++)
                some.stored.insert(some.stored.end(), from->data() + ((size_t)r * s.keys + first) * D,
                                   from->data() + ((size_t)r * s.keys + last) * D);
            if (last > first)
                emulation::launch(append_kernel, kv_rows * (last - first), THREADS, some.data(), to->data(), D, last - first, first, room);
        }
    auto bias = Array<float>::normal((size_t)s.heads * s.queries * s.keys), sink = Array<float>::normal(s.heads);
    std::vector<unsigned char> mask((size_t)batch * s.keys);
    for (auto &m : mask) m = between(0, 3) > 0;
    int pieces = (s.keys + SPLIT - 1) / SPLIT;
    auto partial = Array<float>::poison(rows * pieces * (D + 2));
    auto out = Array<T>::poison(rows * D);
    emulation::launch(part_kernel, dim3(pieces, kv_rows, (group * s.queries + ROWS - 1) / ROWS), THREADS, q.data(), keys.data(),
                      values.data(), masked ? mask.data() : (unsigned char *)nullptr, biased ? bias.data() : (float *)nullptr,
                      partial.data(), room, s);
    emulation::launch(combine_kernel, rows, THREADS, partial.data(), sunk ? sink.data() : (float *)nullptr, out.data(), pieces, s);
    std::vector<double> y(rows * D), p(s.keys);
    for (size_t r = 0; r < rows; r++) {
        int i = r % s.queries, h = r / s.queries % s.heads, b = r / s.queries / s.heads;
        size_t first = ((size_t)b * s.key_heads + h / group) * s.keys;
        double total = sunk ? std::exp(sink[h]) : 0;
        for (int j = 0; j < s.keys; j++) {
            int back = i + s.offset - j;
            bool visible = back >= 0 && (!s.window || back < s.window) && (!masked || mask[b * s.keys + j]);
            double x = biased ? bias[((size_t)h * s.queries + i) * s.keys + j] : 0;
            for (int c = 0; c < D; c++) x += q[r * D + c] * k[(first + j) * D + c] * s.scale;
            total += p[j] = visible ? std::exp(x) : 0;
        }
        for (int j = 0; j < s.keys && total > 0; j++)
            for (int c = 0; c < D; c++) y[r * D + c] += p[j] / total * v[(first + j) * D + c];
    }
    compare("decode", shape, out, y);
}

int main() {
    for (int i = 0; i < 4; i++) {
        check<32, float>(decode_part_f32_32, decode_combine_f32_32, cache_append_f32);
        check<64, float>(decode_part_f32_64, decode_combine_f32_64, cache_append_f32);
        check<32, bf16>(decode_part_bf16_32, decode_combine_bf16_32, cache_append_bf16);
        check<64, bf16>(decode_part_bf16_64, decode_combine_bf16_64, cache_append_bf16);
        if (i % 4) continue;
        check<128, float>(decode_part_f32_128, decode_combine_f32_128, cache_append_f32);
        check<128, bf16>(decode_part_bf16_128, decode_combine_bf16_128, cache_append_bf16);
    }
    return failures != 0;
}
