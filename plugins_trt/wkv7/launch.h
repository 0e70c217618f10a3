// WKV-7 as one call. Pointers are the device's (a host's in the emulated build), and `stream` is a cudaStream_t.
#pragma once

#include "../common/types.h"

// Bytes of workspace that any call of this many tokens or fewer needs.
VRWKV_EXPORT size_t vrwkv_wkv7_workspace(int32_t type, int32_t batch, int32_t length, int32_t heads);

// inputs: r, w, k, v, a, b [batch, length, heads * 64] of `type` (w of `decay_type`: the same, or float32), and the state
// [batch, heads, 64 keys, 64 values] in float32. outputs: y as r, and the state, which may lie where it came from.
// Returns 0 or a cudaError_t.
VRWKV_EXPORT int32_t vrwkv_wkv7(int32_t type, int32_t decay_type, int32_t batch, int32_t length, int32_t heads,
                                void const* const* inputs, void* const* outputs, void* workspace, int32_t path,
                                void* stream);
