#include "arena.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vrwkv {

constexpr size_t LARGE_PAGE = size_t(2) << 20;

Arena::Arena(size_t bytes) : size_((bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE) {
#if defined(__linux__)
    // Mapped, so that pages that are never touched cost nothing, and given back when the model is closed.
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *found = mmap(nullptr, size_ + LARGE_PAGE, PROT_READ | PROT_WRITE, how, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    char *raw = static_cast<char *>(found);
    size_t skip = (LARGE_PAGE - uintptr_t(raw) % LARGE_PAGE) % LARGE_PAGE;
    if (skip) munmap(raw, skip);
    if (skip < LARGE_PAGE) munmap(raw + skip + size_, LARGE_PAGE - skip);
    start_ = raw + skip;
    if (bytes >= LARGE_PAGE) madvise(start_, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#else
    start_ = static_cast<char *>(std::aligned_alloc(4096, size_));
    if (!start_) throw std::bad_alloc();
    std::memset(start_, 0, size_);
#endif
}

Arena::~Arena() {
#if defined(__linux__)
    munmap(start_, size_);
#else
    std::free(start_);
#endif
}

void *Arena::take_bytes(size_t bytes) {
    void *here = start_ + used_;
    used_ += rounded(bytes);
    return here;
}

} // namespace vrwkv
