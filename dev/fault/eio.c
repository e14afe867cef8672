/* LD_PRELOAD shim: lets system calls fail as a broken disk would.
 *   FAULT_CALL=fdatasync|fsync|write|pwrite64   which call
 *   FAULT_PATH=TEXT     only files whose path contains TEXT (default: all)
 *   FAULT_AFTER=N       the first N of those calls succeed (default 0)
 *   FAULT_TIMES=N       so many fail then, -1 for all from there on (default 1)
 *   FAULT_ERRNO=N       how (default 5, EIO)
 *   FAULT_TRIGGER=FILE  counting begins when this file exists (default: at once)
 * Counts are per process. A failed sync is not carried out.
 * Build: cc -shared -fPIC -O2 -o eio.so eio.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int path_matches(int fd) {
    const char *part = getenv("FAULT_PATH");
    if (!part) return 1;
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

static int fails(const char *call, int fd) {
    const char *wanted = getenv("FAULT_CALL"), *trigger = getenv("FAULT_TRIGGER");
    int saved = errno;
    if (!wanted || strcmp(wanted, call) || !path_matches(fd) || (trigger && access(trigger, F_OK))) {
        errno = saved;
        return 0;
    }
    long after = number("FAULT_AFTER", 0), times = number("FAULT_TIMES", 1);
    long call_number = __sync_add_and_fetch(&calls, 1);
    if (call_number <= after || (times >= 0 && call_number > after + times)) {
        errno = saved;
        return 0;
    }
    errno = (int)number("FAULT_ERRNO", EIO);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return fails("fsync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails("fdatasync", fd) ? -1 : REAL(fdatasync)(fd); }
ssize_t write(int fd, const void *bytes, size_t count) {
    return fd > 2 && fails("write", fd) ? -1 : REAL(write)(fd, bytes, count);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return fails("pwrite64", fd) ? -1 : REAL(pwrite64)(fd, bytes, count, at);
}
