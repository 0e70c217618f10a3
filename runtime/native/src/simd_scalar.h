// Eight lanes in plain C++, for any processor. Every simd_*.h has the same names; kernels.h says what they mean.
namespace {

constexpr int W = 8, ROWS_AT_ONCE = 2, ROW_GROUPS = 1;
struct F {
    float v[W];
};
struct I {
    int32_t v[W];
};
struct P {
    int16_t v[2 * W];
};

template <class T, class Each> inline T each(Each f) {
    T out;
    for (int i = 0; i < W; ++i) out.v[i] = f(i);
    return out;
}

inline F fload(const float *p) { return each<F>([=](int i) { return p[i]; }); }
inline void fstore(float *p, F x) {
    for (int i = 0; i < W; ++i) p[i] = x.v[i];
}
inline F fset(float x) { return each<F>([=](int) { return x; }); }
inline F fadd(F a, F b) { return each<F>([=](int i) { return a.v[i] + b.v[i]; }); }
inline F fsub(F a, F b) { return each<F>([=](int i) { return a.v[i] - b.v[i]; }); }
inline F fmul(F a, F b) { return each<F>([=](int i) { return a.v[i] * b.v[i]; }); }
inline F fdiv(F a, F b) { return each<F>([=](int i) { return a.v[i] / b.v[i]; }); }
inline F ffma(F a, F b, F c) { return each<F>([=](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F fatmost(F limit, F x) { return each<F>([=](int i) { return x.v[i] > limit.v[i] ? limit.v[i] : x.v[i]; }); }
inline F fatleast(F limit, F x) { return each<F>([=](int i) { return x.v[i] < limit.v[i] ? limit.v[i] : x.v[i]; }); }
inline float half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) bits = 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400) bits = (rest << 13) + 0x38000000;
    else {
        float tiny = float(rest) * 0x1p-24f;
        __builtin_memcpy(&bits, &tiny, 4);
    }
    bits |= sign;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
}
inline F fhalf(const uint16_t *p) { return each<F>([=](int i) { return half(p[i]); }); }
inline float fsum(F x) { return ((x.v[0] + x.v[4]) + (x.v[2] + x.v[6])) + ((x.v[1] + x.v[5]) + (x.v[3] + x.v[7])); }
inline F fpow2(I n) {
    return each<F>([=](int i) {
        uint32_t bits = uint32_t(n.v[i] + 127) << 23;
        float out;
        __builtin_memcpy(&out, &bits, 4);
        return out;
    });
}

inline I iset(int32_t x) { return each<I>([=](int) { return x; }); }
inline I iadd(I a, I b) { return each<I>([=](int i) { return a.v[i] + b.v[i]; }); }
inline I isub(I a, I b) { return each<I>([=](int i) { return a.v[i] - b.v[i]; }); }
inline I imul(I a, I b) { return each<I>([=](int i) { return a.v[i] * b.v[i]; }); }
inline I imax(I a, I b) { return each<I>([=](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline int32_t imost(I x) {
    int32_t most = x.v[0];
    for (int i = 1; i < W; ++i) most = x.v[i] > most ? x.v[i] : most;
    return most;
}
inline int32_t isum(I x) {
    int32_t sum = 0;
    for (int i = 0; i < W; ++i) sum += x.v[i];
    return sum;
}
// Adding and taking away 1.5 * 2^23 rounds to the nearest, as all vector units do. NaN becomes 0.
inline I iround(F x) {
    return each<I>([=](int i) {
        if (!(x.v[i] < 2e9f && x.v[i] > -2e9f)) return int32_t(0);
        if (x.v[i] > 4e6f || x.v[i] < -4e6f) return int32_t(x.v[i]);
        volatile float shifted = x.v[i] + 12582912.0f;
        return int32_t(shifted - 12582912.0f);
    });
}
inline F ifloat(I x) { return each<F>([=](int i) { return float(x.v[i]); }); }
inline I ibytes(const uint8_t *p) { return each<I>([=](int i) { return int32_t(p[i]); }); }
inline I imagnitude(F x) {
    return each<I>([=](int i) {
        int32_t bits;
        __builtin_memcpy(&bits, &x.v[i], 4);
        return bits & 0x7fffffff;
    });
}
inline void istore16(int16_t *p, I x) {
    for (int i = 0; i < W; ++i) p[i] = int16_t(x.v[i]);
}

template <class Each> inline P pairs(Each f) {
    P out;
    for (int i = 0; i < 2 * W; ++i) out.v[i] = int16_t(f(i));
    return out;
}
inline P pset(int32_t pair) { return pairs([=](int i) { return i & 1 ? pair >> 16 : pair; }); }
inline P pload(const int16_t *p) { return pairs([=](int i) { return p[i]; }); }
inline void pstore(int16_t *p, P x) {
    for (int i = 0; i < 2 * W; ++i) p[i] = x.v[i];
}
inline P psub(P a, P b) { return pairs([=](int i) { return a.v[i] - b.v[i]; }); }
inline P pcodes(const uint8_t *p) { return pairs([=](int i) { return int8_t(p[i]); }); }
inline P pboth(I x) { return pairs([=](int i) { return x.v[i / 2]; }); }
inline void phalves(const uint8_t *p, P &low, P &high) {
    low = pairs([=](int i) { return p[i] & 15; });
    high = pairs([=](int i) { return p[i] >> 4; });
}
inline uint8_t of_two(const uint8_t *a, const uint8_t *b, int i) {
    const uint8_t *from = i & 1 ? b : a;
    return from[i / 2];
}
inline void pzip(const uint8_t *a, const uint8_t *b, P *out) {
    for (int j = 0; j < 2; ++j) out[j] = pairs([=](int i) { return int8_t(of_two(a + j * W, b + j * W, i)); });
}
inline void pzip_halves(const uint8_t *a, const uint8_t *b, P *low, P *high) {
    for (int j = 0; j < 2; ++j) {
        low[j] = pairs([=](int i) { return of_two(a + j * W, b + j * W, i) & 15; });
        high[j] = pairs([=](int i) { return of_two(a + j * W, b + j * W, i) >> 4; });
    }
}
inline int position(int o) { return o; }

inline I pdot(I sum, P a, P b) {
    return each<I>([=](int i) { return sum.v[i] + a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]; });
}

} // namespace
