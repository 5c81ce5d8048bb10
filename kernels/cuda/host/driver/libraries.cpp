// What candle calls of cuBLAS and cuRAND when it opens a device. Everything else says that it is not done.
#define API extern "C" __attribute__((visibility("default"))) int

static int handle;

API cublasCreate_v2(void **to) { return *to = &handle, 0; }
API cublasDestroy_v2(void *) { return 0; }
API cublasSetStream_v2(void *, void *) { return 0; }
API curandCreateGenerator(void **to, int) { return *to = &handle, 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetStream(void *, void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
