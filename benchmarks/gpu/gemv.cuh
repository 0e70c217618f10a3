// Several matrices times one vector each, in one launch: what the plugin's kernel does for one, with other weights too.
#pragma once

#include "../../plugins_trt/matmul_w8/kernel.cuh"

namespace vrwkv {

// float16 weights: a row of K per output.
struct Halves {
    static constexpr bool NARROW = false;
    using Stored = half_t;
    uint4 raw[2];
    __device__ __forceinline__ void load(half_t const* row, int t, int left) {
        raw[0] = raw[1] = make_uint4(0, 0, 0, 0);
        if (t * 16 >= left) return;
        raw[0] = *reinterpret_cast<uint4 const*>(row + t * 16);
        raw[1] = *reinterpret_cast<uint4 const*>(row + t * 16 + 8);
    }
    template <class E>
    __device__ __forceinline__ void unpack(int step, uint32_t (&pairs)[2]) const {
        static_assert(IsHalf<E>::value);
        uint4 const& four = raw[step / 2];
        pairs[0] = step % 2 == 0 ? four.x : four.z;
        pairs[1] = step % 2 == 0 ? four.y : four.w;
    }
    static __device__ __forceinline__ half_t const* at(half_t const* w, size_t row, int inputs, int first) {
        return w + row * static_cast<size_t>(inputs) + first;
    }
};

// 4-bit codes around 8, two to a byte, the first in the low half: K / 2 bytes per output.
struct Codes4 {
    static constexpr bool NARROW = false;
    using Stored = uint8_t;
    uint2 raw;
    __device__ __forceinline__ void load(uint8_t const* row, int t, int left) {
        raw = make_uint2(0x88888888u, 0x88888888u);
        if (t * 16 < left) raw = *reinterpret_cast<uint2 const*>(row + t * 8);
    }
    template <class E>
    __device__ __forceinline__ void unpack(int step, uint32_t (&pairs)[2]) const {
        static_assert(IsHalf<E>::value);
        uint32_t const four = (step < 2 ? raw.x : raw.y) >> step % 2 * 16;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t const two = four >> i * 8;
            // 1024 + code, less 1024 + 8.
            pairs[i] = subtract<E>((two & 0xfu) | (two << 12 & 0xf0000u) | 0x64006400u, 0x64086408u);
        }
    }
    static __device__ __forceinline__ uint8_t const* at(uint8_t const* w, size_t row, int inputs, int first) {
        return w + (row * static_cast<size_t>(inputs) + first) / 2;
    }
};

enum class Apply : int { nothing, tanh, sigmoid, relu_squared };

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

__device__ __forceinline__ float apply(Apply what, float x) {
    switch (what) {
        case Apply::tanh: return tanhf(x);
        case Apply::sigmoid: return sigmoid(x);
        case Apply::relu_squared: return x > 0.f ? x * x : 0.f;
        default: return x;
    }
}

struct Problem {
    half_t const* x;     // [inputs]
    void const* codes;   // [outputs, inputs]
    float const* scales; // [outputs, inputs / group], [outputs], or null
    half_t* y;           // [outputs], or null
    float* sum;          // [outputs], added to, or null
    int inputs, outputs, group;
    Apply before;        // applied to x
    int first;           // the first block of this problem
};

constexpr int kMostProblems = 8;
struct Problems {
    Problem at[kMostProblems];
    int count;
};

template <class C, bool GROUPED>
__global__ void __launch_bounds__(kMostWarps* kLanes, 1) gemv_group(Problems all) {
    int which = 0;
    while (which + 1 < all.count && static_cast<int>(blockIdx.x) >= all.at[which + 1].first) which++;
    Problem const& p = all.at[which];
    int const thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kLanes;
    int const first_row = (static_cast<int>(blockIdx.x) - p.first) * kRows;
    MatMul<half_t, C> const m{p.x, static_cast<typename C::Stored const*>(p.codes), p.scales, p.y, 1, p.inputs,
                              p.outputs, p.group, true};
    size_t rows[2];
    lane_rows(rows, first_row, p.outputs);
    bool const real = thread % kLanes < 4;  // one token: the others' columns stay zero
    float sums[4] = {};
    sum_inputs<GROUPED>(sums, m, rows, thread / kLanes, warps, [&](int i) {
        Four<half_t> four{};
        if (real && i < p.inputs) {
            four = load4(p.x + i);
            if (p.before != Apply::nothing)
#pragma unroll
                for (int j = 0; j < 4; j++) four.at[j] = from_float<half_t>(apply(p.before, to_float(four.at[j])));
        }
        return four;
    });
    float sum = shared_as<WarpSums>().total(sums, warps);
    int const row = first_row + WarpSums::output();
    if (thread >= kLanes * 4 || WarpSums::token() != 0 || row >= p.outputs) return;
    if (!GROUPED && p.scales != nullptr) sum *= p.scales[row];
    if (p.sum != nullptr) p.sum[row] += sum;
    else p.y[row] = from_float<half_t>(sum);
}

template <class C, bool GROUPED>
int run_group(Problems all, void* stream) {
    int blocks = 0, most = 0;
    for (int i = 0; i < all.count; i++) {
        all.at[i].first = blocks;
        blocks += (all.at[i].outputs + kRows - 1) / kRows;
        most = all.at[i].inputs > most ? all.at[i].inputs : most;
    }
    int const slices = (most + kSliceBlocks * kBlock - 1) / (kSliceBlocks * kBlock);
    int const warps = slices <= 4 ? 4 : slices <= 8 ? 8 : kMostWarps;
    return launch(gemv_group<C, GROUPED>, dim3(static_cast<unsigned>(blocks)), warps * kLanes, sizeof(WarpSums), stream,
                  all);
}

}  // namespace vrwkv
