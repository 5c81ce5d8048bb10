// The embedding and its gradient against double, with ids that repeat and ids that do not occur.
#include "../embedding.cu"
#include "reference.h"

template <typename T, typename Forward, typename Backward>
void check(const char *name, Forward forward_kernel, Backward backward_kernel) {
    int vocabulary = between(1, 40), tokens = between(1, 100), width = between(1, 300);
    std::string shape = std::to_string(tokens) + " of " + std::to_string(vocabulary) + " x " + std::to_string(width);
    auto table = Array<T>::normal(vocabulary * width), grad = Array<T>::normal(tokens * width);
    auto out = Array<T>::poison(tokens * width), dtable = Array<T>::poison(vocabulary * width);
    std::vector<u32> ids(tokens), order(tokens), starts;
    for (auto &id : ids) id = between(0, vocabulary - 1);
    for (int i = 0; i < tokens; i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return ids[a] < ids[b]; });
    for (int i = 0; i < tokens; i++)
        if (i == 0 || ids[order[i]] != ids[order[i - 1]]) starts.push_back(i);
    unsigned segments = starts.size();
    starts.push_back(tokens);
    emulation::launch(forward_kernel, tokens, THREADS, table.data(), ids.data(), out.data(), width);
    std::vector<double> y(tokens * width), g(vocabulary * width);
    std::vector<bool> occurs(vocabulary);
    for (int t = 0; t < tokens; t++) {
        occurs[ids[t]] = true;
        for (int c = 0; c < width; c++) {
            y[t * width + c] = table[ids[t] * width + c];
            g[ids[t] * width + c] += grad[t * width + c];
        }
    }
    for (int v = 0; v < vocabulary; v++)
        for (int c = 0; c < width && !occurs[v]; c++) dtable.stored[v * width + c] = from_float<T>(0);
    emulation::launch(backward_kernel, segments, THREADS, grad.data(), ids.data(), order.data(), starts.data(), dtable.data(), width);
    compare(name, shape + " out", out, y);
    compare(name, shape + " dtable", dtable, g);
}

int main() {
    for (int i = 0; i < 10; i++) {
        check<float>("embedding_f32", embedding_forward_f32, embedding_backward_f32);
        check<bf16>("embedding_bf16", embedding_forward_bf16, embedding_backward_bf16);
    }
    return failures != 0;
}
