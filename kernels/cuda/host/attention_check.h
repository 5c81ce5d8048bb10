// Attention against double, for the source that is included before: random uneven shapes, all masks and their
// combinations, biases, RETRO's chunks, grouped heads, the sink, gradients.
#pragma once

#include "reference.h"

template <typename T> struct Kernels {
    void (*forward)(const T *, const T *, const T *, const unsigned char *, const float *, const u32 *, const float *,
                    T *, float *, Sizes);
    void (*delta)(const T *, const T *, float *, int);
    void (*of_q)(const T *, const T *, const T *, const unsigned char *, const float *, const u32 *, const T *,
                 const float *, const float *, T *, Sizes);
    void (*of_kv)(const T *, const T *, const T *, const unsigned char *, const float *, const u32 *, const T *,
                  const float *, const float *, T *, T *, Sizes);
    void (*of_bias)(const T *, const T *, const T *, const unsigned char *, const float *, const u32 *, const T *,
                    const float *, const float *, float *, int, Sizes);
};

#define KERNELS(suffix, D)                                                                                             \
    { attention_forward_##suffix##_##D, attention_delta_##suffix##_##D, attention_backward_q_##suffix##_##D,           \
      attention_backward_kv_##suffix##_##D, attention_backward_bias_##suffix##_##D }

// A gradient in float that kernels add up from numbers in T.
template <typename T>
void compare_sums(const char *what, const std::string &shape, const Array<float> &found,
                                        const std::vector<double> &expected) {
    compare(what, shape, found, expected, sizeof(T) == 4 ? 1e-5 : 1e-2);
}

template <int D, typename T, typename Sink, typename Table>
void check(const Kernels<T> &kernels, Sink sink_kernel, Table table_gradient, const Sizes *given = nullptr) {
    Sizes s = {};
    int batch = between(1, 2), group = between(1, 2);
    s.key_heads = between(1, 2);
    s.heads = s.key_heads * group;
    s.keys = between(1, 100);
    s.scale = 1 / std::sqrt((float)D);
    bool retro = between(0, 2) == 0;
    s.queries = retro ? between(1, 70) : between(1, 110);
    s.chunks = retro ? between(1, 3) : 1;
    s.shift = retro ? s.queries - 1 : 0;
    s.tokens = retro ? s.chunks * s.queries + between(0, 2 * s.queries) : s.queries;
    s.causal = !retro && between(0, 1);
    s.offset = s.causal ? between(s.queries > s.keys ? -2 : 0, 20) : between(0, 5);
    s.window = !retro && between(0, 1) ? between(1, 70) : 0;
    s.columns = between(1, 200);
    bool masked = between(0, 1), sunk = between(0, 1);
    int biased = between(0, 2); // none, of each place, by buckets
    if (given) {
        s = *given;
        batch = group = 1;
        masked = sunk = false;
        biased = 0;
    }
    int sequences = batch * s.chunks;
    char shape[200];
    snprintf(shape, sizeof shape, "D=%d batch=%d heads=%d/%d %d x %d offset=%d%s window=%d%s%s bias=%d%s", D, batch,
             s.heads, s.key_heads, s.queries, s.keys, s.offset, s.causal ? " causal" : "", s.window,
             masked ? " mask" : "", sunk ? " sink" : "", biased, retro ? " chunks" : "");
    size_t rows = (size_t)batch * s.heads * s.tokens, nq = rows * D, nk = (size_t)sequences * s.key_heads * s.keys * D;
    size_t places = (size_t)s.queries * s.keys;
    auto q = Array<T>::normal(nq), k = Array<T>::normal(nk), v = Array<T>::normal(nk), grad = Array<T>::normal(nq);
    auto sink = Array<float>::normal(s.heads);
    auto bias = Array<float>::normal(s.heads * (biased == 2 ? s.columns : places));
    std::vector<u32> buckets(places);
    for (auto &b : buckets) b = between(0, s.columns - 1);
    std::vector<unsigned char> mask((size_t)sequences * s.keys);
    for (auto &m : mask) m = between(0, 3) > 0;
    auto out = Array<T>::poison(nq), dq = Array<T>::poison(nq), dk = Array<T>::poison(nk), dv = Array<T>::poison(nk);
    auto log_sum = Array<float>::poison(rows), delta = Array<float>::poison(rows), dsink = Array<float>::poison(s.heads);
    auto dbias = Array<float>::poison(s.heads * places);
    for (size_t r = 0; r < rows; r++) { // what the caller clears
        int token = r % s.tokens - s.shift;
        if (token < 0 || token >= s.chunks * s.queries)
            for (int c = 0; c < D; c++) out.stored[r * D + c] = dq.stored[r * D + c] = from_float<T>(0);
    }
    auto *m = masked ? mask.data() : (unsigned char *)nullptr;
    auto *z = sunk ? sink.data() : (float *)nullptr;
    auto *b = biased ? bias.data() : (float *)nullptr;
    auto *of = biased == 2 ? buckets.data() : (u32 *)nullptr;
    auto tiles = [](int n, int tile) { return (n + tile - 1) / tile; };
    emulation::launch(kernels.forward, dim3(tiles(s.queries, TILE), sequences * s.heads), THREADS, q.data(), k.data(),
                      v.data(), m, b, of, z, out.data(), log_sum.data(), s);
    emulation::launch(kernels.delta, (rows + WARPS - 1) / WARPS, THREADS, out.data(), grad.data(), delta.data(), (int)rows);
    emulation::launch(kernels.of_q, dim3(tiles(s.queries, TILE), sequences * s.heads), THREADS, q.data(), k.data(),
                      v.data(), m, b, of, grad.data(), log_sum.data(), delta.data(), dq.data(), s);
    emulation::launch(kernels.of_kv, dim3(tiles(s.keys, TILE), sequences * s.key_heads), THREADS, q.data(), k.data(),
                      v.data(), m, b, of, grad.data(), log_sum.data(), delta.data(), dk.data(), dv.data(), s);
    if (biased)
        emulation::launch(kernels.of_bias, dim3(tiles(s.queries, TILE), tiles(s.keys, STEP), s.heads), THREADS, q.data(),
                          k.data(), v.data(), m, b, of, grad.data(), log_sum.data(), delta.data(), dbias.data(),
                          sequences, s);
    if (sunk) sink_kernel(sink, log_sum, delta, dsink, batch, s);

    std::vector<double> y(nq), gq(nq), gk(nk), gv(nk), gs(s.heads), gb(s.heads * places), p(s.keys);
    for (int sequence = 0; sequence < sequences; sequence++)
        for (int h = 0; h < s.heads; h++)
            for (int i = 0; i < s.queries; i++) {
                int token = s.shift + sequence % s.chunks * s.queries + i;
                if (token >= s.tokens) continue;
                size_t at = (((size_t)(sequence / s.chunks) * s.heads + h) * s.tokens + token) * D;
                size_t keys = ((size_t)sequence * s.key_heads + h / group) * s.keys * D;
                auto visible = [&](int j) {
                    int back = i + s.offset - j;
                    return !(s.causal && back < 0) && !(s.window && back >= s.window) &&
                           (!masked || mask[(size_t)sequence * s.keys + j]);
                };
                auto bias_of = [&](int j) {
                    size_t place = (size_t)i * s.keys + j;
                    return biased == 0 ? 0 : biased == 1 ? bias[h * places + place] : bias[h * s.columns + buckets[place]];
                };
                double total = sunk ? std::exp(sink[h]) : 0, inner = 0;
                for (int j = 0; j < s.keys; j++) {
                    double x = 0;
                    for (int c = 0; c < D; c++) x += q[at + c] * k[keys + (size_t)j * D + c];
                    total += p[j] = visible(j) ? std::exp(x * s.scale + bias_of(j)) : 0;
                }
                for (int j = 0; j < s.keys; j++) {
                    p[j] = total > 0 ? p[j] / total : 0;
                    for (int c = 0; c < D; c++) y[at + c] += p[j] * v[keys + (size_t)j * D + c];
                }
                for (int c = 0; c < D; c++) inner += grad[at + c] * y[at + c];
                if (sunk) gs[h] -= std::exp(sink[h]) / total * inner;
                for (int j = 0; j < s.keys; j++) {
                    size_t key = keys + (size_t)j * D;
                    double of_p = 0;
                    for (int c = 0; c < D; c++) of_p += grad[at + c] * v[key + c];
                    double of_score = p[j] * (of_p - inner);
                    gb[h * places + (size_t)i * s.keys + j] += of_score;
                    for (int c = 0; c < D; c++) {
                        gv[key + c] += p[j] * grad[at + c];
                        gk[key + c] += of_score * s.scale * q[at + c];
                        gq[at + c] += of_score * s.scale * k[key + c];
                    }
                }
            }
    compare("attention out", shape, out, y);
    compare("attention dq", shape, dq, gq);
    compare("attention dk", shape, dk, gk);
    compare("attention dv", shape, dv, gv);
    if (biased) compare_sums<T>("attention dbias", shape, dbias, gb);
    if (biased == 2) table_gradient(dbias, buckets, s, shape);
    if (sunk)
        for (int h = 0; h < s.heads; h++)
            if (!(std::abs(dsink[h] - gs[h]) < 1e-2 * (1 + std::abs(gs[h])) * std::sqrt(s.queries))) {
                printf("FAILED attention dsink %s: %g, not %g\n", shape, dsink[h], gs[h]);
                failures++;
            }
}
