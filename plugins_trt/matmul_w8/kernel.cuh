// y[token][output] = sum_input x[token][input] * code[output][input] * scale[output][group of inputs].
//
// Codes are multiplied as they are, on tensor cores, and sums of a group are scaled in float32 afterwards: no float copy
// of a weight is ever written. Sixteen outputs are the rows of a tile, up to eight tokens its columns, so that one token
// costs what eight do. Both kernels take any weights with the interface of Codes8 (common/weights.cuh).
#pragma once

#include "../common/weights.cuh"

namespace vrwkv {

constexpr int kRows = 16;         // outputs of a tile
constexpr int kTokens = 8;        // tokens of a tile
constexpr int kSliceBlocks = 4;   // blocks whose loads are in flight together
constexpr int kMostWarps = 16;

template <class T, class C>
struct MatMul {
    T const* x;                       // [tokens, inputs]
    typename C::Stored const* codes;  // [outputs, inputs]
    void const* scales;               // [outputs, inputs / group], or [outputs] where group is 0; of T, or float32
    T* y;                             // [tokens, outputs]
    int tokens, inputs, outputs, group;
    bool wide;  // scales are float32
    __device__ __forceinline__ float scale(size_t index) const {
        return wide ? static_cast<float const*>(scales)[index] : to_float(static_cast<T const*>(scales)[index]);
    }
};

// Scales of one block for the two rows of a lane: one pair, or two where a scale covers 32 inputs.
template <bool NARROW>
struct Scales {
    static constexpr int PARTS = NARROW ? 2 : 1;
    float at[PARTS][2];
    template <class M>
    __device__ __forceinline__ void load(M const& m, size_t const (&rows)[2], int first) {
        int const groups = m.inputs / m.group;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int const index = (first + 32 * p) / m.group;  // past the end only where inputs and codes are zero
                at[p][i] = m.scale(rows[i] * groups + (index < groups ? index : groups - 1));
            }
    }
};

// The two rows of a tile that a lane loads; those past the last output are read, and not written.
__device__ __forceinline__ void lane_rows(size_t (&rows)[2], int first, int outputs) {
    int const g = static_cast<int>(threadIdx.x) % kLanes / 4;
#pragma unroll
    for (int i = 0; i < 2; i++) rows[i] = static_cast<size_t>(first + g + 8 * i < outputs ? first + g + 8 * i : outputs - 1);
}

template <class E, class C>
__device__ __forceinline__ void unpack_block(uint32_t (&a)[kSteps][4], C const (&codes)[2]) {
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        uint32_t top[2], low[2];
        codes[0].template unpack<E>(step, top);
        codes[1].template unpack<E>(step, low);
        a[step][0] = top[0];
        a[step][1] = low[0];
        a[step][2] = top[1];
        a[step][3] = low[1];
    }
}

// Adds one block: 16 outputs by 8 tokens. GROUPED: sums of codes are scaled per group, else once at the end.
template <bool GROUPED, class T, bool NARROW>
__device__ __forceinline__ void add_block(float (&sums)[4], uint32_t const (&a)[kSteps][4],
                                          Activations<T> const (&x)[kSteps], Scales<NARROW> const& scales) {
    float part[4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        if constexpr (!GROUPED) {
            x[step].multiply(sums, a[step]);
        } else {
            x[step].multiply(part, a[step]);
            if (step == kSteps - 1 || (NARROW && step == 1)) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[i] += part[i] * scales.at[NARROW ? step / 2 : 0][i / 2];
                    part[i] = 0.f;
                }
            }
        }
    }
}

// Sums of a warp over its share of the inputs, for one tile of 16 outputs and up to 8 tokens. `x(i)` gives inputs i to
// i + 3 of this lane's token.
template <bool GROUPED, class T, class C, class X>
__device__ __forceinline__ void sum_inputs(float (&sums)[4], MatMul<T, C> const& m, size_t const (&rows)[2], int warp,
                                           int warps, X x) {
    int const t = static_cast<int>(threadIdx.x) % 4;
    for (int first = warp * kSliceBlocks * kBlock; first < m.inputs; first += warps * kSliceBlocks * kBlock) {
        C codes[kSliceBlocks][2];
        Scales<C::NARROW> scales[kSliceBlocks];
#pragma unroll
        for (int b = 0; b < kSliceBlocks; b++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                codes[b][i].load(C::at(m.codes, rows[i], m.inputs, first + b * kBlock), t, m.inputs - first - b * kBlock);
        if constexpr (GROUPED)
#pragma unroll
            for (int b = 0; b < kSliceBlocks; b++) scales[b].load(m, rows, first + b * kBlock);
#pragma unroll
        for (int b = 0; b < kSliceBlocks; b++) {
            Activations<T> act[kSteps];
#pragma unroll
            for (int step = 0; step < kSteps; step++) act[step].set(x(first + b * kBlock + step_offset<C::NARROW>(t, step)));
            uint32_t a[kSteps][4];
            unpack_block<typename Activations<T>::Element>(a, codes[b]);
            add_block<GROUPED>(sums, a, act, scales[b]);
        }
    }
}

// What the warps of a block found, added up: thread i gets output i / 16 + i % 4 / 2 * 8 of token i / 4 % 4 * 2 + i % 2.
struct WarpSums {
    float at[kMostWarps][kLanes * 4];
    __device__ __forceinline__ float total(float const (&sums)[4], int warps) {
        int const thread = static_cast<int>(threadIdx.x);
#pragma unroll
        for (int i = 0; i < 4; i++) at[thread / kLanes][thread % kLanes * 4 + i] = sums[i];
        __syncthreads();
        float sum = 0.f;
        if (thread < kLanes * 4)
            for (int w = 0; w < warps; w++) sum += at[w][thread];
        return sum;
    }
    static __device__ __forceinline__ int output() {
        int const thread = static_cast<int>(threadIdx.x);
        return thread / 16 + thread % 4 / 2 * 8;
    }
    static __device__ __forceinline__ int token() {
        int const thread = static_cast<int>(threadIdx.x);
        return thread / 4 % 4 * 2 + thread % 2;
    }
};

// Up to eight tokens. A block owns 16 outputs; its warps share the inputs among them (split-K) and add up at the end.
template <class T, class C, bool GROUPED>
__global__ void __launch_bounds__(kMostWarps* kLanes) matmul_few(MatMul<T, C> m) {
    int const thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kLanes;
    int const first_row = static_cast<int>(blockIdx.x) * kRows, first_token = static_cast<int>(blockIdx.y) * kTokens;
    size_t rows[2];
    lane_rows(rows, first_row, m.outputs);
    int const mine = first_token + thread % kLanes / 4;
    bool const real = mine < m.tokens;
    T const* const x = m.x + static_cast<size_t>(real ? mine : 0) * m.inputs;
    float sums[4] = {};
    sum_inputs<GROUPED>(sums, m, rows, thread / kLanes, warps, [&](int i) {
        Four<T> four{};
        if (real && i < m.inputs) four = load4(x + i);
        return four;
    });
    float sum = shared_as<WarpSums>().total(sums, warps);
    int const row = first_row + WarpSums::output(), token = first_token + WarpSums::token();
    if (thread < kLanes * 4 && row < m.outputs && token < m.tokens) {
        if constexpr (!GROUPED) sum *= m.scale(static_cast<size_t>(row));
        m.y[static_cast<size_t>(token) * m.outputs + row] = from_float<T>(sum);
    }
}

}  // namespace vrwkv
