#include "pool.h"

#include <chrono>

namespace vrwkv {

namespace {

constexpr auto SPIN = std::chrono::microseconds(60); // then sleep: an idle model burns no core

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

} // namespace

Pool::Pool(int threads) {
    for (int worker = 1; worker < threads; ++worker) helpers_.emplace_back([this, worker] { help(worker); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto &helper : helpers_) helper.join();
}

void Pool::run(int phases, const int *units, Unit unit, void *context) {
    if (helpers_.empty()) {
        for (int phase = 0; phase < phases; ++phase)
            for (int i = 0; i < units[phase]; ++i) unit(context, phase, i, 0);
        return;
    }
    phases_ = phases, units_ = units, unit_ = unit, context_ = context;
    uint64_t job = ++job_ << JOB_AT;
    open(0, 0);
    work(job, 0);
}

void Pool::help(int worker) {
    uint64_t seen = 0;
    while (!stop_) {
        work(seen & ~((uint64_t(1) << JOB_AT) - 1), worker);
        seen = wait_for_other_than(seen);
    }
}

// Take units of this job until there is no more of it. The last phase is followed by a word with phase `phases_`.
void Pool::work(uint64_t job, int worker) {
    uint64_t word = word_.load();
    while ((word >> JOB_AT << JOB_AT) == job) {
        uint64_t left = word & LEFT;
        if (left) {
            if (!word_.compare_exchange_weak(word, word - 1)) continue;
            // With a unit in hand the job cannot end, so its description stays readable.
            int phase = int(word >> PHASE_AT & PHASE);
            unit_(context_, phase, units_[phase] - int(left), worker);
            finish_unit(phase, worker);
            word = word_.load();
        } else if ((word >> PHASE_AT & PHASE) == PHASE) {
            return;
        } else {
            word = wait_for_other_than(word);
            if (stop_) return;
        }
    }
}

void Pool::finish_unit(int phase, int worker) {
    if (done_.fetch_add(1) + 1 == units_[phase]) open(phase + 1, worker);
}

// Open a phase. One that has a single unit is run at once, by whoever opens it: nobody else could do anything.
void Pool::open(int phase, int worker) {
    while (phase < phases_ && units_[phase] <= 1) {
        if (units_[phase] == 1) unit_(context_, phase, 0, worker);
        ++phase;
    }
    done_ = 0;
    uint64_t job = job_ << JOB_AT;
    publish(phase < phases_ ? job | uint64_t(phase) << PHASE_AT | uint64_t(units_[phase]) : job | PHASE << PHASE_AT);
}

void Pool::publish(uint64_t word) {
    word_ = word;
    if (sleepers_) {
        std::lock_guard<std::mutex> hold(mutex_);
        wake_.notify_all();
    }
}

uint64_t Pool::wait_for_other_than(uint64_t word) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; ++i) {
            uint64_t now = word_.load(std::memory_order_acquire);
            if (now != word || stop_) return now;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> hold(mutex_);
    ++sleepers_;
    wake_.wait(hold, [&] { return word_ != word || stop_; });
    --sleepers_;
    return word_;
}

} // namespace vrwkv
