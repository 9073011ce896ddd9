// How the kernels ask for rows that lie anywhere in memory before their turn.
#pragma once

namespace ecrec {

// first_level: some 8 KiB ahead, and only what lies anywhere; the CPU fetches by itself what follows in order.
// second_level: 12 or 64 rows ahead, and all that a row needs. A core of Intel can wait for 16 lines on their way to its
// first-level cache, but for more on their way to the second (measured: bench/LIMITS.md, "A fourth machine").
enum class PrefetchInto { first_level, second_level };

// Chosen for this CPU when the program starts. Another choice changes the speed, never a result.
extern PrefetchInto prefetch_into;

}  // namespace ecrec
