// What RWKV-6 does between its matrix products, forward and backward, for training on CPUs; see kernels.py.
//
// wkv6, the recurrence: one sequence and one head at a time, with the state [key, value] in the first-level cache. No state is stored for
// the backward pass: gradients of r need states from the front, those of k and v their gradients from the back, and
// that of the decay follows from P_t = sum_v S_t G_t, since P_t = dw_t + k_t dk_t and P_{t-1} = dw_t + r_t dr_t.
// Layout: r, k, v, y bf16 [B, T, C], w (log decay) fp32 [B, T, C], u fp32 [C], states fp32 [B, H, key, value].
// lerp, the token shift: out_s = h + (previous h - h) (fixed_s + moved_s) for every slot s.
// finish, what follows the recurrence: group norm by head, then times silu(gate).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int N = 64;

constexpr int V = 4;  // vectors per row
typedef float Vector __attribute__((vector_size(64)));

struct Row {
    Vector at[V];
};

inline Row row_of(const float* from) {
    Row row;
    std::memcpy(&row, from, sizeof row);
    return row;
}

inline float total(Vector x) {
    float sum = 0;
    for (int i = 0; i < 16; ++i) sum += x[i];
    return sum;
}

inline float up(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t down(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct alignas(64) Step {
    float r[N], k[N], v[N], decay[N], bonus;
};

inline void load(const uint16_t* r, const uint16_t* k, const uint16_t* v, const float* w, const float* u, int64_t at,
                 Step& s) {
    s.bonus = 0;
    for (int i = 0; i < N; ++i) {
        s.r[i] = up(r[at + i]);
        s.k[i] = up(k[at + i]);
        s.v[i] = up(v[at + i]);
        s.decay[i] = std::exp(w[at + i]);
        s.bonus += s.r[i] * s.k[i] * u[i];
    }
}

}  // namespace

extern "C" {

void wkv6_forward(const uint16_t* r, const uint16_t* k, const uint16_t* v, const float* w, const float* u, int64_t batch,
                  int64_t length, int64_t heads, uint16_t* y, float* last) {
    for (int64_t job = 0; job < batch * heads; ++job) {
        const int64_t b = job / heads, h = job % heads;
        Row state[N] = {};
        Step s;
        for (int64_t t = 0; t < length; ++t) {
            const int64_t at = ((b * length + t) * heads + h) * N;
            load(r, k, v, w, u + h * N, at, s);
            const Row value = row_of(s.v);
            Row out;
            for (int j = 0; j < V; ++j) out.at[j] = s.bonus * value.at[j];
            for (int i = 0; i < N; ++i) {
                Row& row = state[i];
                const float read = s.r[i], decay = s.decay[i], key = s.k[i];
                for (int j = 0; j < V; ++j) {
                    out.at[j] += read * row.at[j];
                    row.at[j] = decay * row.at[j] + key * value.at[j];
                }
            }
            for (int j = 0; j < N; ++j) y[at + j] = down(out.at[j / 16][j % 16]);
        }
        std::memcpy(last + job * N * N, state, sizeof state);
    }
}

// d_last may be null; d_u fp32 [C] is added to.
void wkv6_backward(const uint16_t* r, const uint16_t* k, const uint16_t* v, const float* w, const float* u,
                   const uint16_t* d_y, const float* d_last, int64_t batch, int64_t length, int64_t heads, uint16_t* d_r,
                   uint16_t* d_k, uint16_t* d_v, float* d_w, float* d_u) {
    std::vector<Step> steps(length);
    std::vector<float> kept(2 * length * N);  // per position: the output's gradient, and r's without the bonus
    for (int64_t job = 0; job < batch * heads; ++job) {
        const int64_t b = job / heads, h = job % heads;
        const float* bonus = u + h * N;
        float* sum = d_u + h * N;
        Row state[N] = {}, g[N] = {};
        float p[N] = {0};
        for (int64_t t = 0; t < length; ++t) {
            const int64_t at = ((b * length + t) * heads + h) * N;
            Step& s = steps[t];
            load(r, k, v, w, bonus, at, s);
            float *dy = &kept[2 * t * N], *dr = dy + N;
            for (int j = 0; j < N; ++j) dy[j] = up(d_y[at + j]);
            const Row value = row_of(s.v), grad = row_of(dy);
            for (int i = 0; i < N; ++i) {
                Row& row = state[i];
                const float decay = s.decay[i], key = s.k[i];
                Vector seen = {};
                for (int j = 0; j < V; ++j) {
                    seen += row.at[j] * grad.at[j];
                    row.at[j] = decay * row.at[j] + key * value.at[j];
                }
                dr[i] = total(seen);
            }
        }
        if (d_last) {
            std::memcpy(g, d_last + job * N * N, sizeof g);
            for (int i = 0; i < N; ++i)
                for (int j = 0; j < V; ++j) p[i] += total(state[i].at[j] * g[i].at[j]);
        }
        for (int64_t t = length - 1; t >= 0; --t) {
            const int64_t at = ((b * length + t) * heads + h) * N;
            const Step& s = steps[t];
            const float *dy = &kept[2 * t * N], *dr = dy + N;
            const Row value = row_of(s.v), grad = row_of(dy);
            float dk[N], gained = 0;
            Row dv;
            for (int j = 0; j < V; ++j) {
                gained += total(grad.at[j] * value.at[j]);
                dv.at[j] = s.bonus * grad.at[j];
            }
            for (int i = 0; i < N; ++i) {
                Row& row = g[i];
                const float decay = s.decay[i], key = s.k[i], read = s.r[i];
                Vector seen = {};
                for (int j = 0; j < V; ++j) {
                    seen += row.at[j] * value.at[j];
                    dv.at[j] += key * row.at[j];
                    row.at[j] = decay * row.at[j] + read * grad.at[j];
                }
                dk[i] = total(seen);
            }
            for (int i = 0; i < N; ++i) {
                const float dw = p[i] - s.k[i] * dk[i];
                p[i] = dw + s.r[i] * dr[i];
                d_w[at + i] = dw;
                d_r[at + i] = down(dr[i] + gained * bonus[i] * s.k[i]);
                d_k[at + i] = down(dk[i] + gained * bonus[i] * s.r[i]);
                d_v[at + i] = down(dv.at[i / 16][i % 16]);
                sum[i] += gained * s.r[i] * s.k[i];
            }
        }
    }
}

// h bf16 [B, T, C]; fixed fp32 [S, C]; moved bf16 [S, B, T, C] or null; out bf16 [S, B, T, C].
void lerp_forward(const uint16_t* h, const float* fixed, const uint16_t* moved, int64_t batch, int64_t length,
                  int64_t width, int64_t slots, uint16_t* out) {
    const int64_t rows = batch * length;
    std::vector<float> now(width), gap(width);
    for (int64_t row = 0; row < rows; ++row) {
        const uint16_t *at = h + row * width, *before = row % length ? at - width : nullptr;
        for (int64_t c = 0; c < width; ++c) now[c] = up(at[c]);
        for (int64_t c = 0; c < width; ++c) gap[c] = (before ? up(before[c]) : 0) - now[c];
        for (int64_t s = 0; s < slots; ++s) {
            const float* by = fixed + s * width;
            const int64_t place = (s * rows + row) * width;
            if (moved)
                for (int64_t c = 0; c < width; ++c)
                    out[place + c] = down(now[c] + gap[c] * (by[c] + up(moved[place + c])));
            else
                for (int64_t c = 0; c < width; ++c) out[place + c] = down(now[c] + gap[c] * by[c]);
        }
    }
}

// d_fixed is added to.
void lerp_backward(const uint16_t* h, const float* fixed, const uint16_t* moved, const uint16_t* d_out, int64_t batch,
                   int64_t length, int64_t width, int64_t slots, uint16_t* d_h, float* d_fixed, uint16_t* d_moved) {
    const int64_t rows = batch * length;
    std::vector<float> gap(width), sum(width), back(width), carry(width);
    for (int64_t row = rows - 1; row >= 0; --row) {
        const bool first = row % length == 0, last = row % length == length - 1;
        const uint16_t *at = h + row * width, *before = first ? nullptr : at - width;
        for (int64_t c = 0; c < width; ++c) {
            gap[c] = (before ? up(before[c]) : 0) - up(at[c]);
            sum[c] = last ? 0 : carry[c];
            back[c] = 0;
        }
        for (int64_t s = 0; s < slots; ++s) {
            const float* by = fixed + s * width;
            float* to = d_fixed + s * width;
            const int64_t place = (s * rows + row) * width;
            for (int64_t c = 0; c < width; ++c) {
                const float grad = up(d_out[place + c]), moving = grad * gap[c];
                sum[c] += grad;
                to[c] += moving;
                back[c] += grad * (by[c] + (moved ? up(moved[place + c]) : 0));
                if (d_moved) d_moved[place + c] = down(moving);
            }
        }
        for (int64_t c = 0; c < width; ++c) {
            d_h[row * width + c] = down(sum[c] - back[c]);
            carry[c] = back[c];
        }
    }
}

// y, gate, out bf16 [rows, C]; weight, bias fp32 [C].
void finish_forward(const uint16_t* y, const uint16_t* gate, const float* weight, const float* bias, int64_t rows,
                    int64_t heads, float eps, uint16_t* out) {
    for (int64_t job = 0; job < rows * heads; ++job) {
        const int64_t at = job * N, c = job % heads * N;
        float x[N], mean = 0, square = 0;
        for (int i = 0; i < N; ++i) mean += x[i] = up(y[at + i]);
        mean /= N;
        for (int i = 0; i < N; ++i) square += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / std::sqrt(square / N + eps);
        for (int i = 0; i < N; ++i) {
            const float z = up(gate[at + i]), open = z / (1 + std::exp(-z));
            out[at + i] = down(((x[i] - mean) * scale * weight[c + i] + bias[c + i]) * open);
        }
    }
}

// d_weight and d_bias are added to.
void finish_backward(const uint16_t* y, const uint16_t* gate, const float* weight, const float* bias,
                     const uint16_t* d_out, int64_t rows, int64_t heads, float eps, uint16_t* d_y, uint16_t* d_gate,
                     float* d_weight, float* d_bias) {
    for (int64_t job = 0; job < rows * heads; ++job) {
        const int64_t at = job * N, c = job % heads * N;
        float x[N], g[N], mean = 0, square = 0, mean1 = 0, mean2 = 0;
        for (int i = 0; i < N; ++i) mean += x[i] = up(y[at + i]);
        mean /= N;
        for (int i = 0; i < N; ++i) square += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / std::sqrt(square / N + eps);
        for (int i = 0; i < N; ++i) {
            const float z = up(gate[at + i]), s = 1 / (1 + std::exp(-z)), grad = up(d_out[at + i]);
            x[i] = (x[i] - mean) * scale;
            const float passed = grad * z * s;
            d_gate[at + i] = down(grad * (x[i] * weight[c + i] + bias[c + i]) * s * (1 + z * (1 - s)));
            d_weight[c + i] += passed * x[i];
            d_bias[c + i] += passed;
            g[i] = passed * weight[c + i];
            mean1 += g[i];
            mean2 += g[i] * x[i];
        }
        for (int i = 0; i < N; ++i) d_y[at + i] = down((g[i] - mean1 / N - x[i] * mean2 / N) * scale);
    }
}

}  // extern "C"
