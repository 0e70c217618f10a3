// AVX2 and FMA: Haswell, Zen and later.
#include "model.h"
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "simd_avx2.h"

#include "isa.h"

namespace vrwkv {
namespace {
bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
} // namespace
extern const Isa avx2 = {"avx2", supported, position, run_unit, multiply};
} // namespace vrwkv
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
