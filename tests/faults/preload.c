// Faults of the operating system, put between a program and the C library with LD_PRELOAD: the k-th operation of a kind on
// files under one folder fails, or the process is killed just before it. What the program is built from stays as it is.
//
//   FAULTS_UNDER   folder whose files count (a prefix of absolute paths)
//   FAULTS_AT      which operation, from 1; 0 counts and fails nothing
//   FAULTS_OF      write, sync, rename, make, remove, read or change (all but read)
//   FAULTS_HOW     an errno's number; "kill"; or "short", which cuts every read to 7 bytes
//   FAULTS_BYTES   with FAULTS_OF=write: the disk is full after so many bytes, from then on
//   FAULTS_COUNT   file that gets the number of operations and bytes at exit

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, SYNC, RENAME, MAKE, REMOVE, READ, N_KINDS };
static const char *const NAMES[N_KINDS] = {"write", "sync", "rename", "make", "remove", "read"};

static const char *under;
static size_t under_len;
static long at;
static int wanted[N_KINDS];
static int how_errno;
static int is_kill, is_short;
static long long room = -1;
static atomic_long n_ops;
static atomic_llong n_bytes;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void set_up(void) {
    const char *of = getenv("FAULTS_OF"), *how = getenv("FAULTS_HOW");
    under = getenv("FAULTS_UNDER");
    if (!under || !of) {
        under = NULL;
        return;
    }
    under_len = strlen(under);
    at = getenv("FAULTS_AT") ? atol(getenv("FAULTS_AT")) : 0;
    for (int kind = 0; kind < N_KINDS; kind++)
        wanted[kind] = strcmp(of, NAMES[kind]) == 0 || (strcmp(of, "change") == 0 && kind != READ);
    is_kill = how && strcmp(how, "kill") == 0;
    is_short = how && strcmp(how, "short") == 0;
    how_errno = how ? atoi(how) : EIO;
    if (getenv("FAULTS_BYTES")) room = atoll(getenv("FAULTS_BYTES"));
}

// Other libraries' constructors may write before this one's.
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int is_path_under(const char *path) {
    pthread_once(&once, set_up);
    return under && path && strncmp(path, under, under_len) == 0;
}

static int is_at_under(int dir, const char *path) {
    pthread_once(&once, set_up);
    if (!under || !path) return 0;
    if (path[0] == '/') return is_path_under(path);
    char link[64], full[PATH_MAX];
    ssize_t len;
    if (dir == AT_FDCWD) {
        return getcwd(full, sizeof full) && is_path_under(full);
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    len = readlink(link, full, sizeof full - 1);
    if (len < 0) return 0;
    full[len] = 0;
    return is_path_under(full);
}

static int is_fd_under(int fd) { return is_at_under(fd, ""); }

// Whether this operation fails; errno says how.
static int fails(enum kind kind) {
    if (!wanted[kind] || is_short) return 0;
    long n = atomic_fetch_add(&n_ops, 1) + 1;
    if (room >= 0 || n != at) return 0;
    if (is_kill) kill(getpid(), SIGKILL);
    errno = how_errno;
    return 1;
}

// How many of so many bytes a full disk still takes; -1 where it takes none.
static ssize_t taken(size_t len) {
    if (!wanted[WRITE]) return (ssize_t)len;
    long long before = atomic_fetch_add(&n_bytes, (long long)len);
    if (room < 0 || before + (long long)len <= room) return (ssize_t)len;
    if (before < room) return (ssize_t)(room - before);
    errno = ENOSPC;
    return -1;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULTS_COUNT");
    if (!path) return;
    FILE *file = fopen(path, "w");
    if (!file) return;
    fprintf(file, "%ld %lld\n", atomic_load(&n_ops), atomic_load(&n_bytes));
    fclose(file);
}

// Who ends without destructors tells too.
__attribute__((noreturn)) void _exit(int code) {
    tell();
    REAL(_exit)(code);
    __builtin_unreachable();
}

ssize_t write(int fd, const void *bytes, size_t len) {
    if (is_fd_under(fd)) {
        if (fails(WRITE)) return -1;
        ssize_t n = taken(len);
        if (n < 0) return -1;
        len = (size_t)n;
    }
    return REAL(write)(fd, bytes, len);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) {
    if (is_fd_under(fd)) {
        if (fails(WRITE)) return -1;
        ssize_t n = taken(len);
        if (n < 0) return -1;
        len = (size_t)n;
    }
    return REAL(pwrite64)(fd, bytes, len, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int n_parts) {
    if (is_fd_under(fd)) {
        if (fails(WRITE)) return -1;
        size_t len = 0;
        for (int i = 0; i < n_parts; i++) len += parts[i].iov_len;
        ssize_t n = taken(len);
        if (n < 0) return -1;
        if ((size_t)n < len) return write(fd, parts[0].iov_base, parts[0].iov_len);
    }
    return REAL(writev)(fd, parts, n_parts);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags) {
    if (is_fd_under(out)) {
        if (fails(WRITE)) return -1;
        // What is asked for is often more than the file has: only a disk that is full already counts.
        if (wanted[WRITE] && room >= 0 && atomic_load(&n_bytes) >= room) {
            errno = ENOSPC;
            return -1;
        }
        ssize_t n = REAL(copy_file_range)(in, in_at, out, out_at, len, flags);
        if (n > 0) atomic_fetch_add(&n_bytes, n);
        return n;
    }
    return REAL(copy_file_range)(in, in_at, out, out_at, len, flags);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t len);
ssize_t sendfile64(int out, int in, off64_t *offset, size_t len) {
    if (is_fd_under(out) && fails(WRITE)) return -1;
    return REAL(sendfile64)(out, in, offset, len);
}

int fsync(int fd) { return is_fd_under(fd) && fails(SYNC) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return is_fd_under(fd) && fails(SYNC) ? -1 : REAL(fdatasync)(fd); }

int rename(const char *from, const char *to) {
    return is_at_under(AT_FDCWD, to) && fails(RENAME) ? -1 : REAL(rename)(from, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return is_at_under(to_dir, to) && fails(RENAME) ? -1 : REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    return is_at_under(AT_FDCWD, path) && fails(MAKE) ? -1 : REAL(mkdir)(path, mode);
}

int ftruncate64(int fd, off64_t len) { return is_fd_under(fd) && fails(WRITE) ? -1 : REAL(ftruncate64)(fd, len); }

int unlink(const char *path) { return is_at_under(AT_FDCWD, path) && fails(REMOVE) ? -1 : REAL(unlink)(path); }

int rmdir(const char *path) { return is_at_under(AT_FDCWD, path) && fails(REMOVE) ? -1 : REAL(rmdir)(path); }

int unlinkat(int dir, const char *path, int flags) {
    return is_at_under(dir, path) && fails(REMOVE) ? -1 : REAL(unlinkat)(dir, path, flags);
}

static int is_making(int flags) { return flags & (O_CREAT | O_TRUNC); }

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if (is_making(flags) && is_at_under(AT_FDCWD, path) && fails(MAKE)) return -1;
    return REAL(open64)(path, flags, mode);
}

ssize_t read(int fd, void *bytes, size_t len) {
    if (is_fd_under(fd)) {
        if (fails(READ)) return -1;
        if (is_short && wanted[READ] && len > 7) len = 7;
    }
    return REAL(read)(fd, bytes, len);
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t offset) {
    if (is_fd_under(fd)) {
        if (fails(READ)) return -1;
        if (is_short && wanted[READ] && len > 7) len = 7;
    }
    return REAL(pread64)(fd, bytes, len, offset);
}
