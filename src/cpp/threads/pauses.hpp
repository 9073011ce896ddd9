// Long calls pause now and then, so that the thread that makes them can say that it lives.
//
// Work is counted, not timed, so that two runs pause at the same places. A call counts what it does in bytes: those that
// it reads or writes, and as much as `row_bytes` for what a row costs beside them. It pauses where all that it holds
// makes sense; what a pause throws ends the call there, half done.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <utility>

namespace ecrec::pauses {

// Work from one pause to the next: 0.2 to 3 ms of it, most where the system has to zero pages. A huge page is as much.
inline constinit std::atomic<std::size_t> bytes_between{std::size_t{2} << 20};

inline constexpr std::size_t row_bytes = 64;         // a look at a row's place
inline constexpr std::size_t step_bytes = 256;       // finding and changing a row
inline constexpr std::size_t new_page_bytes = 4096;  // a page that the system zeroes
inline constexpr std::size_t piece_bytes = 1 << 20;  // of what is copied or looked at in one go
inline constexpr std::size_t piece_rows = 1 << 12;   // the same of rows that are only looked at

// Whom the calls on an object tell. What was done since the last pause counts on from one call to the next.
struct Listener {
    std::function<void(std::size_t)> pause;  // of what was done since the last one; empty: nobody wants to know
    std::size_t done = 0;
};

// Of the call that this thread is in; null where nobody listens, and in the parts of work that several threads divide,
// which end at different times each time.
[[gnu::tls_model("initial-exec")]] inline constinit thread_local Listener* listener = nullptr;

// So much was done. Calls nothing most of the time.
inline void work(std::size_t bytes) {
    Listener* const listens = listener;
    if (listens == nullptr) return;
    listens->done += bytes;
    if (listens->done < bytes_between.load(std::memory_order_relaxed)) [[likely]]
        return;
    listens->pause(std::exchange(listens->done, 0));
}

// Work in this thread is told to a listener, or to nobody, as long as this lives.
class Listening {
public:
    explicit Listening(Listener* to) : before_(std::exchange(listener, to)) {
        if (to != nullptr && !to->pause) listener = nullptr;
    }
    ~Listening() { listener = before_; }
    Listening(const Listening&) = delete;
    Listening& operator=(const Listening&) = delete;

private:
    Listener* before_;
};

// Calls each(first, last) for the pieces of 0..count, each of at most `most`, and counts `cost` for each one of them.
template <class Each>
void in_pieces(std::size_t count, std::size_t most, std::size_t cost, Each&& each) {
    for (std::size_t first = 0; first < count;) {
        const std::size_t last = count - first > most ? first + most : count;
        each(first, last);
        work((last - first) * cost);
        first = last;
    }
}

}  // namespace ecrec::pauses
