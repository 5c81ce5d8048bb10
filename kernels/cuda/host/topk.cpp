// The k best rows against double. What is found must be as good as the best; ids must be those of the scores, and of
// equal scores the first.
#include "../topk.cu"
#include "reference.h"

struct Result {
    std::vector<float> scores;
    std::vector<u32> ids;
};

template <typename Scan> Result search(Scan scan_slices, int count, int rows, int k, int slice_rows) {
    int slices = (rows + slice_rows - 1) / slice_rows;
    std::vector<float> scores((size_t)slices * k * count, NAN);
    std::vector<u32> ids(scores.size(), 7777777);
    scan_slices(scores.data(), ids.data(), 1, 0);
    if (slices > 1) scan_slices(scores.data(), ids.data(), slices - 1, 1);
    Result best = {std::vector<float>(count * k, NAN), std::vector<u32>(count * k, 7777777)};
    emulation::launch(top_k_merge, count, THREADS, scores.data(), ids.data(), best.scores.data(), best.ids.data(), count, slices, k, k);
    return best;
}

// `exact` [count, rows].
static void judge(const char *name, const std::string &shape, const Result &found, const std::vector<double> &exact, int count,
                  int rows, int k, double off) {
    auto failed = [&](const char *what, int q, int j) {
        printf("FAILED %s %s: %s, query %d place %d\n", name, shape.c_str(), what, q, j);
        failures++;
    };
    for (int q = 0; q < count; q++) {
        std::vector<double> sorted(exact.begin() + q * rows, exact.begin() + (q + 1) * rows);
        std::sort(sorted.rbegin(), sorted.rend());
        std::vector<u32> seen;
        for (int j = 0; j < k; j++) {
            u32 id = found.ids[q * k + j];
            if (j >= rows) {
                if (id != NONE) return failed("more than there are", q, j);
                continue;
            }
            if (id >= (u32)rows) return failed("no row", q, j);
            float score = found.scores[q * k + j];
            if (!(std::abs(score - exact[q * rows + id]) < off)) return failed("not its score", q, j);
            if (!(score > sorted[j] - 2 * off)) return failed("not among the best", q, j);
            if (j && !better(found.scores[q * k + j - 1], found.ids[q * k + j - 1], score, id)) return failed("out of order", q, j);
            seen.push_back(id);
        }
        std::sort(seen.begin(), seen.end());
        if (std::unique(seen.begin(), seen.end()) != seen.end()) failed("twice", q, 0);
    }
}

template <typename T, typename Scan, typename Rescore> void check(const char *name, Scan scan_kernel, Rescore rescore_kernel, bool equal) {
    int count = between(1, 30) + (equal ? 0 : 110), rows = between(1, 500), dim = between(1, 50), k = between(1, equal ? 30 : 6), slice_rows = TILE * between(1, 3);
    std::string shape = std::to_string(count) + " x " + std::to_string(rows) + " x " + std::to_string(dim) + " k " + std::to_string(k);
    auto queries = Array<T>::normal(count * dim), vectors = Array<T>::normal(rows * dim);
    if (equal) // many ties, exact in float
        for (auto *array : {&queries, &vectors})
            for (auto &x : array->stored) x = from_float<T>(between(0, 1));
    std::vector<double> exact(count * rows);
    for (int q = 0; q < count; q++)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < dim; c++) exact[q * rows + r] += queries[q * dim + c] * vectors[r * dim + c];
    auto scan_slices = [&](float *scores, u32 *ids, int slices, int first) {
        emulation::launch(scan_kernel, dim3((count + TILE - 1) / TILE, slices), THREADS, queries.data(), vectors.data(), scores, ids,
                          count, rows, dim, k, slice_rows, first);
    };
    Result found = search(scan_slices, count, rows, k, slice_rows);
    judge(name, shape, found, exact, count, rows, k, 1e-4);
    if (equal)
        for (int q = 0; q < count; q++) {
            std::vector<u32> order(rows);
            for (int r = 0; r < rows; r++) order[r] = r;
            std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return exact[q * rows + a] > exact[q * rows + b]; });
            for (int j = 0; j < std::min(k, rows); j++)
                if (found.ids[q * k + j] != order[j]) {
                    printf("FAILED %s: of equal scores not the first\n", name);
                    failures++;
                    return;
                }
        }
    // The candidates scored again.
    Array<float> scores = Array<float>::poison(count * k);
    std::vector<u32> ids(count * k);
    emulation::launch(rescore_kernel, count, THREADS, queries.data(), vectors.data(), found.ids.data(), scores.data(), ids.data(), count, dim, k);
    Result again = {std::vector<float>(count * k, NAN), std::vector<u32>(count * k)};
    emulation::launch(top_k_merge, count, THREADS, scores.data(), ids.data(), again.scores.data(), again.ids.data(), count, 1, k, k);
    judge(name, shape + " again", again, exact, count, rows, k, 1e-4);
}

static void check_codes() {
    int count = between(1, 20), rows = between(1, 500), dim = between(1, 90), k = between(1, 20), slice_rows = TILE;
    int groups = ((dim + 3) / 4 + 7) / 8 * 8, stride = groups * 16 + 4 * (3 * 32 + 16);
    std::string shape = std::to_string(count) + " x " + std::to_string(rows) + " x " + std::to_string(dim);
    std::vector<unsigned char> blocks((size_t)(rows + 31) / 32 * stride);
    auto queries = Array<bf16>::normal(count * dim);
    std::vector<double> exact(count * rows);
    for (int r = 0; r < rows; r++) {
        unsigned char *block = blocks.data() + r / 32 * stride;
        float add = between(-100, 100) / 100.0f, scale = between(1, 100) / 100.0f;
        memcpy(block + groups * 16 + r % 32 * 4, &add, 4);
        memcpy(block + groups * 16 + 128 + r % 32 * 4, &scale, 4);
        for (int c = 0; c < dim; c++) {
            int sign = between(0, 1);
            int bit = r % 32 / 16 * 4 + c % 4;
            block[c / 4 * 16 + r % 16] |= sign << bit;
            for (int q = 0; q < count; q++) exact[q * rows + r] += scale * (sign ? 1 : -1) * queries[q * dim + c];
        }
        for (int q = 0; q < count; q++) exact[q * rows + r] += add;
    }
    auto scan_slices = [&](float *scores, u32 *ids, int slices, int first) {
        emulation::launch(rabitq_scan, dim3((count + TILE - 1) / TILE, slices), THREADS, queries.data(), blocks.data(), scores, ids,
                          count, rows, dim, k, slice_rows, first, groups, stride);
    };
    judge("rabitq", shape, search(scan_slices, count, rows, k, slice_rows), exact, count, rows, k, 1e-4);
}

int main() {
    for (int i = 0; i < 3; i++) {
        check<float>("top_k_f32", top_k_scan_f32, top_k_rescore_f32, i % 2);
        check<bf16>("top_k_bf16", top_k_scan_bf16, top_k_rescore_bf16, i % 2);
        check_codes();
    }
    return failures != 0;
}
