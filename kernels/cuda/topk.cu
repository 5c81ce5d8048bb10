// The k rows with the largest inner products with each query, without the matrix of scores: a tile of it is made as in
// matmul.cuh and each query keeps its best in a heap. The rows are cut into slices, a block each; the worst of the first
// slice's best is what later slices must beat, so that they seldom touch their heaps. Exact, and of equal scores the row
// that comes first wins, whatever runs first.
//
// The same over RaBitQ codes (Gao and Long 2024, arXiv:2405.12497): signs against a query in bf16.
#include "matmul.cuh"

constexpr int SLICE = 32; // columns of the tile that are looked at, at a time
constexpr u32 NONE = ~0u;

__device__ __forceinline__ bool better(float a, u32 a_id, float b, u32 b_id) { return a > b || (a == b && a_id < b_id); }

// A query's best so far: a heap with the worst on top, at scores[j * stride] and ids[j * stride] for j below k.
struct Heap {
    float *scores;
    u32 *ids;
    int k, stride;

    __device__ __forceinline__ void clear() {
        for (int j = 0; j < k; j++) {
            scores[(u64)j * stride] = -INFINITY;
            ids[(u64)j * stride] = NONE;
        }
    }
    // In the place of the worst.
    __device__ __forceinline__ void replace(float score, u32 id) {
        int at = 0;
        for (int child = 1; child < k; child = 2 * at + 1) {
            u64 c = (u64)child * stride;
            if (child + 1 < k && better(scores[c], ids[c], scores[c + stride], ids[c + stride])) {
                child++;
                c += stride;
            }
            if (!better(score, id, scores[c], ids[c])) break;
            scores[(u64)at * stride] = scores[c];
            ids[(u64)at * stride] = ids[c];
            at = child;
        }
        scores[(u64)at * stride] = score;
        ids[(u64)at * stride] = id;
    }
};

// Block (tiles of queries, slices from `first_slice` on): scores and ids [slices, k, queries].
template <typename T, typename Right, typename Score>
__device__ void scan(const T *queries, Right right, Score score_of, float *scores, u32 *ids, int count, int rows, int dim,
                     int k, int slice_rows, int first_slice) {
    __shared__ Shared<T> shared;
    __shared__ float some[TILE][SLICE + 1];
    int first_query = blockIdx.x * TILE, query = first_query + threadIdx.x, slice = first_slice + blockIdx.y;
    bool mine = threadIdx.x < TILE && query < count;
    u64 at = (u64)slice * k * count + query;
    Heap heap = {scores + at, ids + at, k, count};
    float floor = -INFINITY;
    if (mine) {
        heap.clear();
        if (slice > 0) floor = scores[query]; // the top of the first slice's heap
    }
    int last = min(rows, (slice + 1) * slice_rows);
    for (int row = slice * slice_rows; row < last; row += TILE) {
        Sums<T> sums;
        right.first = row;
        tile_product(sums, Rows<T>{queries, count, dim, first_query, {}}, right, dim, shared);
        for (int from = 0; from < TILE; from += SLICE) {
            sums.for_each([&](int r, int c, float x) {
                if (c >= from && c < from + SLICE) some[r][c - from] = x;
            });
            __syncthreads();
            if (mine)
                for (int c = 0; c < SLICE && row + from + c < last; c++) {
                    float x = score_of(row + from + c, some[threadIdx.x][c]);
                    if (x > floor) {
                        heap.replace(x, row + from + c);
                        floor = fmaxf(floor, heap.scores[0]);
                    }
                }
            __syncthreads();
        }
    }
}

// Block (query): the k best of `slices` lists of `length`, best first; [queries, k]. What is not there is NONE.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_k_merge(const float *scores, const u32 *ids, float *best, u32 *best_ids, int count, int slices, int length, int k) {
    __shared__ float warp_score[THREADS / WARP];
    __shared__ u32 warp_id[THREADS / WARP];
    int query = blockIdx.x;
    float last = INFINITY; // what was taken before
    u32 last_id = 0;
    for (int j = 0; j < k; j++) {
        float most = -INFINITY;
        u32 id = NONE;
        for (int i = threadIdx.x; i < slices * length; i += THREADS) {
            float x = scores[(u64)i * count + query];
            u32 x_id = ids[(u64)i * count + query];
            if (x_id != NONE && (j == 0 || better(last, last_id, x, x_id)) && (id == NONE || better(x, x_id, most, id))) {
                most = x;
                id = x_id;
            }
        }
        for (int apart = WARP / 2; apart > 0; apart /= 2) {
            float x = __shfl_xor_sync(0xffffffffu, most, apart);
            u32 x_id = __shfl_xor_sync(0xffffffffu, id, apart);
            if (x_id != NONE && (id == NONE || better(x, x_id, most, id))) {
                most = x;
                id = x_id;
            }
        }
        if (threadIdx.x % WARP == 0) {
            warp_score[threadIdx.x / WARP] = most;
            warp_id[threadIdx.x / WARP] = id;
        }
        __syncthreads();
        for (int w = 0; w < THREADS / WARP; w++)
            if (warp_id[w] != NONE && (id == NONE || better(warp_score[w], warp_id[w], most, id))) {
                most = warp_score[w];
                id = warp_id[w];
            }
        __syncthreads();
        last = most;
        last_id = id;
        if (threadIdx.x == 0) {
            best[(u64)query * k + j] = most;
            best_ids[(u64)query * k + j] = id;
        }
        if (id == NONE) { // all threads alike: nothing is left
            for (int rest = j + 1 + threadIdx.x; rest < k; rest += THREADS) {
                best[(u64)query * k + rest] = -INFINITY;
                best_ids[(u64)query * k + rest] = NONE;
            }
            return;
        }
    }
}

// Block (query): exact scores of candidates [queries, length] to lists [length, queries], as `top_k_merge` takes them.
template <typename T>
__device__ void rescore(const T *queries, const T *rows, const u32 *candidates, float *scores, u32 *ids, int count, int dim,
                        int length) {
    int lane = threadIdx.x % WARP, query = blockIdx.x;
    for (int j = threadIdx.x / WARP; j < length; j += THREADS / WARP) {
        u32 id = candidates[(u64)query * length + j];
        float sum = 0;
        if (id != NONE)
            for (int i = lane; i < dim; i += WARP) sum += to_float(queries[(u64)query * dim + i]) * to_float(rows[(u64)id * dim + i]);
        sum = warp_sum(sum);
        if (lane == 0) {
            scores[(u64)j * count + query] = sum;
            ids[(u64)j * count + query] = id;
        }
    }
}

// RaBitQ codes as an operand of the tensor cores: sidenote-index's blocks of 32 vectors, of `stride` bytes. A group is
// four dimensions and 16 bytes: byte j has the signs of vector j in its lower half and of vector j + 16 in its upper.
struct Codes {
    const unsigned char *blocks;
    int rows, groups, stride, first;
    u32 held[PIECES]; // eight signs each

    __device__ __forceinline__ void fetch(int k) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS, row = first + i / 4, group = k / 4 + i % 4 * 2, slot = row % 32;
            held[n] = 0;
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row < rows && group + half < groups) {
                    unsigned char byte = blocks[(u64)(row / 32) * stride + (group + half) * 16 + slot % 16];
                    held[n] |= (byte >> slot / 16 * 4 & 15u) << half * 4;
                }
        }
    }
    __device__ __forceinline__ void put(bf16 (*to)[STRIDE<bf16>]) {
#pragma unroll
        for (int n = 0; n < PIECES; n++) {
            int i = threadIdx.x + n * THREADS;
            float signs[8];
#pragma unroll
            for (int e = 0; e < 8; e++) signs[e] = held[n] >> e & 1 ? 1 : -1;
            store(&to[i / 4][i % 4 * 8], signs);
        }
    }
};

// After a block's codes come its vectors' `add` [32] and `scale` [32], in float: the estimate is add + scale * signs.
extern "C" __global__ void __launch_bounds__(THREADS)
    rabitq_scan(const bf16 *queries, const unsigned char *blocks, float *scores, u32 *ids, int count, int rows, int dim,
                int k, int slice_rows, int first_slice, int groups, int stride) {
    scan(
        queries, Codes{blocks, rows, groups, stride, 0, {}},
        [=](int row, float x) {
            const float *factors = reinterpret_cast<const float *>(blocks + (u64)(row / 32) * stride + groups * 16);
            return factors[row % 32] + factors[32 + row % 32] * x;
        },
        scores, ids, count, rows, dim, k, slice_rows, first_slice);
}

#define TOP_K(T, suffix)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        top_k_scan_##suffix(const T *queries, const T *vectors, float *scores, u32 *ids, int count, int rows, int dim, \
                            int k, int slice_rows, int first_slice) {                                                  \
        scan(                                                                                                          \
            queries, Rows<T>{vectors, rows, dim, 0, {}}, [](int, float x) { return x; }, scores, ids, count, rows,     \
            dim, k, slice_rows, first_slice);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        top_k_rescore_##suffix(const T *queries, const T *vectors, const u32 *candidates, float *scores, u32 *ids,     \
                               int count, int dim, int length) {                                                       \
        rescore(queries, vectors, candidates, scores, ids, count, dim, length);                                        \
    }
TOP_K(float, f32)
TOP_K(bf16, bf16)
