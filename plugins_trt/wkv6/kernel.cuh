// WKV-6, one token after another. Per head, with a state S[key][value] in float32:
//   y[v] = sum_k r[k] (S[k][v] + u[k] k[k] v[v]);  S[k][v] = exp(w[k]) S[k][v] + k[k] v[v].
//
// Laid out as WKV-7's kernel: a warp owns eight values and all 64 keys. `state_out` may be `state_in`.
#pragma once

#include "../common/recurrent.cuh"

namespace vrwkv {

template <class T, class W>
struct Wkv6 {
    T const *r, *k, *v;  // [batch, length, heads * 64]
    W const* w;          // as r; the log of the decay, of any size
    W const* u;          // [heads, 64], the bonus of the current token
    float const* state_in;  // [batch, heads, 64 keys, 64 values]
    T* y;
    float* state_out;
    int length, heads;
};

template <class T, class W>
struct Token6 {
    Four<T> r, k, v;
    Four<W> w;
    __device__ __forceinline__ void read(Wkv6<T, W> const& x, size_t token, int keys, int values) {
        r = load4(x.r + token + keys);
        w = load4(x.w + token + keys);
        k = load4(x.k + token + keys);
        v = load4(x.v + token + values);
    }
};

template <class T, class W>
__global__ void __launch_bounds__(kRecurrentWarps* kLanes) wkv6_recurrent(Wkv6<T, W> x) {
    Place const at = place(x.length, x.heads);
    float s[4][4];  // [key][value]
    read_state(s, x.state_in, at);
    Four<W> const u = load4(x.u + at.head * kHead + at.keys);
    size_t token = at.series;
    Token6<T, W> now;
    now.read(x, token, at.keys, at.values);
    for (int t = 0; t < x.length; t++) {
        Token6<T, W> next = now;
        if (t + 1 < x.length) next.read(x, token + at.width, at.keys, at.values);  // in flight meanwhile
        float y[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float const decay = expf(to_float(now.w.at[i])), k = to_float(now.k.at[i]);
            float const r = to_float(now.r.at[i]), bonus = to_float(u.at[i]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float const added = k * to_float(now.v.at[j]);
                y[j] += r * (s[i][j] + bonus * added);
                s[i][j] = s[i][j] * decay + added;
            }
        }
        sum_keys(y);
        if (at.keys == 0) store4(x.y + token + at.values, y);
        token += at.width;
        now = next;
    }
    write_state(s, x.state_out, at);
}

}  // namespace vrwkv
