// Preloaded into a process: one call of the operating system fails, or writes a few bytes only, or kills the process,
// in files whose name has FAULTY_NAME in it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is(const char* variable, const char* value) {
    const char* found = getenv(variable);
    return found != NULL && strcmp(found, value) == 0;
}

static int is_named(const char* path) {
    const char* name = getenv("FAULTY_NAME");
    return name != NULL && strstr(path, name) != NULL;
}

static int is_open_as_named(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_named(path);
}

static int fails(const char* call) {
    if (!is("FAULTY_CALL", call)) return 0;
    if (is("FAULTY_HOW", "kill")) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return 1;
}

static int opens(const char* path, int flags, unsigned mode) {
    static int (*real)(const char*, int, ...);
    if (real == NULL) real = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open");
    if ((flags & O_CREAT) != 0 && is_named(path) && fails("open")) return -1;
    return real(path, flags, mode);
}

int open(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const unsigned mode = (flags & O_CREAT) != 0 ? va_arg(rest, unsigned) : 0;
    va_end(rest);
    return opens(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const unsigned mode = (flags & O_CREAT) != 0 ? va_arg(rest, unsigned) : 0;
    va_end(rest);
    return opens(path, flags | O_LARGEFILE, mode);
}

static ssize_t writes(int descriptor, const void* data, size_t bytes, off_t offset) {
    static ssize_t (*real)(int, const void*, size_t, off_t);
    static unsigned calls;
    if (real == NULL) real = (ssize_t(*)(int, const void*, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (is_open_as_named(descriptor)) {
        if (fails("write")) return -1;
        if (is("FAULTY_HOW", "few")) {
            if (++calls % 3 == 0) {
                errno = EINTR;
                return -1;
            }
            const size_t few = bytes < 10000 ? calls % 7 + 1 : 100000 + calls % 7;
            if (bytes > few) bytes = few;
        }
    }
    return real(descriptor, data, bytes, offset);
}

ssize_t pwrite(int descriptor, const void* data, size_t bytes, off_t offset) {
    return writes(descriptor, data, bytes, offset);
}

ssize_t pwrite64(int descriptor, const void* data, size_t bytes, off_t offset) {
    return writes(descriptor, data, bytes, offset);
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (is_open_as_named(descriptor) && fails("fsync")) return -1;
    return real(descriptor);
}

int rename(const char* from, const char* to) {
    static int (*real)(const char*, const char*);
    if (real == NULL) real = (int (*)(const char*, const char*))dlsym(RTLD_NEXT, "rename");
    if (is_named(to) && fails("rename")) return -1;
    return real(from, to);
}
