// WKV-7, the chunk's own part of the work: see common/chunk.cuh for what becomes of it.
//
// With D[t] the product of decays up to token t, inside a chunk u[t] = a[t] S[t-1] obeys
//   u[t] = (a[t] D[t-1]) S + sum_{s<t} ab[t][s] u[s] + ak[t][s] v[s],   y[t] = (r[t] D[t]) S + sum_{s<=t} rb u + rk v,
// where ab[t][s] = a[t] . (b[s] decayed from s to t-1), and so on. Substitution solves for u = X S + Xv V.
#pragma once

#include "../common/chunk.cuh"
#include "kernel.cuh"

namespace vrwkv {

struct Prepare7 {
    float r[kChunk][kPitch], a[kChunk][kPitch], k[kChunk][kPitch], b[kChunk][kPitch], decay[kChunk][kPitch];
    float ab[kChunk][kChunk], ak[kChunk][kChunk], rb[kChunk][kChunk], rk[kChunk][kChunk];
    float end[kHead];
};

// The four Gram matrices. A group of eight lanes takes one earlier token s, whose keys it decays as t moves on.
__device__ __forceinline__ void pairs7(Prepare7& x) {
    int const thread = static_cast<int>(threadIdx.x), s = thread / 8, channel = thread % 8 * 4;
    float b[8], k[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        b[i] = x.b[s][channel + i % 4 + i / 4 * 32];
        k[i] = x.k[s][channel + i % 4 + i / 4 * 32];
    }
    for (int t = 0; t < kChunk; t++) {
        float sums[4] = {};  // ab ak rb rk
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int const c = channel + i % 4 + i / 4 * 32;
            float const a = x.a[t][c], r = x.r[t][c], decay = t > s ? x.decay[t][c] : 1.f;
            sums[0] += a * b[i];
            sums[1] += a * k[i];
            b[i] *= decay;
            k[i] *= decay;
            sums[2] += r * b[i];
            sums[3] += r * k[i];
        }
#pragma unroll
        for (int mask = 4; mask >= 1; mask /= 2)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] += __shfl_xor_sync(kAll, sums[i], mask);
        if (thread % 8 == 0) {
            x.ab[t][s] = t > s ? sums[0] : 0.f;
            x.ak[t][s] = t > s ? sums[1] : 0.f;
            x.rb[t][s] = t >= s ? sums[2] : 0.f;
            x.rk[t][s] = t >= s ? sums[3] : 0.f;
        }
    }
}

// Reads decay from the chunk's start, writes decay to its end. One channel to a thread.
__device__ __forceinline__ void edges7(Prepare7& x) {
    int const c = static_cast<int>(threadIdx.x) % kHead;
    float kept = 1.f;
    if (static_cast<int>(threadIdx.x) < kHead) {
        for (int t = 0; t < kChunk; t++) {
            x.a[t][c] *= kept;
            kept *= x.decay[t][c];
            x.r[t][c] *= kept;
        }
        x.end[c] = kept;
    } else {
        for (int t = kChunk - 1; t >= 0; t--) {
            x.b[t][c] *= kept;
            x.k[t][c] *= kept;
            kept *= x.decay[t][c];
        }
    }
}

// Solves u[t] = given[t] + sum ab[t][s] u[s] for one column, in place; adds what y reads of it to `read`.
__device__ __forceinline__ void solve7(Prepare7 const& x, float* given, float* read, int pitch) {
    float u[kChunk];
#pragma unroll
    for (int t = 0; t < kChunk; t++) {
        u[t] = given[t * pitch];
#pragma unroll
        for (int s = 0; s < t; s++) u[t] += x.ab[t][s] * u[s];
        given[t * pitch] = u[t];
        float y = read[t * pitch];
#pragma unroll
        for (int s = 0; s <= t; s++) y += x.rb[t][s] * u[s];
        read[t * pitch] = y;
    }
}

template <class T, class W>
__global__ void __launch_bounds__(kChunkThreads) wkv7_prepare(Wkv7<T, W> in, void* records, int first, int chunks) {
    constexpr int TERMS = kTerms<T>;
    using Tile = Tiles<true>;
    Prepare7& x = shared_as<Prepare7>();
    int const thread = static_cast<int>(threadIdx.x), chunk = static_cast<int>(blockIdx.x);
    int const start = first + chunk * kChunk, count = in.length - start;
    size_t const width = static_cast<size_t>(in.heads) * kHead;
    size_t const at = (static_cast<size_t>(blockIdx.z) * in.length + start) * width + blockIdx.y * kHead;
    size_t const row = static_cast<size_t>(blockIdx.z) * in.heads + blockIdx.y;

    read_chunk(x.r, in.r + at, width, count);
    read_chunk(x.a, in.a + at, width, count);
    read_chunk(x.k, in.k + at, width, count);
    read_chunk(x.b, in.b + at, width, count);
    read_chunk(x.decay, in.w + at, width, count);
    __syncthreads();
    exponentials(x.decay);
    __syncthreads();
    pairs7(x);
    __syncthreads();
    edges7(x);
    __syncthreads();
    if (thread < kHead)
        solve7(x, &x.a[0][thread], &x.r[0][thread], kPitch);
    else if (thread < kHead + kChunk)
        solve7(x, &x.ak[0][thread - kHead], &x.rk[0][thread - kHead], kChunk);
    __syncthreads();

    auto& record = static_cast<Record<TERMS, true>*>(records)[row * chunks + chunk];
    int const lane = thread % kLanes, g = lane / 4, t = lane % 4;
    for (int tile = thread / kLanes; tile < Tile::count; tile += kChunkThreads / kLanes) {
        float values[4];
        if (tile < Tile::values) {
            int const n = tile / 4;
            across((n < 2 ? x.a : x.r)[n % 2 * 8 + g], tile % 4 * 16, t, values);
        } else if (tile < Tile::columns) {
            int const n = tile - Tile::values;
            across((n < 2 ? x.ak : x.rk)[n % 2 * 8 + g], 0, t, values);
        } else {
            int const n = tile - Tile::columns;
            down(n < 8 ? x.b : x.k, n % 8 * 8 + g, t, values);
        }
        store_tile(record, tile, lane, values);
    }
    if (thread < kHead) record.end[thread] = x.end[thread];
}

}  // namespace vrwkv
