// Where a lane stands in the token-by-token kernels: value columns never meet, so a warp owns eight of them and all 64
// keys in registers. Lane = (16 groups of four keys) x (two groups of four values); nothing is shared between warps.
#pragma once

#include "device.cuh"

namespace vrwkv {

constexpr int kColumns = 8;         // values a warp owns
constexpr int kRecurrentWarps = 2;  // small blocks: one head alone should fill several multiprocessors

struct Place {
    int head, keys, values;  // first key and first value of four each
    size_t width, matrix;    // elements of one token; where the head's state begins
    size_t series;           // where the head's first token begins
};

// The grid is (values / (kColumns * kRecurrentWarps), heads, batch).
__device__ __forceinline__ Place place(int length, int heads) {
    int const thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, warp = thread / kLanes;
    Place at;
    at.head = static_cast<int>(blockIdx.y);
    at.keys = lane / 2 * 4;
    at.values = (static_cast<int>(blockIdx.x) * kRecurrentWarps + warp) * kColumns + lane % 2 * 4;
    at.width = static_cast<size_t>(heads) * kHead;
    at.matrix = (static_cast<size_t>(blockIdx.z) * heads + at.head) * kHead * kHead;
    at.series = static_cast<size_t>(blockIdx.z) * length * at.width + static_cast<size_t>(at.head) * kHead;
    return at;
}
inline dim3 recurrent_grid(int batch, int heads) {
    return dim3(kHead / kColumns / kRecurrentWarps, static_cast<unsigned>(heads), static_cast<unsigned>(batch));
}

__device__ __forceinline__ void read_state(float (&s)[4][4], float const* from, Place const& at) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Four<float> const row = load4(from + at.matrix + (at.keys + i) * kHead + at.values);
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = row.at[j];
    }
}
__device__ __forceinline__ void write_state(float const (&s)[4][4], float* to, Place const& at) {
#pragma unroll
    for (int i = 0; i < 4; i++) store4(to + at.matrix + (at.keys + i) * kHead + at.values, s[i]);
}

// Sums over the 16 key groups; every lane gets them.
__device__ __forceinline__ void sum_keys(float (&x)[4]) {
#pragma unroll
    for (int mask = 16; mask >= 2; mask /= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] += __shfl_xor_sync(kAll, x[i], mask);
}

}  // namespace vrwkv
