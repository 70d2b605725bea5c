/* Makes the n-th call that changes files below a folder fail; loaded with LD_PRELOAD, set by `arm`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long countdown, failures;
static int number, once;

/* Fail the n-th call (0: none) with this error, and all later ones unless only once. */
void arm(const char *below, long n, int error, int only_once) {
    snprintf(folder, sizeof folder, "%s", below);
    countdown = n; number = error; once = only_once; failures = 0;
}
long failed(void) { return failures; }

static int due(const char *path) {
    if (!countdown || strncmp(path, folder, strlen(folder))) return 0;
    if (countdown > 1) { countdown--; return 0; }
    if (once) countdown = 0;
    failures++;
    errno = number;
    return 1;
}
static int due_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!countdown) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return due(path);
}
#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t n) { REAL(ssize_t, "write", int, const void *, size_t); return due_fd(fd) ? -1 : real(fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { REAL(ssize_t, "pwrite", int, const void *, size_t, off_t); return due_fd(fd) ? -1 : real(fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t); return due_fd(fd) ? -1 : real(fd, data, n, at); }
int fsync(int fd) { REAL(int, "fsync", int); return due_fd(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); return due_fd(fd) ? -1 : real(fd); }
int ftruncate(int fd, off_t n) { REAL(int, "ftruncate", int, off_t); return due_fd(fd) ? -1 : real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(int, "ftruncate64", int, off64_t); return due_fd(fd) ? -1 : real(fd, n); }
int rename(const char *a, const char *b) { REAL(int, "rename", const char *, const char *); return due(b) ? -1 : real(a, b); }
int link(const char *a, const char *b) { REAL(int, "link", const char *, const char *); return due(b) ? -1 : real(a, b); }
int unlink(const char *a) { REAL(int, "unlink", const char *); return due(a) ? -1 : real(a); }
int mkdir(const char *a, mode_t mode) { REAL(int, "mkdir", const char *, mode_t); return due(a) ? -1 : real(a, mode); }
static int creates(const char *path, int flags) { return (flags & O_CREAT) && due(path); }
int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
    return creates(path, flags) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
    return creates(path, flags) ? -1 : real(path, flags, mode);
}
