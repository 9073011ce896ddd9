// Prefetching rows before their turn. A part of loops.inl, and of the scalar kernel.

// On the way to the second-level cache. Rows that are only read, and short ones in steps: many. Long ones that are
// written, too, take a fifth longer from 16 on, however long they are, and 4 to 14 are the same; folds of short ones
// are the same with any (measured: bench/LIMITS.md, "A fourth machine").
constexpr std::size_t few_far_rows = 12, many_far_rows = 64;

// Prefetches rows that may lie anywhere: of each the lines of its first `asked` bytes. The CPU fetches the rest by
// itself, since it is in order. near_bytes: bytes in flight to the first-level cache at a time; far_rows: rows that are
// prefetched ahead where they go to the second-level cache.
template <bool writes>
struct RowsAhead {
    RowsAhead(std::size_t bytes, std::size_t near_bytes, std::size_t far_rows)
        : far(prefetch_into == PrefetchInto::second_level), asked(bytes < asked_max ? bytes : asked_max) {
        const std::size_t near_rows = bytes >= near_bytes / 8 ? 8 : near_bytes / (bytes < 256 ? 256 : bytes);
        rows = far ? far_rows : near_rows;
    }

    void ask_for(const void* row) const {
        // The last byte is asked for whether its line was or not: how many lines a row touches that starts anywhere in
        // one, no CPU can predict.
        ask_for_next(row, 0);
        ask(reinterpret_cast<std::uintptr_t>(row) + asked - 1);
    }

    // Of rows that follow each other the one `distance` bytes on: the line of its last byte is the next row's to ask
    // for. They may end before it; a prefetch beyond does not fault.
    void ask_for_next(const void* row, std::size_t distance) const {
        const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(row) + distance;
        for (std::size_t i = 0; i < asked; i += 64) ask(first + i);
    }

    void ask(std::uintptr_t address) const {
        const void* at = reinterpret_cast<const void*>(address);
        if (far) {
            __builtin_prefetch(at, 0, 2);
        } else {
            __builtin_prefetch(at, writes);
        }
    }

    static constexpr std::size_t asked_max = 2048;
    bool far;
    std::size_t asked;
    std::size_t rows;  // so many ahead
};
