// What all kernels share: bf16, loads of 16 bytes, sums over a warp and a block, the tensor cores' product.
// Storage is float or bf16, arithmetic is float. With SIDENOTE_HOST the same sources compile as C++ (host/emulation.h).
#pragma once

#ifdef SIDENOTE_HOST
#include "host/emulation.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP = 32;

// bf16: the upper half of a float.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Rounds to the nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#ifdef SIDENOTE_HOST
    u32 bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return to_bf16(x); }

// Two bf16 in a register, the first in the lower half: what the tensor cores read.
__device__ __forceinline__ u32 pack(bf16 low, bf16 high) { return (u32)low.bits | (u32)high.bits << 16; }
__device__ __forceinline__ u32 pack(float low, float high) { return pack(to_bf16(low), to_bf16(high)); }

// N neighbours moved at once. The address is a multiple of their size.
template <typename T, int N> struct alignas(sizeof(T) * N) Several {
    T value[N];
};

template <int N, typename T> __device__ __forceinline__ void load(float (&to)[N], const T *from) {
    Several<T, N> several = *reinterpret_cast<const Several<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_float(several.value[i]);
}

template <int N, typename T> __device__ __forceinline__ void store(T *to, const float (&from)[N]) {
    Several<T, N> several;
#pragma unroll
    for (int i = 0; i < N; i++) several.value[i] = from_float<T>(from[i]);
    *reinterpret_cast<Several<T, N> *>(to) = several;
}

// 16 bytes to shared memory past the registers, or zeros, while the thread goes on. They are there once `copies_done<N>`
// has returned, where N groups of copies, each closed by `copies_end`, may still be under way, and the block has met.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool there) {
#ifdef SIDENOTE_HOST
    emulation::copy(to, from, there);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
#endif
}
__device__ __forceinline__ void copies_end() {
#ifdef SIDENOTE_HOST
    emulation::end_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void copies_done() {
#ifdef SIDENOTE_HOST
    emulation::finish_copies(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// The sum over the lanes of a warp, on each lane; the order of additions is fixed.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

// The sums of N numbers over a block, on each thread. `partial` is shared, one place a warp and number; all threads
// call it, and it may be called again at once.
template <int N> __device__ __forceinline__ void block_sum(float (&x)[N], float (*partial)[N]) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = warp_sum(x[n]);
    if (lane == 0)
        for (int n = 0; n < N; n++) partial[warp][n] = x[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        x[n] = 0;
        for (int w = 0; w < warps; w++) x[n] += partial[w][n];
    }
    __syncthreads();
}

// sum += a b on the tensor cores: a is 16 x 16 by rows, b 16 x 8 by columns, sum 16 x 8. With g = lane / 4 and
// t = lane % 4 a lane holds a[g][2t..], a[g+8][2t..], a[g][2t+8..], a[g+8][2t+8..] (two each), b[2t..][g],
// b[2t+8..][g], and sum[g][2t], sum[g][2t+1], sum[g+8][2t], sum[g+8][2t+1] (PTX ISA, mma.m16n8k16).
__device__ __forceinline__ void mma(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef SIDENOTE_HOST
    emulation::mma(sum, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
