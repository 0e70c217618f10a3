// NEON: every 64-bit ARM.
#include "model.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include "simd_neon.h"

#include "isa.h"

namespace vrwkv {
namespace {
bool supported() { return true; }
} // namespace
extern const Isa neon = {"neon", supported, position, run_unit, multiply};
} // namespace vrwkv
#endif
