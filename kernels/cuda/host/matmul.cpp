// Matrix products against double, on random uneven sizes.
#include "../matmul.cu"
#include "reference.h"

template <typename T, typename Kernel, typename Added>
void check(const char *name, Kernel kernel, Added added, bool left_turned, bool right_turned) {
    int m = between(1, 200), n = between(1, 200), k = between(1, 150);
    if (between(0, 1)) m = (m + 7) / 8 * 8, n = (n + 7) / 8 * 8, k = (k + 7) / 8 * 8;
    std::string shape = std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k);
    auto left = Array<T>::normal(m * k), right = Array<T>::normal(n * k), residual = Array<T>::normal(m * n);
    auto out = Array<T>::poison(m * n);
    auto sums = Array<float>::normal(m * n);
    bool with = between(0, 1);
    std::vector<double> expected(m * n), plain(m * n);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double x = 0;
            for (int c = 0; c < k; c++)
                x += (left_turned ? left[c * m + i] : left[i * k + c]) * (right_turned ? right[c * n + j] : right[j * k + c]);
            expected[i * n + j] = x + (with ? residual[i * n + j] : 0);
            plain[i * n + j] = x + sums[i * n + j];
        }
    dim3 grid((m + TILE - 1) / TILE, (n + TILE - 1) / TILE);
    emulation::launch(kernel, grid, THREADS, left.data(), right.data(), with ? residual.data() : (T *)nullptr, out.data(), m, n, k);
    compare(name, shape, out, expected);
    if (!left_turned) return;
    emulation::launch(added, grid, THREADS, left.data(), right.data(), sums.data(), m, n, k);
    compare(name, shape + " added", sums, plain);
}

int main() {
    for (int i = 0; i < 4; i++) {
        check<float>("matmul_nt_f32", matmul_nt_f32, matmul_tn_added_f32, false, false);
        check<float>("matmul_nn_f32", matmul_nn_f32, matmul_tn_added_f32, false, true);
        check<float>("matmul_tn_f32", matmul_tn_f32, matmul_tn_added_f32, true, true);
        check<bf16>("matmul_nt_bf16", matmul_nt_bf16, matmul_tn_added_bf16, false, false);
        check<bf16>("matmul_nn_bf16", matmul_nn_bf16, matmul_tn_added_bf16, false, true);
        check<bf16>("matmul_tn_bf16", matmul_tn_bf16, matmul_tn_added_bf16, true, true);
    }
    return failures != 0;
}
