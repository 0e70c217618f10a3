// Elementwise functions of F.
namespace {

// e^x to 2 units in the last place: x = n ln 2 + r, a polynomial in r, and n into the exponent.
inline F fexp(F x) {
    x = fatmost(fset(88.0f), fatleast(fset(-87.0f), x));
    I n = iround(fmul(x, fset(1.44269504f)));
    F whole = ifloat(n);
    F r = ffma(whole, fset(-0.693359375f), x); // ln 2 in two parts, so that r is exact
    r = ffma(whole, fset(2.12194440e-4f), r);
    F p = fset(1.0f / 5040);
    p = ffma(p, r, fset(1.0f / 720));
    p = ffma(p, r, fset(1.0f / 120));
    p = ffma(p, r, fset(1.0f / 24));
    p = ffma(p, r, fset(1.0f / 6));
    p = ffma(p, r, fset(0.5f));
    p = ffma(p, r, fset(1.0f));
    p = ffma(p, r, fset(1.0f));
    return fmul(p, fpow2(n));
}

inline F fsigmoid(F x) { return fdiv(fset(1.0f), fadd(fset(1.0f), fexp(fsub(fset(0.0f), x)))); }

inline F ftanh(F x) { return fsub(fset(1.0f), fdiv(fset(2.0f), fadd(fset(1.0f), fexp(fadd(x, x))))); }

inline F frelu(F x) { return fatleast(fset(0.0f), x); }

// out = (x - mean) / sqrt(variance + eps), times weight, plus bias.
inline void norm(const float *x, int width, float eps, const float *weight, const float *bias, float *out) {
    F sum = fset(0.0f), square = fset(0.0f);
    for (int i = 0; i < width; i += W) sum = fadd(sum, fload(x + i));
    F mean = fset(fsum(sum) / float(width));
    for (int i = 0; i < width; i += W) {
        F d = fsub(fload(x + i), mean);
        square = ffma(d, d, square);
    }
    F scale = fset(1.0f / __builtin_sqrtf(fsum(square) / float(width) + eps));
    for (int i = 0; i < width; i += W)
        fstore(out + i, ffma(fmul(fsub(fload(x + i), mean), scale), fload(weight + i), fload(bias + i)));
}

} // namespace
