// Sixteen lanes. Every simd_*.h has the same names; kernels.h says what they mean.
namespace {

constexpr int W = 16, ROWS_AT_ONCE = 12, ROW_GROUPS = 8;
using F = __m512;
// Of ints, not __m512i (of long longs): GCC keeps what changes its type inside a loop in memory.
typedef int I __attribute__((vector_size(64)));
using P = __m512i;

inline F fload(const float *p) { return _mm512_loadu_ps(p); }
inline void fstore(float *p, F x) { _mm512_storeu_ps(p, x); }
inline F fset(float x) { return _mm512_set1_ps(x); }
inline F fadd(F a, F b) { return _mm512_add_ps(a, b); }
inline F fsub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F fmul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fdiv(F a, F b) { return _mm512_div_ps(a, b); }
inline F ffma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F fatmost(F limit, F x) { return _mm512_min_ps(limit, x); }
inline F fatleast(F limit, F x) { return _mm512_max_ps(limit, x); }
inline F fhalf(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
inline float fsum(F x) { return _mm512_reduce_add_ps(x); }
inline F fpow2(I n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(__m512i(n), _mm512_set1_epi32(127)), 23));
}

inline I iset(int32_t x) { return I(_mm512_set1_epi32(x)); }
inline I iadd(I a, I b) { return I(_mm512_add_epi32(__m512i(a), __m512i(b))); }
inline I isub(I a, I b) { return I(_mm512_sub_epi32(__m512i(a), __m512i(b))); }
inline I imul(I a, I b) { return I(_mm512_mullo_epi32(__m512i(a), __m512i(b))); }
inline I imax(I a, I b) { return I(_mm512_max_epi32(__m512i(a), __m512i(b))); }
inline int32_t imost(I x) { return _mm512_reduce_max_epi32(__m512i(x)); }
inline int32_t isum(I x) { return _mm512_reduce_add_epi32(__m512i(x)); }
inline I iround(F x) { return I(_mm512_cvtps_epi32(x)); }
inline F ifloat(I x) { return _mm512_cvtepi32_ps(__m512i(x)); }
inline I ibytes(const uint8_t *p) {
    return I(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline I imagnitude(F x) { return I(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff))); }
inline void istore16(int16_t *p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtsepi32_epi16(__m512i(x)));
}

inline __m256i bytes32(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m256i low_half(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline __m256i high_half(__m256i x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }

inline P pset(int32_t pair) { return _mm512_set1_epi32(pair); }
inline P pload(const int16_t *p) { return _mm512_loadu_si512(p); }
inline void pstore(int16_t *p, P x) { _mm512_storeu_si512(p, x); }
inline P psub(P a, P b) { return _mm512_sub_epi16(a, b); }
inline P pcodes(const uint8_t *p) { return _mm512_cvtepi8_epi16(bytes32(p)); }
inline P pboth(I x) { return _mm512_or_si512(__m512i(x), _mm512_slli_epi32(__m512i(x), 16)); }
inline void phalves(const uint8_t *p, P &low, P &high) {
    __m256i both = bytes32(p);
    low = _mm512_cvtepu8_epi16(low_half(both)), high = _mm512_cvtepu8_epi16(high_half(both));
}
inline void pzip(const uint8_t *a, const uint8_t *b, P *out) {
    P x = pcodes(a), y = pcodes(b);
    out[0] = _mm512_unpacklo_epi16(x, y), out[1] = _mm512_unpackhi_epi16(x, y);
}
inline void pzip_halves(const uint8_t *a, const uint8_t *b, P *low, P *high) {
    P xl, xh, yl, yh;
    phalves(a, xl, xh), phalves(b, yl, yh);
    low[0] = _mm512_unpacklo_epi16(xl, yl), low[1] = _mm512_unpackhi_epi16(xl, yl);
    high[0] = _mm512_unpacklo_epi16(xh, yh), high[1] = _mm512_unpackhi_epi16(xh, yh);
}
// unpack works within 128 bits: so that pzip gives outputs in order, output o lies here.
inline int position(int o) { return o / 32 * 32 + o % 16 / 4 * 8 + o % 32 / 16 * 4 + o % 4; }

#if VRWKV_VNNI
inline I pdot(I sum, P a, P b) { return I(_mm512_dpwssd_epi32(__m512i(sum), a, b)); }
#else
inline I pdot(I sum, P a, P b) { return I(_mm512_add_epi32(__m512i(sum), _mm512_madd_epi16(a, b))); }
#endif

} // namespace
