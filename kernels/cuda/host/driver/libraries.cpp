// What candle calls of cuBLAS and cuRAND when it opens a device, and for products. Everything else says that it is not
// done.
#include "../../common.cuh"

#define API extern "C" __attribute__((visibility("default"))) int

static int handle;

API cublasCreate_v2(void **to) { return *to = &handle, 0; }
API cublasDestroy_v2(void *) { return 0; }
API cublasSetStream_v2(void *, void *) { return 0; }
API curandCreateGenerator(void **to, int) { return *to = &handle, 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetStream(void *, void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }

// Matrices by columns, `transposed` or not; sums in double.
template <typename T>
static void products(const int (&transposed)[2], int m, int n, int k, double alpha, const T *a, int lda, const T *b, int ldb, T *c,
                     int ldc) {
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += (double)to_float(a[transposed[0] ? l + (long)i * lda : i + (long)l * lda]) *
                       to_float(b[transposed[1] ? j + (long)l * ldb : l + (long)j * ldb]);
            c[i + (long)j * ldc] = from_float<T>((float)(alpha * sum));
        }
}

API cublasGemmStridedBatchedEx(void *, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a, int type,
                               int lda, long long next_a, const void *b, int, int ldb, long long next_b, const void *beta,
                               void *c, int, int ldc, long long next_c, int count, int, int) {
    constexpr int F32 = 0, BF16 = 14; // cudaDataType
    if ((type != F32 && type != BF16) || *(const float *)beta != 0) return 15; // not supported
    auto all = [&](auto number) {
        typedef decltype(number) T;
        for (int i = 0; i < count; i++)
            products({turn_a, turn_b}, m, n, k, *(const float *)alpha, (const T *)a + i * next_a, lda, (const T *)b + i * next_b,
                     ldb, (T *)c + i * next_c, ldc);
    };
    if (type == F32) all(float());
    else all(bf16());
    return 0;
}
