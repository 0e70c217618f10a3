// A program of its own: every instruction set of the build multiplies matrices of every format, and runs a small model
// with several threads, as its own plain loops do. Prints the names of the sets; ends with 1 at the first difference.
#include "model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace vrwkv;

struct Sizes {
    int32_t layers, width, hidden, vocab, threads;
    int32_t rank[4];
};
extern "C" Model *vrwkv_open(const Sizes *, const char *, const float *const *, const Source *);
extern "C" void vrwkv_close(Model *);
extern "C" int64_t vrwkv_multiply(const char *, const Source *, int32_t, const float *, int32_t, float *);
extern "C" int32_t vrwkv_step(Model *, int32_t, int32_t, const float *, const float *, const float *, const float *,
                              float *, float *, float *, float *);

namespace {

uint32_t seed = 1;
float any() { // -1 ... 1
    seed = seed * 1664525u + 1013904223u;
    return float(int32_t(seed) >> 8) / float(1 << 23);
}

void fail(const char *what, const char *isa, double found, double wanted) {
    std::printf("%s on %s: %g, wanted %g\n", what, isa, found, wanted);
    std::exit(1);
}

uint16_t half_of(int units) { // units / 16, exactly, for -15 ... 15
    if (!units) return 0;
    int size = std::abs(units), exponent = 0;
    while (size >> (exponent + 1)) ++exponent;
    return uint16_t((units < 0 ? 0x8000 : 0) | (exponent + 11) << 10 | ((size << (10 - exponent)) & 0x3ff));
}

// A matrix in a format, and what it stands for.
struct Stored {
    std::vector<uint8_t> data, zero;
    std::vector<float> scale, exact;
    Source source;
    Stored(int format, int k, int n, int block) : exact(size_t(k) * n) {
        int blocks = format >= I8 ? (k + block - 1) / block : 0, bits = format == I4 ? 4 : 8;
        size_t floats = exact.size() * (format == F32 ? 4 : 2);
        data.resize(format < I8 ? floats : size_t(n) * blocks * block * bits / 8);
        scale.resize(size_t(n) * blocks), zero.resize(size_t(n) * ((blocks + 1) / 2));
        for (float &one : scale) one = 0.01f * (1.5f + any());
        for (uint8_t &one : zero) one = uint8_t(seed >> 13), any();
        if (format >= I8)
            for (uint8_t &one : data) one = uint8_t(seed >> 11), any();
        for (int i = 0; i < k; ++i)
            for (int o = 0; o < n; ++o) {
                float &to = exact[size_t(i) * n + o];
                if (format < I8) {
                    int units = int(any() * 15.9f);
                    to = float(units) / 16;
                    uint16_t half = half_of(units);
                    if (format == F32)
                        std::memcpy(&data[4 * (size_t(i) * n + o)], &to, 4);
                    else
                        std::memcpy(&data[2 * (size_t(i) * n + o)], &half, 2);
                    continue;
                }
                int b = i / block, code, middle = 128;
                size_t at = size_t(o) * blocks * block + i;
                code = format == I8 ? data[at] : data[at / 2] >> (at % 2 * 4) & 15;
                if (format == I4) middle = zero[size_t(o) * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
                to = float(code - middle) * scale[size_t(o) * blocks + b];
            }
        source = {format, 0, k, n, block, data.data(), scale.data(), zero.data()};
    }
};

void products(const char *isa) {
    for (int format : {F32, F16, I8, I4})
        for (int layout : {TILES, ROWS})
            for (int rows : {1, 3, 8, 13}) {
                const int k = 291, n = 101;
                Stored w(format, k, n, 32);
                std::vector<float> x(size_t(rows) * k), out(size_t(rows) * n);
                for (float &one : x) one = any() > 0.3f ? any() : 0;
                if (vrwkv_multiply(isa, &w.source, layout, x.data(), rows, out.data()) < 0) fail("multiply", isa, 0, 0);
                for (int r = 0; r < rows; ++r)
                    for (int o = 0; o < n; ++o) {
                        double wanted = 0;
                        for (int i = 0; i < k; ++i) wanted += double(x[size_t(r) * k + i]) * w.exact[size_t(i) * n + o];
                        double found = out[size_t(r) * n + o];
                        if (!(std::fabs(found - wanted) < 2e-3)) fail("product", isa, found, wanted);
                    }
            }
}

// The same tokens at once and one by one, with one thread and three: the same bits.
void model(const char *isa) {
    const int layers = 2, width = 128, hidden = 256, vocab = 70, length = 11;
    Sizes sizes = {layers, width, hidden, vocab, 1, {32, 16, 16, 48}};
    std::vector<std::vector<float>> vectors;
    std::vector<const float *> vector_of;
    for (int i = 0; i < layers * VECTORS + 2; ++i) {
        vectors.emplace_back(width);
        for (float &one : vectors.back()) one = any();
    }
    for (auto &one : vectors) vector_of.push_back(one.data());
    std::vector<Stored> kept;
    std::vector<Source> sources;
    kept.reserve(layers * MATRICES + 1);
    auto add = [&](int format, int k, int n) {
        kept.emplace_back(format, k, n, 32);
        sources.push_back(kept.back().source);
    };
    for (int l = 0; l < layers; ++l) {
        const int coded = l ? I4 : I8, *rank = sizes.rank;
        for (int i = 0; i < 4; ++i) l || i != 2 ? add(F32, width, rank[i]) : sources.push_back(Source{});
        for (int i = 0; i < 3; ++i) add(coded, width, width);
        for (int i = 0; i < 4; ++i) l || i != 2 ? add(F16, rank[i], width) : sources.push_back(Source{});
        add(coded, width, width), add(coded, width, hidden), add(coded, hidden, width);
    }
    add(I8, width, vocab);
    const size_t shift = size_t(layers) * width, wkv = shift * HEAD;
    std::vector<float> x(size_t(length) * width), first;
    for (float &one : x) one = any();
    for (int threads : {1, 3})
        for (int step : {length, 1, 3}) {
            sizes.threads = threads;
            Model *m = vrwkv_open(&sizes, isa, vector_of.data(), sources.data());
            if (!m) fail("open", isa, 0, 0);
            std::vector<float> in(2 * shift + wkv), out(in.size()), logits(vocab);
            for (int t = 0; t < length; t += step) {
                const int now = length - t < step ? length - t : step;
                vrwkv_step(m, 1, now, &x[size_t(t) * width], &in[0], &in[shift], &in[2 * shift], logits.data(), &out[0],
                           &out[shift], &out[2 * shift]);
                in.swap(out);
            }
            vrwkv_close(m);
            logits.insert(logits.end(), in.begin(), in.end());
            if (first.empty()) first = logits;
            for (size_t i = 0; i < first.size(); ++i)
                if (!(first[i] == logits[i]) || !std::isfinite(first[i])) fail("step", isa, logits[i], first[i]);
        }
}

} // namespace

int main() {
    for (const Isa *isa : all_isas()) {
        if (!isa->supported()) continue;
        products(isa->name);
        model(isa->name);
        std::printf("%s\n", isa->name);
    }
}
