// Plain C++: whatever the machine.
#include "model.h"

#define VRWKV_SCALAR
#include "simd_scalar.h"

#include "isa.h"

namespace vrwkv {
namespace {
bool supported() { return true; }
} // namespace
extern const Isa scalar = {"scalar", supported, position, run_unit, multiply};
} // namespace vrwkv
