// A program of its own: every instruction set of the build multiplies matrices of every format, and runs a small model
// with several threads, as its own plain loops do. Prints the names of the sets; ends with 1 at the first difference.
#include "model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace vrwkv;

struct Sizes {
    int32_t family, layers, width, hidden, vocab, threads;
    int32_t rank[4];
};
extern "C" Model *vrwkv_open(const Sizes *, const char *, const float *const *, const Source *);
extern "C" void vrwkv_close(Model *);
extern "C" int64_t vrwkv_multiply(const char *, const Source *, int32_t, const float *, int32_t, float *);
extern "C" int32_t vrwkv_run(Model *, const Call *);

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
        for (float &one : scale) one = float(int(1000 + 500 * any())) / 65536; // exact in a half
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

// Weights of a model of two layers, in several formats; RWKV-6 reads an image state.
struct Small {
    static constexpr int layers = 2, width = 128, hidden = 256, vocab = 70;
    Sizes sizes;
    std::vector<std::vector<float>> values;
    std::vector<const float *> vectors;
    std::vector<Stored> kept;
    std::vector<Source> sources;

    explicit Small(int family) : sizes{family, layers, width, hidden, vocab, 1, {32, 16, 16, 48}} {
        const int count = family == RWKV7 ? int(rwkv7::VECTORS) : int(rwkv6::VECTORS);
        values.reserve(layers * count + 2), kept.reserve(2 * layers * rwkv6::MATRICES);
        for (int l = 0; l < layers; ++l) {
            for (int i = 0; i < count; ++i)
                family == RWKV7 ? vector(i != FFN_X_R) : vector(i != rwkv6::MEM_GATE_BIAS || l);
            const int coded = l ? I4 : I8;
            for (int i = 0; i < 4; ++i) add(coded, width, width);
            add(coded, width, hidden), add(coded, hidden, width);
            add(coded, width, family == RWKV7 ? 0 : width);
            family == RWKV7 ? paths_of_7(l) : rest_of_6(coded);
        }
        vector(true), vector(true), add(I8, width, vocab);
    }

  private:
    void vector(bool there) {
        if (!there) return vectors.push_back(nullptr);
        values.emplace_back(width);
        for (float &one : values.back()) one = any();
        vectors.push_back(values.back().data());
    }
    void add(int format, int k, int n) {
        if (!n) return sources.push_back(Source{});
        kept.emplace_back(format, k, n, 32);
        sources.push_back(kept.back().source);
    }
    void paths_of_7(int l) {
        for (int i = 0; i < 4; ++i) add(F32, width, l || i != 2 ? sizes.rank[i] : 0);
        for (int i = 0; i < 4; ++i) add(F16, sizes.rank[i], l || i != 2 ? width : 0);
    }
    void rest_of_6(int coded) {
        add(F32, width, 5 * sizes.rank[0]), add(F32, width, 2 * sizes.rank[0]);
        for (int i = 0; i < rwkv6::MIXES; ++i) add(F32, sizes.rank[0], width);
        add(F32, width, sizes.rank[1]), add(F16, sizes.rank[1], width);
        for (int i = 0; i < 3; ++i) add(coded, width, width);
    }
};

// The same tokens at once and one by one, with one thread and three: the same bits; a scan with one thread and three.
void model(const char *isa, int family) {
    const int length = 11, width = Small::width;
    const size_t shift = size_t(Small::layers) * width, wkv = shift * HEAD;
    Small small(family);
    std::vector<float> x(size_t(length) * width), image(wkv / Small::layers), first[2];
    for (float &one : x) one = any();
    for (float &one : image) one = any();
    std::vector<int64_t> order(2 * length);
    for (int t = 0; t < length; ++t) order[t] = t, order[length + t] = length - 1 - t;
    auto run = [&](int threads, int step, bool scan) {
        small.sizes.threads = threads;
        Model *m = vrwkv_open(&small.sizes, isa, small.vectors.data(), small.sources.data());
        if (!m) fail("open", isa, 0, 0);
        std::vector<float> in(2 * shift + wkv), out(in.size()), logits(Small::vocab);
        for (int t = 0; t < length; t += step) {
            const int now = length - t < step ? length - t : step;
            Call call = {1, now, 1, 2, &x[size_t(t) * width], &in[0], &in[shift], &in[2 * shift], image.data(),
                         scan ? order.data() : nullptr, logits.data(), &out[0], &out[shift], &out[2 * shift]};
            vrwkv_run(m, &call);
            in.swap(out);
        }
        vrwkv_close(m);
        logits.insert(logits.end(), in.begin(), in.end());
        if (first[scan].empty()) first[scan] = logits;
        for (size_t i = 0; i < logits.size(); ++i)
            if (!(first[scan][i] == logits[i]) || !std::isfinite(logits[i]))
                fail(family == RWKV7 ? "RWKV-7" : "RWKV-6", isa, logits[i], first[scan][i]);
    };
    for (int threads : {1, 3}) {
        for (int step : {length, 1, 3}) run(threads, step, false);
        if (family == RWKV6) run(threads, length, true);
    }
    if (first[0] == first[1]) fail("scan", isa, first[1][0], first[0][0]);
}

} // namespace

int main() {
    for (const Isa *isa : all_isas()) {
        if (!isa->supported()) continue;
        products(isa->name);
        model(isa->name, RWKV7);
        model(isa->name, RWKV6);
        std::printf("%s\n", isa->name);
    }
}
