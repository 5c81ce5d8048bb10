// Attention in bf16, and what both storages share: the gradients of the sink and of a relative bias's table.
#include "../attention.cu"
#include "attention_check.h"

static void sink_gradient(Array<float> &sink, Array<float> &log_sum, Array<float> &delta, Array<float> &dsink, int batch, Sizes s) {
    emulation::launch(attention_backward_sink, s.heads, THREADS, sink.data(), log_sum.data(), delta.data(), dsink.data(), batch, s);
}

static void table_gradient(Array<float> &dbias, std::vector<u32> &buckets, Sizes s, const char *shape) {
    size_t places = (size_t)s.queries * s.keys;
    int slices = (places + ENTRIES - 1) / ENTRIES, entries = s.heads * s.columns;
    auto partial = Array<float>::poison((size_t)slices * entries), dtable = Array<float>::poison(entries);
    emulation::launch(attention_table_partial, dim3(slices, s.heads), THREADS, dbias.data(), buckets.data(), partial.data(), s);
    emulation::launch(attention_table_total, (entries + THREADS - 1) / THREADS, THREADS, partial.data(), dtable.data(), slices, entries);
    std::vector<double> expected(entries);
    for (int h = 0; h < s.heads; h++)
        for (size_t i = 0; i < places; i++) expected[h * s.columns + buckets[i]] += dbias[h * places + i];
    compare("attention dtable", shape, dtable, expected);
}

int main() {
    // The last query that sees the last key is the first of its step: the bound must include it.
    Sizes edge = {1, 1, 40, 10, 0, 1, STEP + 1 - 9, 0.1f, 40, 1, 0, 1};
    check<32, bf16>(KERNELS(bf16, 32), sink_gradient, table_gradient, &edge);
    for (int i = 0; i < 20; i++) {
        check<32, bf16>(KERNELS(bf16, 32), sink_gradient, table_gradient);
        if (i % 5 == 0) check<64, bf16>(KERNELS(bf16, 64), sink_gradient, table_gradient);
        if (i % 20 == 0) check<128, bf16>(KERNELS(bf16, 128), sink_gradient, table_gradient);
    }
    Sizes large = {2, 1, 300, 250, 0, 0, 0, 1, 300, 1, 0, 150}; // several slices
    auto dbias = Array<float>::normal((size_t)2 * 300 * 250);
    std::vector<u32> buckets(300 * 250);
    for (auto &b : buckets) b = between(0, 149);
    table_gradient(dbias, buckets, large, "large");
    return failures != 0;
}
