#include "model.h"

#include <cstring>

namespace vrwkv {

#if defined(VRWKV_ONLY_SCALAR) // a build for sanitizers
#define NO_VECTORS
#elif defined(__x86_64__)
extern const Isa avx2, avx512, avx512vnni;
#elif defined(__aarch64__)
extern const Isa neon;
#endif
extern const Isa scalar;

// The best first.
std::vector<const Isa *> all_isas() {
#if defined(NO_VECTORS)
    return {&scalar};
#elif defined(__x86_64__)
    return {&avx512vnni, &avx512, &avx2, &scalar};
#elif defined(__aarch64__)
    return {&neon, &scalar};
#else
    return {&scalar};
#endif
}

const Isa *isa_by_name(const char *name) {
    for (const Isa *isa : all_isas())
        if (*name ? !std::strcmp(isa->name, name) : isa->supported()) return isa;
    return nullptr;
}

} // namespace vrwkv
