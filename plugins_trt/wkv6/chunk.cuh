// WKV-6, the chunk's own part of the work: see common/chunk.cuh for what becomes of it.
//
// With D[t] the product of decays up to token t, inside a chunk
//   y[t] = (r[t] D[t-1]) S + sum_{s<t} (r[t] . (k[s] decayed from s to t-1)) v[s] + (r[t] . u k[t]) v[t].
// A log decay has no lower bound here: keys are decayed step by step, so that nothing is divided by a decay.
#pragma once

#include "../common/chunk.cuh"
#include "kernel.cuh"

namespace vrwkv {

struct Prepare6 {
    float r[kChunk][kPitch], k[kChunk][kPitch], decay[kChunk][kPitch];
    float rk[kChunk][kChunk];
    float end[kHead], bonus[kHead];
};

// What token t reads of token s. A group of eight lanes takes one s, whose key it decays as t moves on.
__device__ __forceinline__ void pairs6(Prepare6& x) {
    int const thread = static_cast<int>(threadIdx.x), s = thread / 8, channel = thread % 8 * 4;
    float k[8];
#pragma unroll
    for (int i = 0; i < 8; i++) k[i] = x.k[s][channel + i % 4 + i / 4 * 32];
    for (int t = 0; t < kChunk; t++) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int const c = channel + i % 4 + i / 4 * 32;
            sum += x.r[t][c] * k[i] * (t == s ? x.bonus[c] : 1.f);
            k[i] *= t > s ? x.decay[t][c] : 1.f;
        }
#pragma unroll
        for (int mask = 4; mask >= 1; mask /= 2) sum += __shfl_xor_sync(kAll, sum, mask);
        if (thread % 8 == 0) x.rk[t][s] = t >= s ? sum : 0.f;
    }
}

// Reads decay from the chunk's start, writes decay to its end. One channel to a thread.
__device__ __forceinline__ void edges6(Prepare6& x) {
    int const c = static_cast<int>(threadIdx.x) % kHead;
    float kept = 1.f;
    if (static_cast<int>(threadIdx.x) < kHead) {
        for (int t = 0; t < kChunk; t++) {
            x.r[t][c] *= kept;
            kept *= x.decay[t][c];
        }
        x.end[c] = kept;
    } else {
        for (int t = kChunk - 1; t >= 0; t--) {
            x.k[t][c] *= kept;
            kept *= x.decay[t][c];
        }
    }
}

template <class T, class W>
__global__ void __launch_bounds__(kChunkThreads) wkv6_prepare(Wkv6<T, W> in, void* records, int first, int chunks) {
    constexpr int TERMS = kTerms<T>;
    using Tile = Tiles<false>;
    Prepare6& x = shared_as<Prepare6>();
    int const thread = static_cast<int>(threadIdx.x), chunk = static_cast<int>(blockIdx.x);
    int const start = first + chunk * kChunk, count = in.length - start;
    size_t const width = static_cast<size_t>(in.heads) * kHead;
    size_t const at = (static_cast<size_t>(blockIdx.z) * in.length + start) * width + blockIdx.y * kHead;
    size_t const row = static_cast<size_t>(blockIdx.z) * in.heads + blockIdx.y;

    read_chunk(x.r, in.r + at, width, count);
    read_chunk(x.k, in.k + at, width, count);
    read_chunk(x.decay, in.w + at, width, count);
    if (thread < kHead) x.bonus[thread] = to_float(in.u[blockIdx.y * kHead + thread]);
    __syncthreads();
    exponentials(x.decay);
    __syncthreads();
    pairs6(x);
    __syncthreads();
    edges6(x);
    __syncthreads();

    auto& record = static_cast<Record<TERMS, false>*>(records)[row * chunks + chunk];
    int const lane = thread % kLanes, g = lane / 4, t = lane % 4;
    for (int tile = thread / kLanes; tile < Tile::count; tile += kChunkThreads / kLanes) {
        float values[4];
        if (tile < Tile::values)
            across(x.r[tile / 4 * 8 + g], tile % 4 * 16, t, values);
        else if (tile < Tile::columns)
            across(x.rk[(tile - Tile::values) * 8 + g], 0, t, values);
        else
            down(x.k, (tile - Tile::columns) * 8 + g, t, values);
        store_tile(record, tile, lane, values);
    }
    if (thread < kHead) record.end[thread] = x.end[thread];
}

}  // namespace vrwkv
