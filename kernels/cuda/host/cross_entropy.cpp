// The loss and the gradients of its logits against double; the products behind them are matmul.cpp's.
#include "../cross_entropy.cu"
#include "reference.h"

template <typename T, typename Statistics, typename Gradient>
void check(const char *name, Statistics statistics_kernel, Gradient gradient_kernel) {
    int rows = between(1, 150), vocabulary = between(1, 400), dim = between(1, 60), ignores = between(0, 1);
    if (between(0, 1)) dim = (dim + 7) / 8 * 8;
    u32 ignore = between(0, 1) ? 0xffffffffu : 0;
    float smoothing = between(0, 1) * 0.1f, z_loss = between(0, 1) * 0.01f, factor = 0.37f;
    std::string shape = std::to_string(rows) + " x " + std::to_string(vocabulary) + " x " + std::to_string(dim);
    auto hidden = Array<T>::normal(rows * dim), weight = Array<T>::normal(vocabulary * dim);
    std::vector<u32> targets(rows);
    for (auto &t : targets) t = between(0, 5) || !ignores ? between(0, vocabulary - 1) : ignore;
    int tiles = (vocabulary + TILE - 1) / TILE;
    dim3 grid((rows + TILE - 1) / TILE, tiles);
    auto partial = Array<float>::poison(rows * tiles * 3), logit = Array<float>::poison(rows),
         log_total = Array<float>::poison(rows), losses = Array<float>::poison(rows), loss = Array<float>::poison(1);
    auto out = Array<T>::poison(rows * vocabulary);
    emulation::launch(statistics_kernel, grid, THREADS, hidden.data(), weight.data(), targets.data(), partial.data(), logit.data(), rows, vocabulary, dim);
    emulation::launch(cross_entropy_rows, (rows + 7) / 8, THREADS, partial.data(), logit.data(), targets.data(), log_total.data(),
                      losses.data(), rows, vocabulary, tiles, ignore, ignores, smoothing, z_loss);
    emulation::launch(cross_entropy_total, 1, THREADS, losses.data(), loss.data(), rows);
    emulation::launch(gradient_kernel, grid, THREADS, hidden.data(), weight.data(), targets.data(), log_total.data(), out.data(),
                      rows, vocabulary, dim, ignore, ignores, smoothing, z_loss, factor);
    std::vector<double> total(1), gradients(rows * vocabulary), logits(vocabulary);
    for (int r = 0; r < rows; r++) {
        if (ignores && targets[r] == ignore) continue;
        double sum = 0, all = 0;
        for (int v = 0; v < vocabulary; v++) {
            logits[v] = 0;
            for (int c = 0; c < dim; c++) logits[v] += hidden[r * dim + c] * weight[v * dim + c];
            sum += std::exp(logits[v]);
            all += logits[v];
        }
        double log_sum = std::log(sum);
        total[0] += (1 - smoothing) * (log_sum - logits[targets[r]]) + smoothing * (log_sum - all / vocabulary) + z_loss * log_sum * log_sum;
        for (int v = 0; v < vocabulary; v++)
            gradients[r * vocabulary + v] =
                factor * (std::exp(logits[v] - log_sum) * (1 + 2 * z_loss * log_sum) - smoothing / vocabulary -
                          (v == (int)targets[r] ? 1 - smoothing : 0));
    }
    compare(name, shape + " loss", loss, total, 1e-5);
    compare(name, shape + " gradients", out, gradients);
}

int main() {
    for (int i = 0; i < 8; i++) {
        check<float>("cross_entropy_f32", cross_entropy_statistics_f32, cross_entropy_gradient_f32);
        check<bf16>("cross_entropy_bf16", cross_entropy_statistics_bf16, cross_entropy_gradient_bf16);
    }
    return failures != 0;
}
