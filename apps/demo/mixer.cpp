// RWKV-7 time mix between its matrix products, forward and backward, for training on CPUs.
//
// Everything between the input products and the output product happens here for one sequence and one head at a
// time, so that nothing but bf16 inputs and outputs travels through memory. Built and called by mixer.py.
// Layout: activations are bf16 [B, T, C] with a row stride in elements, states fp32 [B, H, value, key].

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int N = 64;
constexpr int kApart = N * N + 64;  // floats from one stored state to the next; 16 KiB would alias in the cache
constexpr float kDecay = 0.6065306597126334f;  // exp(-1/2)
constexpr float kNormEps = 64e-5f;

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

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

inline float dot(const float* a, const float* b) {
    float sum = 0;
    for (int i = 0; i < N; ++i) sum += a[i] * b[i];
    return sum;
}

struct alignas(64) State {
    float at[kApart];
};

// What one position of one head needs in both directions.
struct alignas(64) Step {
    float r[N], k[N], v[N], raw_k[N], raw_v[N], decay[N], s[N], rate[N], mix[N], first[N], kappa[N], b[N], sa[N], y[N];
    float gate[N], norm, mean, rstd, bonus;
};

}  // namespace

extern "C" {

struct Args {
    const uint16_t *r, *k, *v, *zw, *za, *zv, *gate, *first;  // zv and first are null in layer 0
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_w, *ln_b, *start;
    int64_t batch, length, heads, stride;  // stride: of r, k, v rows
};

}  // extern "C"

namespace {

void load(const Args& p, int64_t row, int64_t h, Step& s) {
    const int64_t c = h * N, wide = row * p.stride + c, flat = row * p.heads * N + c;
    float squares = 0;
    for (int i = 0; i < N; ++i) {
        s.r[i] = up(p.r[wide + i]);
        s.raw_k[i] = up(p.k[wide + i]);
        s.raw_v[i] = up(p.v[wide + i]);
        s.gate[i] = up(p.gate[flat + i]);
        s.s[i] = sigmoid(p.w0[c + i] + up(p.zw[flat + i]));
        s.decay[i] = std::exp(-kDecay * s.s[i]);
        s.rate[i] = sigmoid(p.a0[c + i] + up(p.za[flat + i]));
        s.kappa[i] = s.raw_k[i] * p.k_k[c + i];
        squares += s.kappa[i] * s.kappa[i];
        s.k[i] = s.raw_k[i] * (1 + (s.rate[i] - 1) * p.k_a[c + i]);
        s.v[i] = s.raw_v[i];
    }
    if (p.zv) {
        for (int i = 0; i < N; ++i) {
            s.mix[i] = sigmoid(p.v0[c + i] + up(p.zv[flat + i]));
            s.first[i] = up(p.first[flat + i]);
            s.v[i] += (s.first[i] - s.raw_v[i]) * s.mix[i];
        }
    }
    s.norm = std::fmax(std::sqrt(squares), 1e-12f);
    s.bonus = 0;
    for (int i = 0; i < N; ++i) {
        s.kappa[i] /= s.norm;
        s.b[i] = s.kappa[i] * s.rate[i];
        s.bonus += s.r[i] * s.k[i] * p.r_k[c + i];
    }
}

// old -> next; both [value, key], possibly the same.
void advance(const float* old, float* next, Step& s) {
    alignas(64) float sa[N], y[N], row[N];
    for (int v = 0; v < N; ++v) {
        const float *from = old + v * N, value = s.v[v];
        float* to = next + v * N;
        float seen = 0, read = 0;
#pragma omp simd reduction(- : seen)
        for (int k = 0; k < N; ++k) {
            row[k] = from[k];
            seen -= s.kappa[k] * row[k];
        }
#pragma omp simd reduction(+ : read)
        for (int k = 0; k < N; ++k) {
            row[k] = s.decay[k] * row[k] + s.b[k] * seen + s.k[k] * value;
            to[k] = row[k];
            read += s.r[k] * row[k];
        }
        sa[v] = seen;
        y[v] = read;
    }
    float sum = 0, squares = 0;
    for (int v = 0; v < N; ++v) sum += y[v];
    s.mean = sum / N;
    for (int v = 0; v < N; ++v) squares += (y[v] - s.mean) * (y[v] - s.mean);
    s.rstd = 1 / std::sqrt(squares / N + kNormEps);
    std::memcpy(s.sa, sa, sizeof sa);
    std::memcpy(s.y, y, sizeof y);
}

}  // namespace

extern "C" {

// out: bf16 [B, T, C]; last: fp32 [B, H, N, N].
void mixer_forward(const Args* args, uint16_t* out, float* last, int threads) {
    const Args& p = *args;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < p.batch * p.heads; ++job) {
        const int64_t b = job / p.heads, h = job % p.heads, c = h * N;
        alignas(64) float state[N * N];
        Step s;
        std::memcpy(state, p.start + job * N * N, sizeof state);
        for (int64_t t = 0; t < p.length; ++t) {
            const int64_t row = b * p.length + t;
            load(p, row, h, s);
            advance(state, state, s);
            for (int i = 0; i < N; ++i) {
                const float normed = (s.y[i] - s.mean) * s.rstd * p.ln_w[c + i] + p.ln_b[c + i];
                out[row * p.heads * N + c + i] = down((normed + s.bonus * s.v[i]) * s.gate[i]);
            }
        }
        std::memcpy(last + job * N * N, state, sizeof state);
    }
}

// Gradients: d_rkv bf16 [B, T, 3C]; d_z bf16 [4][B, T, C] = w, a, v, gate; d_first bf16 [B, T, C];
// d_start fp32 [B, H, N, N]; d_params fp32 [threads][8][C] in the order of Args, to be summed.
void mixer_backward(const Args* args, const uint16_t* d_out, const float* d_last, uint16_t* d_rkv, uint16_t* d_z,
                    uint16_t* d_first, float* d_start, float* d_params, int threads) {
    const Args& p = *args;
    const int64_t width = p.heads * N, rows = p.batch * p.length, jobs = p.batch * p.heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
        std::vector<State> states(p.length + 1);
        std::vector<Step> steps(p.length);
        alignas(64) float g[N * N];
        float* mine = d_params + static_cast<int64_t>(part) * 8 * width;
        for (int64_t job = jobs * part / threads; job < jobs * (part + 1) / threads; ++job) {
            const int64_t batch = job / p.heads, h = job % p.heads, c = h * N;
            std::memcpy(states[0].at, p.start + job * N * N, sizeof g);
            for (int64_t t = 0; t < p.length; ++t) {
                load(p, batch * p.length + t, h, steps[t]);
                advance(states[t].at, states[t + 1].at, steps[t]);
            }
            if (d_last) std::memcpy(g, d_last + job * N * N, sizeof g);
            else std::memset(g, 0, sizeof g);
            float *gw0 = mine + c, *ga0 = gw0 + width, *gv0 = ga0 + width, *gkk = gv0 + width, *gka = gkk + width;
            float *grk = gka + width, *glw = grk + width, *glb = glw + width;
            for (int64_t t = p.length - 1; t >= 0; --t) {
                const Step& s = steps[t];
                const float *before = states[t].at, *after = states[t + 1].at;
                const int64_t flat = (batch * p.length + t) * width + c, wide = (batch * p.length + t) * 3 * width + c;
                alignas(64) float dy[N], dv[N], row[N], dr[N] = {0}, dk[N] = {0}, da[N] = {0}, db[N] = {0}, dd[N] = {0};
                float dbonus = 0, mean1 = 0, mean2 = 0;
                for (int i = 0; i < N; ++i) {
                    const float grad = up(d_out[flat + i]), hat = (s.y[i] - s.mean) * s.rstd;
                    const float z = hat * p.ln_w[c + i] + p.ln_b[c + i] + s.bonus * s.v[i], dz = grad * s.gate[i];
                    d_z[3 * rows * width + flat + i] = down(grad * z);
                    glw[i] += dz * hat;
                    glb[i] += dz;
                    dbonus += dz * s.v[i];
                    dv[i] = dz * s.bonus;
                    dy[i] = dz * p.ln_w[c + i];
                    mean1 += dy[i];
                    mean2 += dy[i] * hat;
                }
                for (int i = 0; i < N; ++i) {
                    const float hat = (s.y[i] - s.mean) * s.rstd;
                    dy[i] = (dy[i] - mean1 / N - hat * mean2 / N) * s.rstd;
                }
                for (int v = 0; v < N; ++v) {
                    float *gradient = g + v * N, to_value = 0, to_sa = 0;
                    const float *old = before + v * N, *now = after + v * N;
                    const float dyv = dy[v], value = s.v[v], sa = s.sa[v];
#pragma omp simd reduction(+ : to_value, to_sa)
                    for (int k = 0; k < N; ++k) {
                        row[k] = gradient[k] + s.r[k] * dyv;
                        to_value += s.k[k] * row[k];
                        to_sa += s.b[k] * row[k];
                        dr[k] += dyv * now[k];
                        dk[k] += value * row[k];
                        db[k] += sa * row[k];
                        dd[k] += row[k] * old[k];
                    }
#pragma omp simd
                    for (int k = 0; k < N; ++k) {
                        da[k] += to_sa * old[k];
                        gradient[k] = s.decay[k] * row[k] - s.kappa[k] * to_sa;
                    }
                    dv[v] += to_value;
                }
                float dkappa[N], along = 0;
                for (int i = 0; i < N; ++i) {
                    dkappa[i] = db[i] * s.rate[i] - da[i];
                    along += dkappa[i] * s.kappa[i];
                }
                for (int i = 0; i < N; ++i) {
                    const float rk = p.r_k[c + i], scale = p.k_a[c + i];
                    dr[i] += dbonus * s.k[i] * rk;
                    dk[i] += dbonus * s.r[i] * rk;
                    grk[i] += dbonus * s.r[i] * s.k[i];
                    const float dkk = (dkappa[i] - s.kappa[i] * along) / s.norm;
                    gkk[i] += dkk * s.raw_k[i];
                    gka[i] += dk[i] * s.raw_k[i] * (s.rate[i] - 1);
                    float drate = db[i] * s.kappa[i] + dk[i] * s.raw_k[i] * scale;
                    drate *= s.rate[i] * (1 - s.rate[i]);
                    const float dw = -kDecay * dd[i] * s.decay[i] * s.s[i] * (1 - s.s[i]);
                    ga0[i] += drate;
                    gw0[i] += dw;
                    d_z[flat + i] = down(dw);
                    d_z[rows * width + flat + i] = down(drate);
                    d_rkv[wide + i] = down(dr[i]);
                    d_rkv[wide + width + i] = down(dkk * p.k_k[c + i] + dk[i] * (1 + (s.rate[i] - 1) * scale));
                }
                if (p.zv) {
                    for (int i = 0; i < N; ++i) {
                        const float m = s.mix[i], dm = dv[i] * (s.first[i] - s.raw_v[i]) * m * (1 - m);
                        gv0[i] += dm;
                        d_z[2 * rows * width + flat + i] = down(dm);
                        d_first[flat + i] = down(dv[i] * m);
                        d_rkv[wide + 2 * width + i] = down(dv[i] * (1 - m));
                    }
                } else {
                    for (int i = 0; i < N; ++i) d_rkv[wide + 2 * width + i] = down(dv[i]);
                }
            }
            std::memcpy(d_start + job * N * N, g, sizeof g);
        }
    }
}

}  // extern "C"
