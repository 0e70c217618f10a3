// WKV-7, one token after another. Per head, with a state S[key][value] in float32:
//   removed[v] = sum_k a[k] S[k][v];  S[k][v] = exp(w[k]) S[k][v] + b[k] removed[v] + k[k] v[v];
//   y[v] = sum_k r[k] S[k][v].
// `state_out` may be `state_in`: every lane reads its part before it writes it.
#pragma once

#include "../common/recurrent.cuh"

namespace vrwkv {

template <class T, class W>
struct Wkv7 {
    T const *r, *k, *v, *a, *b;  // [batch, length, heads * 64]
    W const* w;                  // as r; the log of the decay
    float const* state_in;       // [batch, heads, 64 keys, 64 values]
    T* y;
    float* state_out;
    int length, heads;
};

// What a lane reads of one token.
template <class T, class W>
struct Token7 {
    Four<T> r, k, v, a, b;
    Four<W> w;
    __device__ __forceinline__ void read(Wkv7<T, W> const& x, size_t token, int keys, int values) {
        r = load4(x.r + token + keys);
        w = load4(x.w + token + keys);
        k = load4(x.k + token + keys);
        v = load4(x.v + token + values);
        a = load4(x.a + token + keys);
        b = load4(x.b + token + keys);
    }
};

template <class T, class W>
__global__ void __launch_bounds__(kRecurrentWarps* kLanes) wkv7_recurrent(Wkv7<T, W> x) {
    Place const at = place(x.length, x.heads);
    float s[4][4];  // [key][value]
    read_state(s, x.state_in, at);
    size_t token = at.series;
    Token7<T, W> now;
    now.read(x, token, at.keys, at.values);
    for (int t = 0; t < x.length; t++) {
        Token7<T, W> next = now;
        if (t + 1 < x.length) next.read(x, token + at.width, at.keys, at.values);  // in flight meanwhile
        float removed[4] = {}, y[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) removed[j] += to_float(now.a.at[i]) * s[i][j];
        sum_keys(removed);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float const decay = expf(to_float(now.w.at[i])), b = to_float(now.b.at[i]);
            float const k = to_float(now.k.at[i]), r = to_float(now.r.at[i]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = s[i][j] * decay + (b * removed[j] + k * to_float(now.v.at[j]));
                y[j] += r * s[i][j];
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
