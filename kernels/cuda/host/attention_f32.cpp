// Attention in float.
#include "../attention_f32.cu"
#include "attention_check.h"

int main() {
    auto no_sink = [](Array<float> &sink, Array<float> &log_sum, Array<float> &delta, Array<float> &dsink, int batch, Sizes s) {
        // That kernel is in attention.cu: here its sum as it is.
        for (int h = 0; h < s.heads; h++) {
            double sum = 0;
            for (int b = 0; b < batch; b++)
                for (int t = s.shift; t < std::min(s.tokens, s.shift + s.chunks * s.queries); t++) {
                    size_t row = ((size_t)b * s.heads + h) * s.tokens + t;
                    sum -= std::exp(sink[h] - log_sum[row]) * delta[row];
                }
            dsink.stored[h] = sum;
        }
    };
    auto no_table = [](Array<float> &, std::vector<u32> &, Sizes, const char *) {};
    for (int i = 0; i < 25; i++) {
        check<32, float>(KERNELS(f32, 32), no_sink, no_table);
        if (i % 5 == 0) check<64, float>(KERNELS(f32, 64), no_sink, no_table);
        if (i % 20 == 0) check<128, float>(KERNELS(f32, 128), no_sink, no_table);
    }
    return failures != 0;
}
