/* The least that moves the same bytes, for floors.py: no products, no checks, nothing found by number. Each loop has a way
 * to ask for what is to come (a hint, so far ahead) and, where it writes what it does not read, stores past the caches.
 * Times are CPU seconds of this thread. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

enum { line = 64, no_hint = 0, to_first_level = 1, to_second_level = 2 };

typedef float vector __attribute__((vector_size(line), aligned(4), may_alias));
typedef uint64_t bits __attribute__((vector_size(line), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

INLINE void ask_line(const char *at, int hint) {
    if (hint == to_first_level) __builtin_prefetch(at);
    if (hint == to_second_level) __builtin_prefetch(at, 0, 2);
}

/* What lies in order: the line of the last byte is asked for with what follows. */
INLINE void ask(const char *at, size_t bytes, int hint) {
    for (size_t i = 0; i < bytes; i += line) ask_line(at + i, hint);
}

/* Lies anywhere: without a branch on how many lines it touches. */
INLINE void ask_anywhere(const char *at, size_t bytes, int hint) {
    ask(at, bytes, hint);
    ask_line(at + bytes - 1, hint);
}

/* A row that lies anywhere and, into the second-level cache, what belongs to it and lies in order. */
INLINE void ask_row(const char *anywhere, size_t bytes, const char *in_order, size_t bytes_in_order, int hint) {
    ask_anywhere(anywhere, bytes, hint);
    if (hint == to_second_level) ask(in_order, bytes_in_order, hint);
}

INLINE bits load(const char *at) { return *(const bits *)at; }

INLINE void store(char *at, bits x, int past_caches) {
#if defined(__AVX512F__)
    if (past_caches) {
        _mm512_stream_si512((__m512i *)at, (__m512i)x);
        return;
    }
#elif defined(__AVX__)
    if (past_caches) {
        __m256i halves[2];
        memcpy(halves, &x, line);
        _mm256_stream_si256((__m256i *)at, halves[0]);
        _mm256_stream_si256((__m256i *)at + 1, halves[1]);
        return;
    }
#endif
    (void)past_caches;
    *(bits *)at = x;
}

/* Calls loop with constants for the hint and for past_caches. */
#define FOR_EACH_WAY(hint, past, loop)                          \
    switch ((hint) * 2 + (past)) {                              \
        case 0: loop(no_hint, 0); break;                        \
        case 1: loop(no_hint, 1); break;                        \
        case 2: loop(to_first_level, 0); break;                 \
        case 3: loop(to_first_level, 1); break;                 \
        case 4: loop(to_second_level, 0); break;                \
        case 5: loop(to_second_level, 1); break;                \
    }

INLINE void xor_streams(size_t bytes, int k, int r, const char *const *data, char *const *parity, size_t ahead, int hint,
                        int past) {
    for (size_t i = 0; i + 2 * line <= bytes; i += 2 * line) {
        bits a = load(data[0] + i), b = load(data[0] + i + line);
        ask(data[0] + i + ahead, 2 * line, hint);
        for (int j = 1; j < k; ++j) {
            ask(data[j] + i + ahead, 2 * line, hint);
            a ^= load(data[j] + i);
            b ^= load(data[j] + i + line);
        }
        for (int p = 0; p < r; ++p) {
            store(parity[p] + i, a, past);
            store(parity[p] + i + line, b, past);
        }
    }
}

/* All of parity = the XOR of the data. */
double time_xor_streams(int calls, size_t bytes, int k, int r, const char *const *data, char *const *parity, size_t ahead,
                        int hint, int past) {
    const double start = seconds();
    for (int call = 0; call < calls; ++call) {
#define LOOP(hint, past) xor_streams(bytes, k, r, data, parity, ahead, hint, past)
        FOR_EACH_WAY(hint, past, LOOP)
#undef LOOP
    }
    return seconds() - start;
}

INLINE void fold(const char *source, char *target, size_t lines) {
    for (size_t first = 0; first < lines; first += 4) {
        bits x[4];
        for (size_t i = 0; i < 4; ++i) x[i] = load(target + (first + i) * line) ^ load(source + (first + i) * line);
        for (size_t i = 0; i < 4; ++i) store(target + (first + i) * line, x[i], 0);
    }
}

/* target[m] ^= row m of source, each of 256 or 512 bytes; targets has `ahead` more, which are only asked for. */
double time_fold_rows(size_t rows, size_t bytes, const char *source, char *const *targets, size_t ahead, int hint) {
    const double start = seconds();
    for (size_t m = 0; m < rows; ++m) {
        ask_row(targets[m + ahead], bytes, source + (m + ahead) * bytes, bytes, hint);
        if (bytes == 256) {
            fold(source + m * bytes, targets[m], 4);
        } else {
            fold(source + m * bytes, targets[m], 8);
        }
    }
    return seconds() - start;
}

INLINE void copy_rows(size_t rows, size_t lines, const char *const *sources, char *out, size_t ahead, int hint, int past) {
    const size_t bytes = lines * line;
    for (size_t m = 0; m < rows; ++m) {
        ask_anywhere(sources[m + ahead], bytes, hint);
        if (hint == to_second_level && !past) ask(out + (m + ahead) * bytes, bytes, hint);
        for (size_t i = 0; i < lines; ++i) store(out + m * bytes + i * line, load(sources[m] + i * line), past);
    }
}

/* Row m of out = *sources[m], 256 or 512 bytes; sources has `ahead` more, which are only asked for. */
double time_copy_rows(size_t rows, size_t bytes, const char *const *sources, char *out, size_t ahead, int hint, int past) {
    const double start = seconds();
#define LOOP(hint, past)                                         \
    if (bytes == 256) {                                          \
        copy_rows(rows, 4, sources, out, ahead, hint, past);     \
    } else {                                                     \
        copy_rows(rows, 8, sources, out, ahead, hint, past);     \
    }
    FOR_EACH_WAY(hint, past, LOOP)
#undef LOOP
    return seconds() - start;
}

/* What a step moves. Gradients are summed: row i of gradients is added to sums[i], or set where it is the first. Then
 * `state` of each record follows its sum, and what changed goes past the caches, one behind the other. */
double time_step(size_t ids, size_t rows, size_t bytes, size_t state, const char *gradients, char *const *sums,
                 const char *is_first, char *first_sum, char *const *records, char *deltas, size_t ahead, int hint) {
    const double start = seconds();
    for (size_t i = 0; i < ids; ++i) {
        for (size_t at = 0; at < bytes; at += line) {
            const vector gradient = *(const vector *)(gradients + i * bytes + at);
            const vector before = is_first[i] ? (vector){0} : *(const vector *)(sums[i] + at);
            *(vector *)(sums[i] + at) = before + gradient;
        }
    }
    const size_t record_bytes = bytes + state;
    for (size_t m = 0; m < rows; ++m) {
        ask_row(records[m + ahead], record_bytes, first_sum + (m + ahead) * bytes, bytes, hint);
        for (size_t at = 0; at + line <= record_bytes; at += line) {
            const bits before = load(records[m] + at);
            const bits after = before ^ load(first_sum + m * bytes + at % bytes);
            store(records[m] + at, after, 0);
            store(deltas + m * record_bytes + at, before ^ after, 1);
        }
    }
    return seconds() - start;
}
