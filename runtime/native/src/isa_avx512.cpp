// AVX-512 without VNNI: Skylake and Cascade Lake's elders.
#include "model.h"
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define VRWKV_VNNI 0
#include "simd_avx512.h"

#include "isa.h"

namespace vrwkv {
namespace {
bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
} // namespace
extern const Isa avx512 = {"avx512", supported, position, run_unit, multiply};
} // namespace vrwkv
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
