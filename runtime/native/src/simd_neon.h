// Eight lanes, each value a pair of registers. Every simd_*.h has the same names; kernels.h says what they mean.
namespace {

constexpr int W = 8, ROWS_AT_ONCE = 4, ROW_GROUPS = 2;
struct F {
    float32x4_t a, b;
};
struct I {
    int32x4_t a, b;
};
struct P { // the first inputs of eight outputs, and their second ones
    int16x8_t a, b;
};

inline F fload(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void fstore(float *p, F x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b); }
inline F fset(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F fadd(F x, F y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline F fsub(F x, F y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline F fmul(F x, F y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline F fdiv(F x, F y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline F ffma(F x, F y, F z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
inline F fatmost(F limit, F x) { return {vminq_f32(limit.a, x.a), vminq_f32(limit.b, x.b)}; }
inline F fatleast(F limit, F x) { return {vmaxq_f32(limit.a, x.a), vmaxq_f32(limit.b, x.b)}; }
inline float32x4_t half4(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F fhalf(const uint16_t *p) { return {half4(p), half4(p + 4)}; }
inline float fsum(F x) { return vaddvq_f32(vaddq_f32(x.a, x.b)); }
inline float32x4_t pow2(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
inline F fpow2(I n) { return {pow2(n.a), pow2(n.b)}; }

inline I iset(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline I iadd(I x, I y) { return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b)}; }
inline I isub(I x, I y) { return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b)}; }
inline I imul(I x, I y) { return {vmulq_s32(x.a, y.a), vmulq_s32(x.b, y.b)}; }
inline I imax(I x, I y) { return {vmaxq_s32(x.a, y.a), vmaxq_s32(x.b, y.b)}; }
inline int32_t imost(I x) { return vmaxvq_s32(vmaxq_s32(x.a, x.b)); }
inline int32_t isum(I x) { return vaddvq_s32(vaddq_s32(x.a, x.b)); }
inline I iround(F x) { return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b)}; }
inline F ifloat(I x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b)}; }
inline int16x8_t bytes8(const uint8_t *p) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p))); }
inline I ibytes(const uint8_t *p) {
    int16x8_t x = bytes8(p);
    return {vmovl_s16(vget_low_s16(x)), vmovl_s16(vget_high_s16(x))};
}
inline int32x4_t magnitude(float32x4_t x) { return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff)); }
inline I imagnitude(F x) { return {magnitude(x.a), magnitude(x.b)}; }
inline void istore16(int16_t *p, I x) { vst1q_s16(p, vcombine_s16(vqmovn_s32(x.a), vqmovn_s32(x.b))); }

inline int16x8_t widen(uint8x8_t x) { return vmovl_s8(vreinterpret_s8_u8(x)); }
inline uint8x8_t low_half(uint8x8_t x) { return vand_u8(x, vdup_n_u8(15)); }
inline uint8x8_t high_half(uint8x8_t x) { return vshr_n_u8(x, 4); }

inline P pset(int32_t pair) { return {vdupq_n_s16(int16_t(pair)), vdupq_n_s16(int16_t(pair >> 16))}; }
inline P pload(const int16_t *p) { return {vld1q_s16(p), vld1q_s16(p + 8)}; }
inline void pstore(int16_t *p, P x) { vst1q_s16(p, x.a), vst1q_s16(p + 8, x.b); }
inline P psub(P x, P y) { return {vsubq_s16(x.a, y.a), vsubq_s16(x.b, y.b)}; }
inline P pcodes(const uint8_t *p) {
    uint8x8x2_t both = vld2_u8(p);
    return {widen(both.val[0]), widen(both.val[1])};
}
inline P pboth(I x) {
    int16x8_t both = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b));
    return {both, both};
}
inline void phalves(const uint8_t *p, P &low, P &high) {
    uint8x8x2_t both = vld2_u8(p);
    low = {widen(low_half(both.val[0])), widen(low_half(both.val[1]))};
    high = {widen(high_half(both.val[0])), widen(high_half(both.val[1]))};
}
inline void pzip(const uint8_t *a, const uint8_t *b, P *out) {
    for (int i = 0; i < 2; ++i) out[i] = {widen(vld1_u8(a + 8 * i)), widen(vld1_u8(b + 8 * i))};
}
inline void pzip_halves(const uint8_t *a, const uint8_t *b, P *low, P *high) {
    for (int i = 0; i < 2; ++i) {
        uint8x8_t x = vld1_u8(a + 8 * i), y = vld1_u8(b + 8 * i);
        low[i] = {widen(low_half(x)), widen(low_half(y))}, high[i] = {widen(high_half(x)), widen(high_half(y))};
    }
}
inline int position(int o) { return o; }

inline int32x4_t dot4(int32x4_t sum, int16x4_t a0, int16x4_t b0, int16x4_t a1, int16x4_t b1) {
    return vmlal_s16(vmlal_s16(sum, a0, b0), a1, b1);
}
inline I pdot(I sum, P x, P y) {
    return {dot4(sum.a, vget_low_s16(x.a), vget_low_s16(y.a), vget_low_s16(x.b), vget_low_s16(y.b)),
            dot4(sum.b, vget_high_s16(x.a), vget_high_s16(y.a), vget_high_s16(x.b), vget_high_s16(y.b))};
}

} // namespace
