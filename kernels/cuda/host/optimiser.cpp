// Steps of AdamW and Adafactor, with clipping, against double; and that a step is none where the norm is no number.
#include "../optimiser.cu"
#include "reference.h"

constexpr int BLOCKS = 3;

template <typename T, typename Kernel> void norm_of(Kernel squares_kernel, Array<T> &grad, Array<float> &clip, float limit) {
    auto partial = Array<float>::poison(BLOCKS);
    emulation::launch(squares_kernel, BLOCKS, THREADS, grad.data(), partial.data(), (u64)grad.size());
    emulation::launch(clip_factor, 1, THREADS, partial.data(), clip.data(), BLOCKS, limit);
}

template <typename T, typename Squares, typename Step> void check_adamw(const char *name, Squares squares_kernel, Step step) {
    int n = between(1, 5000);
    bool with_master = between(0, 1);
    auto weight = Array<T>::normal(n), grad = Array<T>::normal(n);
    auto master = Array<float>::normal(n), first = Array<float>::normal(n), second = Array<float>::normal(n), clip = Array<float>::poison(2);
    for (int i = 0; i < n; i++) second.stored[i] = std::abs(second.stored[i]);
    float limit = between(0, 1) ? 1.5f : 0;
    Adam a = {0.9f, 0.99f, 0.1f, 0.01f, 1e-8f, 0.013f, 1.2f, 0.97f};
    double square = 0;
    for (int i = 0; i < n; i++) square += grad[i] * grad[i];
    double factor = limit > 0 && std::sqrt(square) > limit ? limit / std::sqrt(square) : 1;
    std::vector<double> w(n), m(n), v(n);
    for (int i = 0; i < n; i++) {
        double g = grad[i] * factor;
        m[i] = a.beta1 * first[i] + a.rest1 * g;
        v[i] = a.beta2 * second[i] + a.rest2 * g * g;
        w[i] = (with_master ? master[i] : weight[i]) * a.keep - a.rate * m[i] / (std::sqrt(v[i]) * a.correction + a.eps);
    }
    norm_of(squares_kernel, grad, clip, limit);
    compare(name, "norm", clip, {factor, std::sqrt(square)}, 1e-5);
    auto *copy = with_master ? master.data() : (float *)nullptr;
    emulation::launch(step, BLOCKS, THREADS, weight.data(), copy, grad.data(), first.data(), second.data(), clip.data(), a, (u64)n);
    compare(name, "weight", weight, w);
    if (with_master) compare(name, "master", master, w, 1e-5);
    compare(name, "first", first, m, 1e-5);
    compare(name, "second", second, v, 1e-5);
    auto before = weight.stored;
    grad.stored[n / 2] = from_float<T>(INFINITY);
    norm_of(squares_kernel, grad, clip, limit);
    emulation::launch(step, BLOCKS, THREADS, weight.data(), copy, grad.data(), first.data(), second.data(), clip.data(), a, (u64)n);
    if (memcmp(before.data(), weight.data(), n * sizeof(T))) {
        printf("FAILED %s: a step by an endless gradient\n", name);
        failures++;
    }
}

#define ADAFACTOR(suffix)                                                                                              \
    squares_##suffix, adafactor_rows_##suffix, adafactor_column_parts_##suffix, adafactor_whole_##suffix,              \
        adafactor_sizes_##suffix, adafactor_##suffix

template <typename T, typename Squares, typename Row, typename Parts, typename Whole, typename Size, typename Step>
void check_adafactor(const char *name, Squares squares_kernel, Row rows_kernel, Parts parts_kernel, Whole whole_kernel, Size sizes_kernel, Step step) {
    int outer = between(1, 2), rows = between(1, 150), columns = between(1, 300);
    bool vector = between(0, 1), relative = between(0, 1);
    if (vector) outer = rows = 1;
    int n = outer * rows * columns;
    auto weight = Array<T>::normal(n), grad = Array<T>::normal(n);
    auto row = Array<float>::normal(vector ? n : outer * rows), column = Array<float>::normal(outer * columns), clip = Array<float>::poison(2);
    for (auto *x : {&row, &column})
        for (auto &y : x->stored) y = std::abs(y) + 0.1f;
    float lr = 0.1f, least = relative ? 1e-3f : 0, most = 1, keep = 0.9f, limit = 2;
    Factors f = {rows, columns, 0.7f, 1e-30f};
    norm_of(squares_kernel, grad, clip, limit);
    double factor = clip[0], update_square = 0, weight_square = 0;
    std::vector<double> r(row.size()), c(column.size()), u(n), w(n), s(outer);
    for (size_t i = 0; i < row.size(); i++) r[i] = f.keep * row[i];
    for (size_t i = 0; i < column.size(); i++) c[i] = f.keep * column[i];
    for (int i = 0; i < n; i++) {
        double square = std::pow(grad[i] * factor, 2) + f.eps;
        if (vector) {
            r[i] += (1 - f.keep) * square;
        } else {
            r[i / columns] += (1 - f.keep) * square / columns;
            c[i / columns / rows * columns + i % columns] += (1 - f.keep) * square / rows;
        }
    }
    for (int i = 0; i < outer * rows && !vector; i++) s[i / rows] += r[i] / rows;
    for (int i = 0; i < n; i++) {
        int line = i / columns, matrix = line / rows;
        u[i] = grad[i] * factor / (vector ? std::sqrt(r[i]) : std::sqrt(r[line] / s[matrix] * c[matrix * columns + i % columns]));
        update_square += u[i] * u[i] / n;
        weight_square += weight[i] * weight[i] / n;
    }
    double rate = lr * (relative ? std::max((double)least, std::sqrt(weight_square)) : 1) / std::max(1.0, std::sqrt(update_square) / most);
    for (int i = 0; i < n; i++) w[i] = weight[i] * keep - rate * u[i];

    int parts = (rows + ROWS - 1) / ROWS, tiles = (columns + THREADS - 1) / THREADS;
    auto partial = Array<float>::poison(outer * parts * columns), scale = Array<float>::poison(outer),
         sums = Array<float>::poison(2 * BLOCKS), rate_of = Array<float>::poison(1);
    if (vector) {
        emulation::launch(whole_kernel, BLOCKS, THREADS, grad.data(), row.data(), clip.data(), f.keep, f.eps, (u64)n);
    } else {
        emulation::launch(rows_kernel, outer * rows, THREADS, grad.data(), row.data(), clip.data(), f);
        emulation::launch(parts_kernel, dim3(tiles, parts, outer), THREADS, grad.data(), partial.data(), clip.data(), f);
        emulation::launch(adafactor_columns, dim3(tiles, outer), THREADS, partial.data(), column.data(), clip.data(), parts, f);
        emulation::launch(adafactor_scale, outer, THREADS, row.data(), scale.data(), rows);
        compare(name, "column", column, c, 1e-5);
    }
    compare(name, "row", row, r, 1e-5);
    auto *of = vector ? (float *)nullptr : scale.data();
    emulation::launch(sizes_kernel, BLOCKS, THREADS, weight.data(), (float *)nullptr, grad.data(), row.data(), column.data(), of,
                      clip.data(), sums.data(), f, (u64)n);
    emulation::launch(adafactor_rate, 1, THREADS, sums.data(), rate_of.data(), BLOCKS, lr, least, most, (u64)n);
    emulation::launch(step, BLOCKS, THREADS, weight.data(), (float *)nullptr, grad.data(), row.data(), column.data(), of,
                      clip.data(), rate_of.data(), keep, f, (u64)n);
    compare(name, "weight", weight, w);
}

int main() {
    for (int i = 0; i < 6; i++) {
        check_adamw<float>("adamw_f32", squares_f32, adamw_f32);
        check_adamw<bf16>("adamw_bf16", squares_bf16, adamw_bf16);
        check_adafactor<float>("adafactor_f32", ADAFACTOR(f32));
        check_adafactor<bf16>("adafactor_bf16", ADAFACTOR(bf16));
    }
    return failures != 0;
}
