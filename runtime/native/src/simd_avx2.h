// Eight lanes. Every simd_*.h has the same names; kernels.h says what they mean.
namespace {

constexpr int W = 8, ROWS_AT_ONCE = 6, ROW_GROUPS = 4;
using F = __m256;
// Of ints, not __m256i (of long longs): GCC keeps what changes its type inside a loop in memory.
typedef int I __attribute__((vector_size(32)));
using P = __m256i;

inline F fload(const float *p) { return _mm256_loadu_ps(p); }
inline void fstore(float *p, F x) { _mm256_storeu_ps(p, x); }
inline F fset(float x) { return _mm256_set1_ps(x); }
inline F fadd(F a, F b) { return _mm256_add_ps(a, b); }
inline F fsub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F fmul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F fdiv(F a, F b) { return _mm256_div_ps(a, b); }
inline F ffma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F fatmost(F limit, F x) { return _mm256_min_ps(limit, x); }
inline F fatleast(F limit, F x) { return _mm256_max_ps(limit, x); }
inline __m128i bytes16(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline F fhalf(const uint16_t *p) { return _mm256_cvtph_ps(bytes16(p)); }
inline float fsum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline F fpow2(I n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(__m256i(n), _mm256_set1_epi32(127)), 23));
}

inline I iset(int32_t x) { return I(_mm256_set1_epi32(x)); }
inline I iadd(I a, I b) { return I(_mm256_add_epi32(__m256i(a), __m256i(b))); }
inline I isub(I a, I b) { return I(_mm256_sub_epi32(__m256i(a), __m256i(b))); }
inline I imul(I a, I b) { return I(_mm256_mullo_epi32(__m256i(a), __m256i(b))); }
inline I imax(I a, I b) { return I(_mm256_max_epi32(__m256i(a), __m256i(b))); }
inline int32_t imost(I x) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(__m256i(x)), _mm256_extracti128_si256(__m256i(x), 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline int32_t isum(I x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(__m256i(x)), _mm256_extracti128_si256(__m256i(x), 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline I iround(F x) { return I(_mm256_cvtps_epi32(x)); }
inline F ifloat(I x) { return _mm256_cvtepi32_ps(__m256i(x)); }
inline I ibytes(const uint8_t *p) {
    return I(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline I imagnitude(F x) { return I(_mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff))); }
inline void istore16(int16_t *p, I x) {
    __m128i both = _mm_packs_epi32(_mm256_castsi256_si128(__m256i(x)), _mm256_extracti128_si256(__m256i(x), 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), both);
}

inline __m128i low_half(__m128i x) { return _mm_and_si128(x, _mm_set1_epi8(15)); }
inline __m128i high_half(__m128i x) { return _mm_and_si128(_mm_srli_epi16(x, 4), _mm_set1_epi8(15)); }

inline P pset(int32_t pair) { return _mm256_set1_epi32(pair); }
inline P pload(const int16_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline void pstore(int16_t *p, P x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x); }
inline P psub(P a, P b) { return _mm256_sub_epi16(a, b); }
inline P pcodes(const uint8_t *p) { return _mm256_cvtepi8_epi16(bytes16(p)); }
inline P pboth(I x) { return _mm256_or_si256(__m256i(x), _mm256_slli_epi32(__m256i(x), 16)); }
inline void phalves(const uint8_t *p, P &low, P &high) {
    __m128i both = bytes16(p);
    low = _mm256_cvtepu8_epi16(low_half(both)), high = _mm256_cvtepu8_epi16(high_half(both));
}
inline void pzip(const uint8_t *a, const uint8_t *b, P *out) {
    P x = pcodes(a), y = pcodes(b);
    out[0] = _mm256_unpacklo_epi16(x, y), out[1] = _mm256_unpackhi_epi16(x, y);
}
inline void pzip_halves(const uint8_t *a, const uint8_t *b, P *low, P *high) {
    P xl, xh, yl, yh;
    phalves(a, xl, xh), phalves(b, yl, yh);
    low[0] = _mm256_unpacklo_epi16(xl, yl), low[1] = _mm256_unpackhi_epi16(xl, yl);
    high[0] = _mm256_unpacklo_epi16(xh, yh), high[1] = _mm256_unpackhi_epi16(xh, yh);
}
// unpack works within 128 bits: so that pzip gives outputs in order, output o lies here.
inline int position(int o) { return o / 16 * 16 + o % 8 / 4 * 8 + o % 16 / 8 * 4 + o % 4; }

inline I pdot(I sum, P a, P b) { return I(_mm256_add_epi32(__m256i(sum), _mm256_madd_epi16(a, b))); }

} // namespace
