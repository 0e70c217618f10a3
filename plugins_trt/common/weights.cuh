// Weights as tensor-core fragments: how a lane loads its share of a row, and turns it into 16-bit numbers.
//
// The order of inputs inside a sum is free, so it is chosen for the loads: of 64 neighbouring inputs, lane t of a row's
// four takes 16 that lie side by side (two times eight, where a scale covers only 32), and step s of four multiplies the
// s-th four of those. Activations are read in the same order.
#pragma once

#include "mma.cuh"

namespace vrwkv {

constexpr int kBlock = 64;  // inputs that a warp multiplies at a time
constexpr int kSteps = 4;

#ifdef VRWKV_EMULATE
inline uint32_t byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    uint64_t const bytes = static_cast<uint64_t>(y) << 32 | x;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}
#else
__device__ __forceinline__ uint32_t byte_perm(uint32_t x, uint32_t y, uint32_t s) { return __byte_perm(x, y, s); }
#endif

// Differences of two pairs of 16-bit numbers; exact where it is used.
template <class E>
__device__ __forceinline__ uint32_t subtract(uint32_t x, uint32_t y) {
#if defined(VRWKV_EMULATE)
    return pack(E(element<E>(x, 0) - element<E>(y, 0)), E(element<E>(x, 1) - element<E>(y, 1)));
#else
    uint32_t out;
    if constexpr (IsHalf<E>::value) {
        __half2 a, b;
        memcpy(&a, &x, 4);
        memcpy(&b, &y, 4);
        a = __hsub2(a, b);
        memcpy(&out, &a, 4);
    } else {
        __nv_bfloat162 a, b;
        memcpy(&a, &x, 4);
        memcpy(&b, &y, 4);
        a = __hsub2(a, b);
        memcpy(&out, &a, 4);
    }
    return out;
#endif
}

// Four signed bytes as two pairs, without a conversion instruction: a byte placed in the mantissa of a power of two is
// that power plus the byte.
template <class E>
__device__ __forceinline__ void from_bytes(uint32_t codes, uint32_t (&pairs)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t const selector = i == 0 ? 0x4140 : 0x4342;
        if constexpr (IsHalf<E>::value) {
            uint32_t const raised = byte_perm(codes ^ 0x80808080u, 0x64646464u, selector);  // 1024 + 128 + code
            pairs[i] = subtract<E>(raised, 0x64806480u);
        } else {
            uint32_t const wide = byte_perm(codes, 0, selector);
            // 128 + the lower seven bits, less 128, or 256 for a negative code.
            pairs[i] = subtract<E>((wide & 0x007f007fu) | 0x43004300u, (wide & 0x00800080u) | 0x43004300u);
        }
    }
}

// Where step `step` of lane `t` begins among the 64 inputs of a block.
template <bool NARROW>
__device__ __forceinline__ int step_offset(int t, int step) {
    return NARROW ? step / 2 * 32 + t * 8 + step % 2 * 4 : t * 16 + step * 4;
}

// Signed 8-bit codes, a row of K bytes per output. NARROW: a scale covers 32 inputs.
template <bool NARROW_>
struct Codes8 {
    static constexpr bool NARROW = NARROW_;
    using Stored = int8_t;
    uint4 raw;
    // `row` begins a block of which `left` inputs exist; what does not exist is zero.
    __device__ __forceinline__ void load(int8_t const* row, int t, int left) {
        raw = make_uint4(0, 0, 0, 0);
        if constexpr (NARROW) {
            if (t * 8 < left) read(raw.x, raw.y, row + t * 8);
            if (32 + t * 8 < left) read(raw.z, raw.w, row + 32 + t * 8);
        } else if (t * 16 < left) {
            raw = *reinterpret_cast<uint4 const*>(row + t * 16);
        }
    }
    template <class E>
    __device__ __forceinline__ void unpack(int step, uint32_t (&pairs)[2]) const {
        from_bytes<E>(step == 0 ? raw.x : step == 1 ? raw.y : step == 2 ? raw.z : raw.w, pairs);
    }
    __device__ static int8_t const* at(int8_t const* codes, size_t row, int inputs, int first) {
        return codes + row * static_cast<size_t>(inputs) + first;
    }

  private:
    __device__ static __forceinline__ void read(uint32_t& x, uint32_t& y, int8_t const* from) {
        uint2 const two = *reinterpret_cast<uint2 const*>(from);
        x = two.x;
        y = two.y;
    }
};

// Activations as `b` fragments: one term for 16-bit types, three bfloat16 terms for float32. Codes are exact in either.
template <class T>
struct Activations {
    static constexpr int TERMS = sizeof(T) == 2 ? 1 : 3;
    using Element = std::conditional_t<IsHalf<T>::value, half_t, bf16_t>;
    uint32_t at[TERMS][2];
    __device__ __forceinline__ void set(Four<T> const& x) {
        if constexpr (TERMS == 1) {
            at[0][0] = pack(x.at[0], x.at[1]);
            at[0][1] = pack(x.at[2], x.at[3]);
        } else {
            uint32_t low[TERMS], high[TERMS];
            split<TERMS>(x.at[0], x.at[1], low);
            split<TERMS>(x.at[2], x.at[3], high);
#pragma unroll
            for (int n = 0; n < TERMS; n++) {
                at[n][0] = low[n];
                at[n][1] = high[n];
            }
        }
    }
    __device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4]) const {
#pragma unroll
        for (int n = TERMS - 1; n >= 0; n--) mma<Element>(c, a, at[n]);
    }
};

}  // namespace vrwkv
