// VisualRWKV-HM's read-out of the image state S[key][value], blended into the recurrence's output:
//   out[v] = max(0, 1 - gate[v]) y[v] + gate[v] sum_k q[k] S[k][v].
// The state is never written, so tokens do not wait for each other: slices of 64 go to blocks of their own.
#pragma once

#include "../common/recurrent.cuh"

namespace vrwkv {

constexpr int kSliceTokens = 64;
constexpr int kValueBlocks = kHead / kColumns / kRecurrentWarps;

template <class T>
struct ReadState {
    T const *q, *gate, *y;  // [batch, length, heads * 64]
    float const* state;     // [batch, heads, 64 keys, 64 values]
    T* out;
    int length, heads;
};

template <class T>
__global__ void __launch_bounds__(kRecurrentWarps* kLanes) read_state_kernel(ReadState<T> x) {
    Place at = place(x.length, x.heads);
    int const slice = static_cast<int>(blockIdx.x) / kValueBlocks;
    at.values -= slice * kHead;  // `place` counts value blocks on and on
    float s[4][4];               // [key][value]
    read_state(s, x.state, at);
    int const first = slice * kSliceTokens, end = first + kSliceTokens < x.length ? first + kSliceTokens : x.length;
    for (int t = first; t < end; t++) {
        size_t const token = at.series + t * at.width;
        Four<T> const q = load4(x.q + token + at.keys);
        float found[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) found[j] += to_float(q.at[i]) * s[i][j];
        sum_keys(found);
        if (at.keys == 0) {
            Four<T> const gate = load4(x.gate + token + at.values), y = load4(x.y + token + at.values);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float const amount = to_float(gate.at[j]);
                found[j] = fmaxf(1.f - amount, 0.f) * to_float(y.at[j]) + amount * found[j];
            }
            store4(x.out + token + at.values, found);
        }
    }
}

}  // namespace vrwkv
