// Memory for everything that lives as long as a model, or as the room of its steps.
#pragma once
#include <cstddef>

namespace vrwkv {

// Memory of one piece, aligned, zeroed, in large pages where the system has them.
class Arena {
  public:
    explicit Arena(size_t bytes);
    ~Arena();
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    template <class T> T *take(size_t count) { return static_cast<T *>(take_bytes(count * sizeof(T))); }
    static size_t rounded(size_t bytes) { return (bytes + 127) / 128 * 128; }

  private:
    void *take_bytes(size_t bytes);
    char *start_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

// Counts what an arena must hold, then hands it out: `room` is called twice, with the same requests.
struct Plan {
    Arena *arena = nullptr;
    size_t bytes = 0;
    template <class T> void operator()(T *&pointer, size_t count) {
        if (arena)
            pointer = arena->take<T>(count);
        else
            bytes += Arena::rounded(count * sizeof(T));
    }
};

} // namespace vrwkv
