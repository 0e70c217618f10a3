// The product for many tokens: a block owns 128 outputs and 64 tokens. Each weight is read and unpacked by one warp only;
// activations pass through shared memory, where all eight warps read them.
#pragma once

#include "kernel.cuh"

namespace vrwkv {

constexpr int kManyWarps = 8;
constexpr int kManyThreads = kManyWarps * kLanes;
constexpr int kTokenTiles = 8;
constexpr int kManyTokens = kTokenTiles * kTokens, kManyRows = kManyWarps * kRows;
constexpr int kPieces = kBlock / 4;       // a block's inputs in fours
constexpr int kPiecePitch = kPieces + 1;  // padded against bank conflicts

// Activations of a block on their way: in registers first, so that loads are in flight while the last block is used.
template <class T>
struct Incoming {
    static constexpr int COUNT = kManyTokens * kPieces / kManyThreads;
    Four<T> at[COUNT];
    static __device__ __forceinline__ int token(int i) { return index(i) / kPieces; }
    static __device__ __forceinline__ int piece(int i) { return index(i) % kPieces; }
    __device__ __forceinline__ void load(T const* x, int first_token, int tokens, int first, int inputs) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int const row = first_token + token(i), input = first + piece(i) * 4;
            at[i] = Four<T>{};
            if (row < tokens && input < inputs) at[i] = load4(x + static_cast<size_t>(row) * inputs + input);
        }
    }

  private:
    static __device__ __forceinline__ int index(int i) { return static_cast<int>(threadIdx.x) + i * kManyThreads; }
};

template <class T>
struct ManyShared {
    uint2 at[Activations<T>::TERMS][kManyTokens][kPiecePitch];
    __device__ __forceinline__ void store(Incoming<T> const& from) {
#pragma unroll
        for (int i = 0; i < Incoming<T>::COUNT; i++) {
            Activations<T> x;
            x.set(from.at[i]);
#pragma unroll
            for (int n = 0; n < Activations<T>::TERMS; n++)
                at[n][Incoming<T>::token(i)][Incoming<T>::piece(i)] = make_uint2(x.at[n][0], x.at[n][1]);
        }
    }
    __device__ __forceinline__ void read(Activations<T>& x, int token, int input) const {
#pragma unroll
        for (int n = 0; n < Activations<T>::TERMS; n++) {
            uint2 const two = at[n][token][input / 4];
            x.at[n][0] = two.x;
            x.at[n][1] = two.y;
        }
    }
};

template <class T, class C, bool GROUPED>
__global__ void __launch_bounds__(kManyThreads, 1) matmul_many(MatMul<T, C> m) {
    ManyShared<T>& shared = shared_as<ManyShared<T>>();
    int const thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, g = lane / 4, t = lane % 4;
    int const first_token = static_cast<int>(blockIdx.x) * kManyTokens;
    int const first_row = static_cast<int>(blockIdx.y) * kManyRows + thread / kLanes * kRows;
    size_t rows[2];
    lane_rows(rows, first_row, m.outputs);

    C codes[2];
    Incoming<T> incoming;
    auto fetch = [&](int first) {
        incoming.load(m.x, first_token, m.tokens, first, m.inputs);
#pragma unroll
        for (int i = 0; i < 2; i++) codes[i].load(C::at(m.codes, rows[i], m.inputs, first), t, m.inputs - first);
    };
    float sums[kTokenTiles][4] = {};
    fetch(0);
    for (int first = 0; first < m.inputs; first += kBlock) {
        __syncthreads();  // the last block's activations have been used
        shared.store(incoming);
        __syncthreads();
        uint32_t a[kSteps][4];
        unpack_block<typename Activations<T>::Element>(a, codes);
        Scales<C::NARROW> scales;
        if constexpr (GROUPED) scales.load(m, rows, first);
        if (first + kBlock < m.inputs) fetch(first + kBlock);
#pragma unroll
        for (int n = 0; n < kTokenTiles; n++) {
            Activations<T> x[kSteps];
#pragma unroll
            for (int step = 0; step < kSteps; step++)
                shared.read(x[step], n * kTokens + g, step_offset<C::NARROW>(t, step));
            add_block<GROUPED>(sums[n], a, x, scales);
        }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int const row = first_row + g + i / 2 * 8, token = first_token + n * kTokens + 2 * t + i % 2;
            if (row >= m.outputs || token >= m.tokens) continue;
            float const scale = GROUPED ? 1.f : m.scale(static_cast<size_t>(row));
            m.y[static_cast<size_t>(token) * m.outputs + row] = from_float<T>(sums[n][i] * scale);
        }
}

}  // namespace vrwkv
