// Those of candle's own kernels that models call between ours, with candle's names and arguments; what they compute is
// written anew from candle's documentation of its operations. See kernels.cpp.
#include "../../common.cuh"

#include <utility>

typedef unsigned char u8;
typedef long long i64;
typedef _Float16 f16;

// Where number `i` of a tensor of any strides lies; `info` is its dimensions and then its strides, or nothing.
static size_t place(size_t i, size_t dims, const size_t *info, size_t tensor = 1) {
    if (!info) return i;
    size_t at = 0;
    for (size_t d = dims; d-- > 0;) {
        at += i % info[d] * info[tensor * dims + d];
        i /= info[d];
    }
    return at;
}

// Everything is done by the first thread of the first block.
static bool first() { return !threadIdx.x && !threadIdx.y && !blockIdx.x && !blockIdx.y && !blockIdx.z; }

static float widen(float x) { return x; }
static float widen(bf16 x) { return to_float(x); }
static float widen(f16 x) { return x; }
static double widen(double x) { return x; }
static u32 widen(u32 x) { return x; }
static u8 widen(u8 x) { return x; }
static i64 widen(i64 x) { return x; }
template <typename T, typename X> static T narrow(X x) { return (T)x; }
template <> bf16 narrow(float x) { return to_bf16(x); }
template <> bf16 narrow(double x) { return to_bf16((float)x); }
template <> bf16 narrow(u32 x) { return to_bf16((float)x); }
template <> bf16 narrow(u8 x) { return to_bf16((float)x); }
template <> bf16 narrow(i64 x) { return to_bf16((float)x); }
template <> bf16 narrow(int x) { return to_bf16((float)x); }

#define BINARY(name, T, Out, value)                                                                                    \
    extern "C" void name(size_t count, size_t dims, const size_t *info, const T *left, const T *right, Out *out) {        \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++) {                                                                           \
            auto x = widen(left[place(i, dims, info)]), y = widen(right[place(i, dims, info, 2)]);                     \
            out[i] = narrow<Out>(value);                                                                               \
        }                                                                                                              \
    }
#define UNARY(name, T, Out, value)                                                                                     \
    extern "C" void name(size_t count, size_t dims, const size_t *info, const T *in, Out *out) {                           \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++) {                                                                           \
            auto x = widen(in ? in[place(i, dims, info)] : *(const T *)(out + i));                                     \
            out[i] = narrow<Out>(value);                                                                               \
        }                                                                                                              \
    }
// These kernels take a reduction's source dimensions: the reduced ones come last.
#define REDUCE(name, T, results, start, step)                                                                                   \
    extern "C" void name(size_t count, size_t each, size_t dims, const size_t *info, const T *in, T *out) {                \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < results; i++) {                                                                         \
            auto sum = start;                                                                                          \
            for (size_t j = 0; j < each; j++) {                                                                        \
                auto x = widen(in[place(i * each + j, dims, info)]);                                                   \
                step;                                                                                                  \
            }                                                                                                          \
            out[i] = narrow<T>(sum);                                                                                   \
        }                                                                                                              \
    }
#define NUMBERS(T, suffix)                                                                                             \
    BINARY(badd_##suffix, T, T, x + y)                                                                                 \
    BINARY(bsub_##suffix, T, T, x - y)                                                                                 \
    BINARY(bmul_##suffix, T, T, x *y)                                                                                  \
    BINARY(bdiv_##suffix, T, T, x / y)                                                                                 \
    BINARY(bmaximum_##suffix, T, T, x > y ? x : y)                                                                     \
    BINARY(eq_##suffix, T, u8, x == y)                                                                                 \
    BINARY(ne_##suffix, T, u8, x != y)                                                                                 \
    UNARY(ucopy_##suffix, T, T, x)                                                                                     \
    extern "C" void affine_##suffix(size_t count, size_t dims, const size_t *info, const T *in, T *out, T mul, T add) {    \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++)                                                                             \
            out[i] = narrow<T>(widen(in ? in[place(i, dims, info)] : out[i]) * widen(mul) + widen(add));               \
    }                                                                                                                  \
    extern "C" void const_set_##suffix(size_t count, size_t dims, const size_t *info, T value, T *out) {                   \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++) out[place(i, dims, info)] = value;                                          \
    }                                                                                                                  \
    extern "C" void fill_##suffix(T *out, T value, size_t count) {                                                         \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++) out[i] = value;                                                             \
    }                                                                                                                  \
    extern "C" void copy2d_##suffix(const T *in, T *out, u32 rows, u32 columns, u32 from, u32 to) {                        \
        if (!first()) return;                                                                                          \
        for (u32 i = 0; i < rows; i++)                                                                                 \
            for (u32 j = 0; j < columns; j++) out[i * to + j] = in[i * from + j];                                      \
    }                                                                                                                  \
    extern "C" void is_u32_##suffix(size_t count, size_t dims, const size_t *info, const u32 *ids, const T *in, T *out,    \
                                size_t left, size_t size, size_t picked, size_t right) {                               \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < left * picked * right; i++) {                                                           \
            size_t l = i / (picked * right), p = i / right % picked;                                                   \
            out[i] = in[(l * size + ids[place(p, dims, info)]) * right + i % right];                                   \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void ia_u32_##suffix(const u32 *ids, size_t picked, const T *in, T *out, size_t left, size_t, size_t size,  \
                                size_t right) {                                                                        \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < left * picked * right; i++) {                                                           \
            T &to = out[(i / (picked * right) * size + ids[i / right % picked]) * right + i % right];                  \
            to = narrow<T>(widen(to) + widen(in[i]));                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void gather_u32_##suffix(size_t count, const u32 *ids, const T *in, T *out, size_t, size_t size, size_t picked,  \
                                    size_t right) {                                                                    \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++) out[i] = in[(i / (picked * right) * size + ids[i]) * right + i % right];    \
    }                                                                                                                  \
    extern "C" void sa_u32_##suffix(const u32 *ids, const T *in, T *out, size_t left, size_t picked, size_t size,          \
                                size_t right) {                                                                        \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < left * picked * right; i++) {                                                           \
            T &to = out[(i / (picked * right) * size + ids[i]) * right + i % right];                                   \
            to = narrow<T>(widen(to) + widen(in[i]));                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void where_u8_##suffix(size_t count, size_t dims, const size_t *info, const u8 *which, const T *yes,        \
                                  const T *no, T *out) {                                                               \
        if (!first()) return;                                                                                          \
        for (size_t i = 0; i < count; i++)                                                                             \
            out[i] = which[place(i, dims, info)] ? yes[place(i, dims, info, 2)] : no[place(i, dims, info, 3)];         \
    }                                                                                                                  \
    UNARY(cast_##suffix##_f32, T, float, x)                                                                            \
    UNARY(cast_##suffix##_f64, T, double, x)                                                                           \
    UNARY(cast_##suffix##_bf16, T, bf16, x)                                                                            \
    UNARY(cast_##suffix##_u32, T, u32, x)                                                                              \
    UNARY(cast_##suffix##_u8, T, u8, x)
#define FLOATS(T, suffix)                                                                                              \
    NUMBERS(T, suffix)                                                                                                 \
    UNARY(uneg_##suffix, T, T, -x)                                                                                     \
    UNARY(usqr_##suffix, T, T, x *x)                                                                                   \
    UNARY(usqrt_##suffix, T, T, std::sqrt(x))                                                                          \
    UNARY(uexp_##suffix, T, T, std::exp(x))                                                                            \
    UNARY(ulog_##suffix, T, T, std::log(x))                                                                            \
    UNARY(usin_##suffix, T, T, std::sin(x))                                                                            \
    UNARY(ucos_##suffix, T, T, std::cos(x))                                                                            \
    UNARY(utanh_##suffix, T, T, std::tanh(x))                                                                          \
    REDUCE(fast_sum_##suffix, T, count / each, 0.0, sum += x)                                                          \
    REDUCE(fast_sum_small_##suffix, T, count, 0.0, sum += x)                                                           \
    REDUCE(fast_max_##suffix, T, count / each, -1e300, if (x > sum) sum = x)
FLOATS(float, f32)
FLOATS(bf16, bf16)
FLOATS(double, f64)
NUMBERS(f16, f16)
NUMBERS(u32, u32)
NUMBERS(u8, u8)
NUMBERS(i64, i64)

template <typename... Parameters, size_t... I>
static void run(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>) {
    blockIdx = threadIdx = dim3(0, 0, 0);
    kernel(*static_cast<Parameters *>(arguments[I])...);
}
template <typename... Parameters> static void run(void (*kernel)(Parameters...), void **arguments) {
    run(kernel, arguments, std::index_sequence_for<Parameters...>());
}

extern "C" __attribute__((visibility("default"))) bool
sidenote_kernel(const char *name, const unsigned *grid, const unsigned *, void **arguments) {
#define KERNEL(kernel)                                                                                                 \
    if (!strcmp(name, #kernel)) {                                                                                      \
        if (grid) run(kernel, arguments);                                                                              \
        return true;                                                                                                   \
    }
    KERNELS
    return false;
}
