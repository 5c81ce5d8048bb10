// Norms against double, on random uneven shapes, in both storages and both widths of loads.
#include "../norm.cu"
#include "reference.h"

template <typename T, typename Forward, typename Backward, typename Partial, typename Total>
void check(const char *name, bool mean, int multiple, Forward forward_kernel, Backward backward_kernel,
           Partial partial_kernel, Total total_kernel) {
    int rows = between(1, 150), width = between(1, 300) * multiple;
    bool with_residual = between(0, 1);
    float eps = 1e-5f;
    std::string shape = std::to_string(rows) + " x " + std::to_string(width) + (with_residual ? " + residual" : "");
    size_t n = (size_t)rows * width;
    auto x = Array<T>::normal(n), residual = Array<T>::normal(n), weight = Array<T>::normal(width),
         bias = Array<T>::normal(width), grad = Array<T>::normal(n), through = Array<T>::normal(n);
    auto total = Array<T>::poison(n), out = Array<T>::poison(n), dx = Array<T>::poison(n),
         dweight = Array<T>::poison(width), dbias = Array<T>::poison(width);
    emulation::launch(forward_kernel, rows, THREADS, x.data(), with_residual ? residual.data() : (T *)nullptr,
                      weight.data(), bias.data(), total.data(), out.data(), width, eps);
    auto &summed = with_residual ? total : x;
    int blocks = (rows + ROWS - 1) / ROWS, columns = (width + THREADS - 1) / THREADS;
    auto kept = Array<float>::poison(2 * rows), partial = Array<float>::poison((size_t)2 * blocks * width);
    emulation::launch(backward_kernel, rows, THREADS, summed.data(), weight.data(), grad.data(),
                      with_residual ? through.data() : (T *)nullptr, dx.data(), kept.data(), width, eps);
    emulation::launch(partial_kernel, dim3(columns, blocks), THREADS, summed.data(), grad.data(), kept.data(),
                      partial.data(), rows, width);
    emulation::launch(total_kernel, columns, THREADS, partial.data(), dweight.data(), dbias.data(), blocks, width);

    std::vector<double> sums(n), y(n), gx(n), gw(width), gb(width);
    for (int r = 0; r < rows; r++) {
        double m = 0, square = 0, of_g = 0, of_gy = 0;
        for (int c = 0; c < width; c++) sums[r * width + c] = x[r * width + c] + (with_residual ? residual[r * width + c] : 0);
        // Statistics are of what was stored.
        auto at = [&](int c) { return summed[r * width + c]; };
        for (int c = 0; c < width && mean; c++) m += at(c) / width;
        for (int c = 0; c < width; c++) square += (at(c) - m) * (at(c) - m) / width;
        double inverse = 1 / std::sqrt(square + eps);
        for (int c = 0; c < width; c++) {
            double normal = (at(c) - m) * inverse, g = grad[r * width + c];
            y[r * width + c] = normal * weight[c] + (mean ? bias[c] : 0);
            of_g += mean ? g * weight[c] / width : 0;
            of_gy += g * weight[c] * normal / width;
            gw[c] += g * normal;
            gb[c] += g;
        }
        for (int c = 0; c < width; c++)
            gx[r * width + c] = inverse * (grad[r * width + c] * weight[c] - of_g - (at(c) - m) * inverse * of_gy) +
                                (with_residual ? through[r * width + c] : 0);
    }
    if (with_residual) compare(name, shape + " total", total, sums);
    compare(name, shape + " out", out, y);
    compare(name, shape + " dx", dx, gx);
    compare(name, shape + " dweight", dweight, gw);
    compare(name, shape + " dbias", dbias, gb);
}

int main() {
    for (int i = 0; i < 4; i++) {
#define CHECK(name, mean, T, suffix, kind, n)                                                                          \
    check<T>(#name "_" #suffix, mean, n, name##_forward_##suffix, name##_backward_##suffix, norm_weight_partial_##kind, \
             norm_weight_total_##kind);
        CHECK(rms_norm, false, float, f32x4, f32, 4)
        CHECK(rms_norm, false, float, f32x1, f32, 1)
        CHECK(rms_norm, false, bf16, bf16x8, bf16, 8)
        CHECK(rms_norm, false, bf16, bf16x1, bf16, 1)
        CHECK(layer_norm, true, float, f32x4, f32, 4)
        CHECK(layer_norm, true, float, f32x1, f32, 1)
        CHECK(layer_norm, true, bf16, bf16x8, bf16, 8)
        CHECK(layer_norm, true, bf16, bf16x1, bf16, 1)
    }
    return failures != 0;
}
