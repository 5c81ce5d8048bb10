// What the checks share: random inputs, results that start poisoned, and the comparison with a reference in double.
#pragma once

#include "emulation.h"

inline std::mt19937 &random_bits() {
    static std::mt19937 bits(7);
    return bits;
}
inline int between(int low, int high) { return low + (int)(random_bits()() % (unsigned)(high - low + 1)); }

// Numbers as a kernel stores them (T) and as the reference reads them.
template <typename T> struct Array {
    std::vector<T> stored;

    // Standard normal.
    static Array normal(size_t n) {
        std::normal_distribution<float> distribution;
        Array array;
        for (size_t i = 0; i < n; i++) array.stored.push_back(from_float<T>(distribution(random_bits())));
        return array;
    }
    // What a kernel must overwrite.
    static Array poison(size_t n) { return {std::vector<T>(n, from_float<T>(NAN))}; }

    T *data() { return stored.data(); }
    double operator[](size_t i) const { return to_float(stored[i]); }
    size_t size() const { return stored.size(); }
};

static int failures = 0;

// Compares with the relative error of the whole result in the L2 norm, and finds what is not a number.
template <typename T>
void compare(const char *what, const std::string &shape, const Array<T> &found, const std::vector<double> &expected,
             double limit = sizeof(T) == 4 ? 1e-5 : 1e-2) {
    double error = 0, norm = 1e-30;
    bool poisoned = found.size() != expected.size();
    for (size_t i = 0; i < expected.size() && !poisoned; i++) {
        poisoned |= std::isnan(found[i]);
        error += (found[i] - expected[i]) * (found[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    if (poisoned || error > limit * limit * norm + 1e-20) {
        printf("FAILED %s %s: %s, relative error %.2e\n", what, shape.c_str(), poisoned ? "poisoned" : "wrong",
               std::sqrt(error / norm));
        failures++;
    }
}
