// Attention against double: random uneven shapes, all masks and their combinations, grouped heads, the sink, gradients.
#include "../attention.cu"
#include "reference.h"

template <int D, typename Forward, typename Delta, typename Query, typename Key>
void check(Forward forward_kernel, Delta delta_kernel, Query query_kernel, Key key_kernel, const Sizes *given = nullptr) {
    Sizes s;
    int batch = between(1, 2), group = between(1, 2);
    s.key_heads = between(1, 2);
    s.heads = s.key_heads * group;
    s.queries = between(1, 140);
    s.keys = between(1, 140);
    s.causal = between(0, 1);
    s.offset = s.causal ? between(s.queries > s.keys ? -2 : 0, 20) : between(0, 5);
    s.window = between(0, 1) ? between(1, 70) : 0;
    s.scale = 1 / std::sqrt((float)D);
    bool masked = between(0, 1), sunk = between(0, 1);
    if (given) {
        s = *given;
        batch = group = 1;
        masked = sunk = false;
    }
    char shape[200];
    snprintf(shape, sizeof shape, "D=%d batch=%d heads=%d/%d %d x %d offset=%d%s window=%d%s%s", D, batch, s.heads,
             s.key_heads, s.queries, s.keys, s.offset, s.causal ? " causal" : "", s.window, masked ? " mask" : "",
             sunk ? " sink" : "");
    size_t nq = (size_t)batch * s.heads * s.queries * D, nk = (size_t)batch * s.key_heads * s.keys * D;
    auto q = Array<bf16>::normal(nq), k = Array<bf16>::normal(nk), v = Array<bf16>::normal(nk), grad = Array<bf16>::normal(nq);
    auto sink = Array<float>::normal(s.heads);
    std::vector<unsigned char> mask((size_t)batch * s.keys);
    for (auto &m : mask) m = between(0, 3) > 0;
    auto out = Array<bf16>::poison(nq), dq = Array<bf16>::poison(nq), dk = Array<bf16>::poison(nk), dv = Array<bf16>::poison(nk);
    auto log_sum = Array<float>::poison(nq / D), delta = Array<float>::poison(nq / D), dsink = Array<float>::poison(s.heads);
    auto *m = masked ? mask.data() : (unsigned char *)nullptr;
    auto *z = sunk ? sink.data() : (float *)nullptr;
    auto tiles = [](int n) { return (n + TILE - 1) / TILE; };
    emulation::launch(forward_kernel, dim3(tiles(s.queries), batch * s.heads), THREADS, q.data(), k.data(), v.data(), m,
                      z, out.data(), log_sum.data(), s);
    emulation::launch(delta_kernel, (nq / D + WARPS - 1) / WARPS, THREADS, out.data(), grad.data(), delta.data(), (int)(nq / D));
    emulation::launch(query_kernel, dim3(tiles(s.queries), batch * s.heads), THREADS, q.data(), k.data(), v.data(), m,
                      grad.data(), log_sum.data(), delta.data(), dq.data(), s);
    emulation::launch(key_kernel, dim3(tiles(s.keys), batch * s.key_heads), THREADS, q.data(), k.data(), v.data(), m,
                      grad.data(), log_sum.data(), delta.data(), dk.data(), dv.data(), s);
    if (sunk)
        emulation::launch(attention_backward_sink, s.heads, THREADS, z, log_sum.data(), delta.data(), dsink.data(), batch, s);

    std::vector<double> y(nq), gq(nq), gk(nk), gv(nk), gs(s.heads), p(s.keys);
    for (int b = 0; b < batch; b++)
        for (int h = 0; h < s.heads; h++)
            for (int i = 0; i < s.queries; i++) {
                size_t at = (((size_t)b * s.heads + h) * s.queries + i) * D;
                size_t keys = ((size_t)b * s.key_heads + h / group) * s.keys * D;
                auto visible = [&](int j) {
                    int back = i + s.offset - j;
                    return !(s.causal && back < 0) && !(s.window && back >= s.window) && (!masked || mask[b * s.keys + j]);
                };
                double total = sunk ? std::exp(sink[h]) : 0, inner = 0;
                for (int j = 0; j < s.keys; j++) {
                    double x = 0;
                    for (int c = 0; c < D; c++) x += q[at + c] * k[keys + (size_t)j * D + c];
                    total += p[j] = visible(j) ? std::exp(x * s.scale) : 0;
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
                    double of_score = p[j] * (of_p - inner) * s.scale;
                    for (int c = 0; c < D; c++) {
                        gv[key + c] += p[j] * grad[at + c];
                        gk[key + c] += of_score * q[at + c];
                        gq[at + c] += of_score * k[key + c];
                    }
                }
            }
    compare("attention out", shape, out, y);
    compare("attention dq", shape, dq, gq);
    compare("attention dk", shape, dk, gk);
    compare("attention dv", shape, dv, gv);
    if (sunk)
        for (int h = 0; h < s.heads; h++)
            if (!(std::abs(dsink[h] - gs[h]) < 1e-2 * (1 + std::abs(gs[h])) * std::sqrt(s.queries))) {
                printf("FAILED attention dsink %s: %g, not %g\n", shape, dsink[h], gs[h]);
                failures++;
            }
}

int main() {
    // The last query that sees the last key is the first of its step: the bound must include it.
    Sizes edge = {1, 1, 40, 10, 0, 1, STEP + 1 - 9, 0.1f};
    check<32>(attention_forward_32, attention_delta_32, attention_backward_q_32, attention_backward_kv_32, &edge);
    for (int i = 0; i < 40; i++) {
        check<32>(attention_forward_32, attention_delta_32, attention_backward_q_32, attention_backward_kv_32);
        if (i % 5 == 0)
            check<64>(attention_forward_64, attention_delta_64, attention_backward_q_64, attention_backward_kv_64);
        if (i % 20 == 0)
            check<128>(attention_forward_128, attention_delta_128, attention_backward_q_128, attention_backward_kv_128);
    }
    return failures != 0;
}
