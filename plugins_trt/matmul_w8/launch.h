// A product with 8-bit weights as one call. Pointers are the device's (a host's in the emulated build).
#pragma once

#include "../common/types.h"

// x [tokens, inputs] and y [tokens, outputs] of `type`; codes [outputs, inputs] int8; scales of `scale_type` (the same, or
// float32): [outputs] where `group` is 0, else [outputs, inputs / group]. `inputs` is a multiple of 16, and of `group`,
// which is 32 or a multiple of 64. Returns 0 or a cudaError_t.
VRWKV_EXPORT int32_t vrwkv_matmul_w8(int32_t type, int32_t scale_type, int32_t tokens, int32_t inputs, int32_t outputs,
                                     int32_t group, void const* x, void const* codes, void const* scales, void* y,
                                     void* stream);
