// One token of RWKV-7, from its embedding to the logits: eleven launches a layer, ten with float16 weights. Every array is
// the caller's. decode.py has the same structures.
#include "../../plugins_trt/wkv7/launch.h"
#include "decode_kernels.cuh"

namespace vrwkv {

enum Format : int { kHalf, kInt8, kInt4 };  // of the large matrices; LoRA matrices are float16 always

struct Matrix {
    void const* codes;    // [outputs, inputs]
    float const* scales;  // null, [outputs], or [outputs, inputs / 64]
};

struct Layer {
    float const *ln1_scale, *ln1_bias, *ln2_scale, *ln2_bias;
    half_t const *mix, *ffn_mix;                                // [6, C] in the order r k v w a g, [1, C]
    Matrix r, k, v, out, key, value;
    half_t const *w1, *a1, *v1, *g1, *w2, *a2, *v2, *g2;        // [rank, C] and [C, rank]
    float const *w0, *a0, *v0, *k_k, *k_a, *r_k, *norm_scale, *norm_bias;
};

struct Model {
    int layers, heads, ffn, vocabulary, rank_w, rank_a, rank_v, rank_g, format;
    Layer const* layer;         // in host memory
    half_t const* embedding;    // [vocabulary, C]
    Matrix head;
    float const *out_scale, *out_bias;
};

struct Working {
    int* token;
    float* x;                                    // [C], the residual stream
    half_t *mixed, *products, *low, *high;       // [6, C], [3, C], [4, 512], [4, C]
    half_t *first, *k, *v, *kappa, *rate, *y, *gated, *hidden, *logits;
    float* decay;
    float *att[2], *ffn[2], *wkv[2];             // two sets of state: [L, C], [L, C], [L, H, 64, 64]
};

constexpr int kLow = 512;  // room for one LoRA's inner vector

namespace {

int products(Problems const& all, int format, void* stream) {
    if (format == kHalf) return run_group<Halves, false>(all, stream);
    if (format == kInt8) return run_group<Codes8<false>, false>(all, stream);
    return run_group<Codes4, true>(all, stream);
}

Problem problem(half_t const* x, Matrix const& m, int inputs, int outputs, half_t* y, float* sum = nullptr,
                Apply before = Apply::nothing) {
    return {x, m.codes, m.scales, y, sum, inputs, outputs, 64, before, 0};
}

int step(Model const& m, Working const& w, int parity, void* stream) {
    int const width = m.heads * kHead, from = parity, to = 1 - parity;
    auto const mixing = dim3(static_cast<unsigned>((width + kMixThreads - 1) / kMixThreads));
    auto const heads = dim3(static_cast<unsigned>(m.heads));
    size_t const room = kMixThreads / kLanes * sizeof(float);
    int error = launch(embed, dim3(1), 512, 0, stream, m.embedding, w.token, w.x, width, m.vocabulary);
    for (int i = 0; i < m.layers && error == 0; i++) {
        Layer const& l = m.layer[i];
        size_t const at = static_cast<size_t>(i) * width;
        auto mixed = [&](int n) { return w.mixed + n * width; };
        auto low = [&](int n) { return w.low + n * kLow; };
        auto high = [&](int n) { return w.high + n * width; };
        auto run = [&](int result) { error = error != 0 ? error : result; };

        run(launch(norm_and_mix, mixing, kMixThreads, room, stream,
                   Mix{w.x, l.ln1_scale, l.ln1_bias, w.att[from] + at, w.att[to] + at, l.mix, w.mixed, width, 6}));
        half_t *const r = w.products, *const k = r + width, *const v = k + width;
        Problems large{{problem(mixed(0), l.r, width, width, r), problem(mixed(1), l.k, width, width, k),
                        problem(mixed(2), l.v, width, width, v)}, 3};
        Problems first{{problem(mixed(3), {l.w1, nullptr}, width, m.rank_w, low(0)),
                        problem(mixed(4), {l.a1, nullptr}, width, m.rank_a, low(1)),
                        problem(mixed(5), {l.g1, nullptr}, width, m.rank_g, low(3)),
                        problem(mixed(2), {l.v1, nullptr}, width, m.rank_v, low(2))}, i == 0 ? 3 : 4};
        if (m.format == kHalf) {
            for (int n = 0; n < first.count; n++) large.at[large.count++] = first.at[n];
            run(products(large, kHalf, stream));
        } else {
            run(products(large, m.format, stream));
            run(products(first, kHalf, stream));
        }
        Problems second{{problem(low(0), {l.w2, nullptr}, m.rank_w, width, high(0), nullptr, Apply::tanh),
                         problem(low(1), {l.a2, nullptr}, m.rank_a, width, high(1)),
                         problem(low(3), {l.g2, nullptr}, m.rank_g, width, high(3), nullptr, Apply::sigmoid),
                         problem(low(2), {l.v2, nullptr}, m.rank_v, width, high(2))}, first.count};
        run(products(second, kHalf, stream));
        run(launch(prepare_heads, heads, kHead, 2 * sizeof(float), stream,
                   Gates{k, v, high(0), high(1), high(2), l.w0, l.a0, l.v0, l.k_k, l.k_a, w.first, w.k, w.v, w.kappa,
                         w.rate, w.decay, i == 0}));
        size_t const matrix = static_cast<size_t>(i) * m.heads * kHead * kHead;
        void const* const inputs[] = {r, w.decay, w.k, w.v, w.kappa, w.rate, w.wkv[from] + matrix};
        void* const outputs[] = {w.y, w.wkv[to] + matrix};
        run(vrwkv_wkv7(1, 0, 1, 1, m.heads, inputs, outputs, nullptr, 1, stream));
        run(launch(finish_heads, heads, kHead, 2 * sizeof(float), stream,
                   Heads{w.y, r, w.k, w.v, high(3), l.r_k, l.norm_scale, l.norm_bias, w.gated}));
        run(products({{problem(w.gated, l.out, width, width, nullptr, w.x)}, 1}, m.format, stream));
        run(launch(norm_and_mix, mixing, kMixThreads, room, stream,
                   Mix{w.x, l.ln2_scale, l.ln2_bias, w.ffn[from] + at, w.ffn[to] + at, l.ffn_mix, w.mixed, width, 1}));
        run(products({{problem(w.mixed, l.key, width, m.ffn, w.hidden)}, 1}, m.format, stream));
        run(products({{problem(w.hidden, l.value, m.ffn, width, nullptr, w.x, Apply::relu_squared)}, 1}, m.format, stream));
    }
    if (error != 0) return error;
    error = launch(norm_and_mix, mixing, kMixThreads, room, stream,
                   Mix{w.x, m.out_scale, m.out_bias, nullptr, nullptr, nullptr, w.mixed, width, 0});
    if (error != 0) return error;
    return products({{problem(w.mixed, m.head, width, m.vocabulary, w.logits)}, 1}, m.format, stream);
}

}  // namespace
}  // namespace vrwkv

// State set `parity` is read, the other written. Returns 0 or a cudaError_t.
extern "C" __attribute__((visibility("default"))) int32_t vrwkv_decode(vrwkv::Model const* model,
                                                                      vrwkv::Working const* working, int32_t parity,
                                                                      void* stream) {
    return vrwkv::step(*model, *working, parity, stream);
}
