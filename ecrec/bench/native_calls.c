/* Repeats native calls and takes the time, for ecrec/bench/kernels.py: a call from Python costs more than the work of a small
 * buffer. Times are CPU seconds of this thread, so that other processes cost neither side anything but cache. */
#include <stddef.h>
#include <time.h>

typedef void ours_encode(size_t, int, int, const void *, const unsigned char *const *, unsigned char *const *);
typedef void ours_fold(size_t, const void *, const unsigned char *, unsigned char *);
typedef void ours_fold_rows(size_t, size_t, const void *, const unsigned char *const *, unsigned char *const *);
typedef void isal_encode(int, int, int, unsigned char *, unsigned char **, unsigned char **);
typedef int isal_mad(int, int, int, unsigned char *, unsigned char *, unsigned char *);

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double time_ours_encode(ours_encode *encode, int calls, size_t bytes, int k, int r, const void *coefficients,
                        const unsigned char *const *data, unsigned char *const *parity) {
    const double start = seconds();
    for (int call = 0; call < calls; ++call) encode(bytes, k, r, coefficients, data, parity);
    return seconds() - start;
}

double time_isal_encode(isal_encode *encode, int calls, size_t bytes, int k, int r, unsigned char *tables,
                        unsigned char **data, unsigned char **parity) {
    const double start = seconds();
    for (int call = 0; call < calls; ++call) encode((int)bytes, k, r, tables, data, parity);
    return seconds() - start;
}

double time_ours_fold(ours_fold *fold, int calls, size_t bytes, const void *coefficient, const unsigned char *source,
                      unsigned char *target) {
    const double start = seconds();
    for (int call = 0; call < calls; ++call) fold(bytes, coefficient, source, target);
    return seconds() - start;
}

double time_isal_fold(isal_mad *mad, int calls, size_t bytes, unsigned char *tables, unsigned char *source,
                      unsigned char *target) {
    const double start = seconds();
    for (int call = 0; call < calls; ++call) mad((int)bytes, 1, 0, tables, source, target);
    return seconds() - start;
}

/* targets[i] and coefficient i of parity i; `stride` is the size of a coefficient. */
double time_ours_fold_rows(ours_fold_rows *fold_rows, int parities, size_t rows, size_t bytes, const char *coefficients,
                           size_t stride, const unsigned char *const *sources, unsigned char *const *const *targets) {
    const double start = seconds();
    for (int i = 0; i < parities; ++i) fold_rows(rows, bytes, coefficients + stride * (size_t)i, sources, targets[i]);
    return seconds() - start;
}

double time_isal_fold_rows(isal_mad *mad, int parities, size_t rows, size_t bytes, unsigned char *tables, size_t stride,
                           unsigned char *source, unsigned char *const *const *targets) {
    const double start = seconds();
    for (int i = 0; i < parities; ++i) {
        for (size_t row = 0; row < rows; ++row) {
            mad((int)bytes, 1, 0, tables + stride * (size_t)i, source + row * bytes, targets[i][row]);
        }
    }
    return seconds() - start;
}
