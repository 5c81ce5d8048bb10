// Activations, gates and the rotary embedding against double; the derivative by central differences.
#include "../pointwise.cu"
#include "reference.h"

static double activation(int kind, double x) {
    switch (kind) {
    case SILU: return x / (1 + std::exp(-x));
    case GELU: return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
    case GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default: return x > 0 ? x : 0;
    }
}

template <typename T, typename Forward, typename Backward>
void check_gated(const char *name, int kind, bool with_up, Forward forward_kernel, Backward backward_kernel) {
    int n = between(1, 9000), blocks = between(1, 4);
    std::string shape = std::to_string(n) + " kind " + std::to_string(kind) + (with_up ? " gated" : "");
    auto x = Array<T>::normal(n), up = Array<T>::normal(n), grad = Array<T>::normal(n);
    auto out = Array<T>::poison(n), dx = Array<T>::poison(n), dup = Array<T>::poison(n);
    T *gate = with_up ? up.data() : nullptr;
    emulation::launch(forward_kernel, blocks, THREADS, x.data(), gate, out.data(), kind, (u64)n);
    emulation::launch(backward_kernel, blocks, THREADS, x.data(), gate, grad.data(), dx.data(), dup.data(), kind, (u64)n);
    std::vector<double> y(n), gx(n), gu(n);
    for (int i = 0; i < n; i++) {
        double u = with_up ? up[i] : 1, h = 1e-6;
        y[i] = activation(kind, x[i]) * u;
        gx[i] = (activation(kind, x[i] + h) - activation(kind, x[i] - h)) / (2 * h) * u * grad[i];
        gu[i] = activation(kind, x[i]) * grad[i];
    }
    compare(name, shape + " out", out, y);
    compare(name, shape + " dx", dx, gx);
    if (with_up) compare(name, shape + " dup", dup, gu);
}

template <typename T, typename Kernel> void check_rotary(const char *name, Kernel kernel) {
    int batch = between(1, 3), heads = between(1, 3), tokens = between(1, 20), half = between(1, 40);
    int dim = 2 * half + 2 * between(0, 3), own = between(0, 1);
    size_t rows = (size_t)batch * heads * tokens, n = rows * dim;
    auto x = Array<T>::normal(n), out = Array<T>::poison(n);
    auto cosine = Array<float>::normal((own ? batch : 1) * tokens * half), sine = Array<float>::normal(cosine.size());
    float sign = between(0, 1) ? 1 : -1;
    emulation::launch(kernel, (rows + THREADS / WARP - 1) / (THREADS / WARP), THREADS, x.data(), cosine.data(), sine.data(),
                      out.data(), heads, tokens, dim, half, own, sign, (u64)rows);
    std::vector<double> y(n);
    for (size_t r = 0; r < rows; r++)
        for (int c = 0; c < dim; c++) {
            size_t b = r / tokens / heads, at = ((own ? b * tokens : 0) + r % tokens) * half + c % half;
            double a = x[r * dim + c];
            y[r * dim + c] = c < half       ? a * cosine[at] - x[r * dim + c + half] * sine[at] * sign
                             : c < 2 * half ? a * cosine[at] + x[r * dim + c - half] * sine[at] * sign
                                            : a;
        }
    compare(name, std::to_string(rows) + " rows of " + std::to_string(dim), out, y);
}

// Against the generator's known answers (Random123, kat_vectors) and one step of it in other words.
template <typename T, typename Kernel> void check_dropout(const char *name, Kernel kernel) {
    u32 zeros[4] = {}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    philox(zeros, 0, 0);
    philox(ones, ~0u, ~0u);
    u32 known[8] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    if (memcmp(zeros, known, 16) || memcmp(ones, known + 4, 16)) {
        printf("FAILED philox\n");
        failures++;
    }
    int n = between(1, 9000);
    u64 seed = 0x123456789abcdefull;
    u32 threshold = 0x60000000;
    auto x = Array<T>::normal(n), out = Array<T>::poison(n);
    emulation::launch(kernel, between(1, 4), THREADS, x.data(), out.data(), threshold, 1.6f, seed, (u64)n);
    std::vector<double> y(n);
    for (int i = 0; i < n; i++) {
        u32 words[4] = {(u32)i / 4, 0, 0, 0};
        philox(words, 0x89abcdef, 0x1234567);
        y[i] = words[i % 4] < threshold ? 0 : x[i] * 1.6f;
    }
    compare(name, std::to_string(n), out, y);
}

template <typename T, typename Kernel> void check_heads(const char *name, Kernel kernel) {
    int batch = between(1, 3), heads = between(1, 4), tokens = between(1, 20), dim = 8 * between(1, 5), before = 8 * between(0, 3);
    int stride = before + heads * dim + 8 * between(0, 3);
    size_t n = (size_t)batch * heads * tokens * dim;
    auto x = Array<T>::normal((size_t)batch * tokens * stride), out = Array<T>::poison(n);
    std::vector<double> y(n);
    for (size_t i = 0; i < n; i++) {
        size_t t = i / dim % tokens, h = i / dim / tokens % heads, b = i / dim / tokens / heads;
        y[i] = x[(b * tokens + t) * stride + before + h * dim + i % dim];
    }
    emulation::launch(kernel, 2, THREADS, x.data(), out.data(), heads, tokens, dim, stride, before, 0, (u64)n);
    compare(name, "split", out, y);
    auto back = x;
    for (size_t i = 0; i < back.size(); i++)
        if ((int)(i % stride) >= before && (int)(i % stride) < before + heads * dim) back.stored[i] = from_float<T>(NAN);
    emulation::launch(kernel, 2, THREADS, out.data(), back.data(), heads, tokens, dim, stride, before, 1, (u64)n);
    std::vector<double> same;
    for (size_t i = 0; i < x.size(); i++) same.push_back(x[i]);
    compare(name, "merge", back, same);
}

int main() {
    check_heads<float>("move_heads_f32", move_heads_f32);
    check_heads<bf16>("move_heads_bf16", move_heads_bf16);
    check_dropout<float>("dropout_f32", dropout_f32);
    check_dropout<bf16>("dropout_bf16", dropout_bf16);
    for (int kind = 0; kind < 4; kind++)
        for (int up = 0; up < 2; up++) {
            check_gated<float>("gated_f32", kind, up, gated_forward_f32, gated_backward_f32);
            check_gated<bf16>("gated_bf16", kind, up, gated_forward_bf16, gated_backward_bf16);
        }
    for (int i = 0; i < 8; i++) {
        check_rotary<float>("rotary_f32", rotary_f32);
        check_rotary<bf16>("rotary_bf16", rotary_bf16);
    }
    return failures != 0;
}
