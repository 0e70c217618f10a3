// Tensor-core products of 16 x 8 tiles, and float32 factors as sums of bfloat16 terms.
//
// Fragments of mma.m16n8k16 (PTX manual): with g = lane / 4 and t = lane % 4, two 16-bit values to a register,
//   a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8;   b: rows 2t, 2t + 8 of column g;
//   c: row g at columns 2t, 2t + 1, then row g + 8. So accumulators of one product are the `a` of the next.
#pragma once

#include "device.cuh"

namespace vrwkv {

#ifndef VRWKV_EMULATE
__device__ __forceinline__ void mma_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
#endif

template <class E>
__device__ __forceinline__ float element(uint32_t pair, int high) {
    uint16_t const bits = static_cast<uint16_t>(high ? pair >> 16 : pair);
    E value;
    memcpy(&value, &bits, sizeof value);
    return to_float(value);
}

// c += a b, all 32 lanes together. E is the type of the 16-bit factors; sums are float32.
template <class E>
__device__ __forceinline__ void mma(float (&c)[4], uint32_t const (&a)[4], uint32_t const (&b)[2]) {
#if defined(VRWKV_EMULATE)
    struct Registers { uint32_t a[4], b[2]; } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    auto const warp = emulate::show(mine, 4);
    int const lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4, t = lane % 4;
    for (int j = 0; j < 4; j++) {
        Registers const left = warp[g * 4 + j], right[2] = {warp[(2 * t) * 4 + j], warp[(2 * t + 1) * 4 + j]};
        for (int i = 0; i < 4; i++)
            for (int half = 0; half < 2; half++)
                for (int high = 0; high < 2; high++)
                    c[i] += element<E>(left.a[2 * half + i / 2], high) * element<E>(right[i % 2].b[half], high);
    }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (sizeof(E) == 2 && !IsHalf<E>::value)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // sm_75 multiplies float16 only, eight deep; bfloat16 goes through shuffles there.
    if constexpr (IsHalf<E>::value) {
        mma_k8(c, a[0], a[1], b[0]);
        mma_k8(c, a[2], a[3], b[1]);
    } else {
        int const lane = static_cast<int>(threadIdx.x) % kLanes, g = lane / 4, t = lane % 4;
#pragma unroll 1
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t const top = __shfl_sync(kAll, a[2 * half], g * 4 + j);
                uint32_t const low = __shfl_sync(kAll, a[2 * half + 1], g * 4 + j);
                uint32_t const left = __shfl_sync(kAll, b[half], (2 * t) * 4 + j);
                uint32_t const right = __shfl_sync(kAll, b[half], (2 * t + 1) * 4 + j);
#pragma unroll
                for (int high = 0; high < 2; high++) {
                    c[0] += element<E>(top, high) * element<E>(left, high);
                    c[1] += element<E>(top, high) * element<E>(right, high);
                    c[2] += element<E>(low, high) * element<E>(left, high);
                    c[3] += element<E>(low, high) * element<E>(right, high);
                }
            }
        }
    }
#endif
}

template <class E>
__device__ __forceinline__ uint32_t pack(E low, E high) {
    uint16_t bits[2];
    memcpy(&bits[0], &low, 2);
    memcpy(&bits[1], &high, 2);
    return static_cast<uint32_t>(bits[0]) | static_cast<uint32_t>(bits[1]) << 16;
}

// Two float32 numbers as a sum of TERMS bfloat16 pairs: 16 bits of precision with two terms, 24 with three.
template <int TERMS>
__device__ __forceinline__ void split(float x, float y, uint32_t (&terms)[TERMS]) {
#pragma unroll
    for (int i = 0; i < TERMS; i++) {
        bf16_t const low = from_float<bf16_t>(x), high = from_float<bf16_t>(y);
        terms[i] = pack(low, high);
        x -= to_float(low);
        y -= to_float(high);
    }
}

// An `a` fragment in TERMS terms.
template <int TERMS>
struct Left {
    uint32_t at[TERMS][4];
    __device__ __forceinline__ void set(int i, float x, float y) {
        uint32_t terms[TERMS];
        split<TERMS>(x, y, terms);
#pragma unroll
        for (int n = 0; n < TERMS; n++) at[n][i] = terms[n];
    }
};

// c += a b; products of two small terms are below the precision kept, and left out.
template <int TERMS>
__device__ __forceinline__ void mma_split(float (&c)[4], Left<TERMS> const& a, uint2 const (&b)[TERMS]) {
#pragma unroll
    for (int i = TERMS - 1; i >= 0; i--)
#pragma unroll
        for (int j = TERMS - 1 - i; j >= 0; j--) {
            uint32_t const right[2] = {b[j].x, b[j].y};
            mma<bf16_t>(c, a.at[i], right);
        }
}

}  // namespace vrwkv
