// Threads that work through the phases of a job. Whoever is free takes the next unit; nobody waits for a thread that
// holds no unit, so a core that is busy with something else costs what it would have done, and no more.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace vrwkv {

class Pool {
  public:
    // Run unit `unit` of phase `phase`; `worker` is below threads().
    using Unit = void (*)(void *context, int phase, int unit, int worker);

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return int(helpers_.size()) + 1; }

    // Run all units of every phase, each phase after the one before it. The caller is worker 0. One call at a time.
    void run(int phases, const int *units, Unit unit, void *context);

  private:
    // One word tells what there is to do: job number (32 bits), phase (12), units not yet taken (20).
    static constexpr int PHASE_AT = 20, JOB_AT = 32;
    static constexpr uint64_t LEFT = (1u << PHASE_AT) - 1;
    static constexpr uint64_t PHASE = (1u << (JOB_AT - PHASE_AT)) - 1;

    void help(int worker);
    void work(uint64_t job, int worker);
    void finish_unit(int phase, int worker);
    void open(int phase, int worker);
    void publish(uint64_t word);
    uint64_t wait_for_other_than(uint64_t word);

    std::atomic<uint64_t> word_{0};
    std::atomic<int> done_{0};     // units of the open phase that are finished
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    uint64_t job_ = 0;
    int phases_ = 0;
    const int *units_ = nullptr;
    Unit unit_ = nullptr;
    void *context_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> helpers_;
};

} // namespace vrwkv
