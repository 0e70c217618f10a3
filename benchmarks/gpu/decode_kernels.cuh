// The small operations of an RWKV-7 step between its products. The residual stream and all state are float32.
#pragma once

#include "gemv.cuh"

namespace vrwkv {

constexpr int kMixThreads = 256;

// The sum of x over the block; every thread gets it. `room` is one float per warp.
__device__ __forceinline__ float block_sum(float x, float* room) {
    int const thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int mask = 16; mask >= 1; mask /= 2) x += __shfl_xor_sync(kAll, x, mask);
    __syncthreads();  // the room may still be read from the last call
    if (thread % kLanes == 0) room[thread / kLanes] = x;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < static_cast<int>(blockDim.x) / kLanes; i++) sum += room[i];
    return sum;
}

struct Mix {
    float const* x;            // [C], the residual stream
    float const *scale, *bias; // [C] of the norm
    float const *shift_in;     // [C], the normed input of the token before
    float* shift_out;
    half_t const* amounts;     // [count, C]
    half_t* out;               // [count, C]
    int width, count;
};

// Layer norm, then blends with the token before. Every block norms the whole vector and mixes its own 256 channels.
__global__ void __launch_bounds__(kMixThreads) norm_and_mix(Mix m) {
    float* room = shared_as<float[kMixThreads / kLanes]>();
    int const thread = static_cast<int>(threadIdx.x), c = static_cast<int>(blockIdx.x) * kMixThreads + thread;
    float sum = 0.f, squares = 0.f;
    for (int i = thread; i < m.width; i += kMixThreads) sum += m.x[i];
    float const mean = block_sum(sum, room) / m.width;
    for (int i = thread; i < m.width; i += kMixThreads) squares += (m.x[i] - mean) * (m.x[i] - mean);
    float const spread = 1.f / sqrtf(block_sum(squares, room) / m.width + 1e-5f);
    if (c >= m.width) return;
    float const normed = (m.x[c] - mean) * spread * m.scale[c] + m.bias[c];
    if (m.count == 0) {
        m.out[c] = from_float<half_t>(normed);
        return;
    }
    float const before = m.shift_in[c] - normed;
    for (int n = 0; n < m.count; n++)
        m.out[n * m.width + c] = from_float<half_t>(normed + before * to_float(m.amounts[n * m.width + c]));
    m.shift_out[c] = normed;
}

struct Gates {
    half_t const *k, *v, *w, *a, *gate_v;        // [C]: products, and second LoRA products
    float const *w0, *a0, *v0, *k_k, *k_a;       // [C]
    half_t* first;                               // [C], the first layer's values
    half_t *out_k, *out_v, *kappa, *rate;        // [C], what WKV-7 takes: k, v, a, b
    float* decay;
    bool define;                                 // this is the first layer
};

// One head of 64 channels to a block.
__global__ void __launch_bounds__(kHead) prepare_heads(Gates g) {
    float* room = shared_as<float[2]>();
    int const c = static_cast<int>(blockIdx.x) * kHead + static_cast<int>(threadIdx.x);
    float const k = to_float(g.k[c]), rate = sigmoid(g.a0[c] + to_float(g.a[c]));
    float v = to_float(g.v[c]);
    if (g.define) g.first[c] = from_float<half_t>(v);
    else v += (to_float(g.first[c]) - v) * sigmoid(g.v0[c] + to_float(g.gate_v[c]));
    float kappa = k * g.k_k[c];
    kappa /= fmaxf(sqrtf(block_sum(kappa * kappa, room)), 1e-12f);
    g.decay[c] = -0.6065306597f * sigmoid(g.w0[c] + to_float(g.w[c]));
    g.out_k[c] = from_float<half_t>(k * (1.f + (rate - 1.f) * g.k_a[c]));
    g.out_v[c] = from_float<half_t>(v);
    g.kappa[c] = from_float<half_t>(-kappa);
    g.rate[c] = from_float<half_t>(kappa * rate);
}

struct Heads {
    half_t const *y, *r, *k, *v, *gate;   // [C]
    float const *r_k, *scale, *bias;      // [C]
    half_t* out;
};

// Group norm of a head, the bonus of the current token, the gate.
__global__ void __launch_bounds__(kHead) finish_heads(Heads h) {
    float* room = shared_as<float[2]>();
    int const c = static_cast<int>(blockIdx.x) * kHead + static_cast<int>(threadIdx.x);
    float const y = to_float(h.y[c]);
    float const mean = block_sum(y, room) / kHead;
    float const spread = 1.f / sqrtf(block_sum((y - mean) * (y - mean), room) / kHead + 64e-5f);
    float const bonus = block_sum(to_float(h.r[c]) * to_float(h.k[c]) * h.r_k[c], room) * to_float(h.v[c]);
    float const normed = (y - mean) * spread * h.scale[c] + h.bias[c];
    h.out[c] = from_float<half_t>((normed + bonus) * to_float(h.gate[c]));
}

// The next token's row; tokens follow each other by a fixed rule, so that a captured step needs nothing from the host.
__global__ void embed(half_t const* table, int* token, float* x, int width, int vocabulary) {
    int const current = *token;
    for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x))
        x[i] = to_float(table[static_cast<size_t>(current) * width + i]);
    __syncthreads();
    if (threadIdx.x == 0) *token = static_cast<int>((static_cast<int64_t>(current) * 7919 + 12345) % vocabulary);
}

}  // namespace vrwkv
