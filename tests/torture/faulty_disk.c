/* A disk that fails when it is told to, and remembers what was written to it: to be loaded by LD_PRELOAD.
 *
 * It numbers the calls that change what is below one folder, from 1, over all threads of a process: `open` for writing,
 * `write` (with pwrite, writev, sendfile, copy_file_range), `fsync` (with fdatasync), `close` of what was open for
 * writing, `rename`, `link`, `symlink`, `unlink`, `mkdir`, `rmdir`, `truncate`. It obeys orders such as
 *
 *     folder=/a/run;log=/b/calls;at=17;do=error:28
 *
 * from the environment variable FAULTY_DISK, or, in a process that was forked, from `faulty_disk_obey(orders)`:
 *
 *     folder   the folder; all else is left alone
 *     log      a file to which each call that succeeded is appended, see `note`
 *     data     1: the log holds what was written, too
 *     at       number of the call that something is done at; 0: at none
 *     times    how many calls it is done to, from that one on; 0: to all (1)
 *     only     names of calls, between commas, to which it is done, and which are numbered (all)
 *     do       error:N    it fails with errno N, and nothing is done
 *              fill       half of what is to be written is written; from then on all that needs room fails with ENOSPC
 *              short      half of what is to be written is written, and the call says so
 *              kill       the process dies of SIGKILL before the call
 *              torn       half of what is to be written is written, then the process dies of SIGKILL
 *              hang       the call never returns
 *              slow:N     the call takes N microseconds longer
 *
 * `rename` is seen even if libc is not asked, for safetensors does without it; `strace -f` tells whether there are others.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, CLOSE, RENAME, LINK, SYMLINK, UNLINK, MKDIR, RMDIR, TRUNCATE, FIRED, MARK, KINDS };
static const char *NAMES[KINDS] = {"open",   "write", "fsync", "close", "rename",   "link", "symlink",
                                   "unlink", "mkdir", "rmdir", "truncate", "fired", "mark"};
enum { NOTHING, ERROR, FILL, SHORT, KILL, TORN, HANG, SLOW };

#define MAX_FILES 4096
static struct {
    long handle; /* 0: not below the folder */
    int is_written;
    char *path;
} files[MAX_FILES];

static char folder[PATH_MAX];
static size_t folder_length;
static int log_file = -1, keeps_data, action, only_some, kinds[KINDS];
static long at, times, amount;
static atomic_long calls, handles, sequence;
static atomic_int is_full;

static void listen_to_traps(void);

/* Nothing below may call one of the functions that are replaced here. */
static long raw(long number, long a, long b, long c, long d, long e) { return syscall(number, a, b, c, d, e); }

static char *word(const char *orders, const char *name, char *into, size_t room) {
    size_t length = strlen(name);
    for (const char *from = orders; from && *from; from = strchr(from, ';') ? strchr(from, ';') + 1 : NULL) {
        if (strncmp(from, name, length) == 0 && from[length] == '=') {
            from += length + 1;
            size_t size = strcspn(from, ";");
            if (size >= room) size = room - 1;
            memcpy(into, from, size);
            into[size] = 0;
            return into;
        }
    }
    return NULL;
}

static long number_of(const char *orders, const char *name, long otherwise) {
    char text[64];
    return word(orders, name, text, sizeof text) ? atol(text) : otherwise;
}

static void trap_renames(void);

void faulty_disk_obey(const char *orders) {
    char text[PATH_MAX];
    trap_renames();
    folder_length = 0;
    action = NOTHING;
    atomic_store(&calls, 0);
    atomic_store(&is_full, 0);
    keeps_data = number_of(orders, "data", 0);
    at = number_of(orders, "at", 0);
    times = number_of(orders, "times", 1);
    if (log_file >= 0) raw(SYS_close, log_file, 0, 0, 0, 0);
    log_file = -1;
    if (word(orders, "log", text, sizeof text)) {
        int opened = raw(SYS_openat, AT_FDCWD, (long)text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644, 0);
        log_file = raw(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 900, 0, 0);
        raw(SYS_close, opened, 0, 0, 0, 0);
    }
    only_some = word(orders, "only", text, sizeof text) != NULL;
    for (int kind = 0; kind < KINDS; kind++) {
        char *found = only_some ? strstr(text, NAMES[kind]) : NULL;
        char after = found ? found[strlen(NAMES[kind])] : 'x';
        kinds[kind] = found && (after == 0 || after == ',') && (found == text || found[-1] == ',');
    }
    if (word(orders, "do", text, sizeof text)) {
        char *colon = strchr(text, ':');
        amount = colon ? atol(colon + 1) : 0;
        if (colon) *colon = 0;
        const char *actions[] = {"nothing", "error", "fill", "short", "kill", "torn", "hang", "slow"};
        for (int known = ERROR; known <= SLOW; known++)
            if (strcmp(text, actions[known]) == 0) action = known;
    }
    if (word(orders, "folder", folder, sizeof folder)) folder_length = strlen(folder);
}

__attribute__((constructor)) static void begin(void) {
    const char *orders = getenv("FAULTY_DISK");
    listen_to_traps();
    if (orders) faulty_disk_obey(orders);
}

/* A record of the log: `sequence kind number handle offset size path TAB target NEWLINE`, then the bytes, if `size`. */
static void note(int kind, long number, long handle, long offset, const char *path, const char *target,
                 const struct iovec *pieces, int count, size_t size) {
    if (log_file < 0) return;
    int before = errno;
    char head[3 * PATH_MAX];
    if (!keeps_data) count = 0;
    int length = snprintf(head, sizeof head, "%ld %s %ld %ld %ld %zu %zu %s\t%s\n", atomic_fetch_add(&sequence, 1) + 1,
                          NAMES[kind], number, handle, offset, size, count ? size : 0, path ? path : "",
                          target ? target : "");
    struct iovec all[64] = {{head, length}};
    size_t left = size;
    int used = 1;
    for (int piece = 0; piece < count && used < 64 && left; piece++, used++) {
        all[used] = pieces[piece];
        if (all[used].iov_len > left) all[used].iov_len = left;
        left -= all[used].iov_len;
    }
    raw(SYS_writev, log_file, (long)all, used, 0, 0);
    errno = before;
}

void faulty_disk_mark(const char *text) {
    if (folder_length) note(MARK, atomic_load(&calls), 0, 0, text, NULL, NULL, 0, 0);
}

/* Return the absolute path, in `into`, if it is the folder or below it, else NULL. */
static char *below(int directory, const char *path, char *into) {
    if (!folder_length || !path) return NULL;
    size_t length = 0;
    if (path[0] != '/') {
        char link[64];
        if (directory == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        long size = raw(SYS_readlinkat, AT_FDCWD, (long)link, (long)into, PATH_MAX - 1, 0);
        if (size <= 0) return NULL;
        length = size;
        if (path[0]) into[length++] = '/';
    }
    if (length + strlen(path) >= PATH_MAX) return NULL;
    strcpy(into + length, path);
    size_t size = strlen(into);
    while (size > 1 && into[size - 1] == '/') into[--size] = 0;
    int is_below = strncmp(into, folder, folder_length) == 0 && (!into[folder_length] || into[folder_length] == '/');
    return is_below ? into : NULL;
}

static int needs_room(int kind) {
    return kind == OPEN || kind == WRITE || kind == MKDIR || kind == LINK || kind == SYMLINK || kind == TRUNCATE;
}

/* Count a call, and do what was ordered for it: -1: it is to fail, 0: to be done, 1: half of it is to be done. */
static int count(int kind, const char *path, long *number) {
    *number = 0;
    if (only_some && !kinds[kind]) return 0;
    *number = atomic_fetch_add(&calls, 1) + 1;
    if (action == NOTHING || !at || *number < at) return 0;
    if (action == FILL) {
        int was_full = atomic_exchange(&is_full, 1);
        if (!was_full) note(FIRED, *number, 0, 0, path, NAMES[kind], NULL, 0, 0);
        if (!was_full && kind == WRITE) return 1;
        if (needs_room(kind)) { errno = ENOSPC; return -1; }
        return 0;
    }
    if (times && *number >= at + times) return 0;
    note(FIRED, *number, 0, 0, path, NAMES[kind], NULL, 0, 0);
    if (action == ERROR) { errno = amount; return -1; }
    if (action == SHORT) return kind == WRITE;
    if (action == TORN && kind == WRITE) return 1;
    if (action == KILL || action == TORN) for (;;) raw(SYS_kill, raw(SYS_getpid, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0);
    if (action == HANG) for (;;) {
        struct timespec rest = {3600, 0};
        raw(SYS_nanosleep, (long)&rest, 0, 0, 0, 0);
    }
    if (action == SLOW) {
        struct timespec rest = {amount / 1000000, amount % 1000000 * 1000};
        raw(SYS_nanosleep, (long)&rest, 0, 0, 0, 0);
    }
    return 0;
}

static void die_if_torn(int half) {
    if (half && action == TORN) for (;;) raw(SYS_kill, raw(SYS_getpid, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0);
}

/* --- files ------------------------------------------------------------------------------------------------------- */

static void forget(int file) {
    if (file < 0 || file >= MAX_FILES || !files[file].handle) return;
    files[file].handle = 0;
    free(files[file].path);
    files[file].path = NULL;
}

static void remember(int file, const char *path, int is_written) {
    forget(file);
    if (file < 0 || file >= MAX_FILES || !path) return;
    files[file].path = strdup(path);
    files[file].is_written = is_written;
    files[file].handle = atomic_fetch_add(&handles, 1) + 1;
}

static int known(int file) { return folder_length && file >= 0 && file < MAX_FILES && files[file].handle; }

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    const char *place = below(directory, path, full);
    int is_written = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    long number = 0;
    if (place && is_written && count(OPEN, place, &number) < 0) return -1;
    int file = raw(SYS_openat, directory, (long)path, flags, mode, 0);
    if (file >= 0) {
        if (place) remember(file, place, is_written);
        else forget(file);
        if (place && is_written && file < MAX_FILES) note(OPEN, number, files[file].handle, flags, place, NULL, NULL, 0, 0);
    }
    return file;
}

#define MODE_OF(flags, last)                           \
    mode_t mode = 0;                                   \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list more;                                  \
        va_start(more, last);                          \
        mode = va_arg(more, int);                      \
        va_end(more);                                  \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags, flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags, flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at_, const char *path, int flags, ...) { MODE_OF(flags, flags) return opened(at_, path, flags, mode); }
int openat64(int at_, const char *path, int flags, ...) { MODE_OF(flags, flags) return opened(at_, path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

static FILE *stream(const char *name, const char *path, const char *mode) {
    FILE *(*next)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    char full[PATH_MAX];
    const char *place = below(AT_FDCWD, path, full);
    int is_written = strpbrk(mode, "wa+") != NULL;
    long number = 0;
    if (place && is_written && count(OPEN, place, &number) < 0) return NULL;
    FILE *file = next(path, mode);
    if (file) {
        int flags = O_WRONLY | (strchr(mode, 'w') ? O_CREAT | O_TRUNC : strchr(mode, 'a') ? O_CREAT | O_APPEND : 0);
        if (place) remember(fileno(file), place, is_written);
        else forget(fileno(file));
        if (place && is_written && fileno(file) < MAX_FILES)
            note(OPEN, number, files[fileno(file)].handle, flags, place, NULL, NULL, 0, 0);
    }
    return file;
}
FILE *fopen(const char *path, const char *mode) { return stream("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return stream("fopen64", path, mode); }

static int closing(int file) {
    if (!known(file) || !files[file].is_written) return 0;
    long number;
    int result = count(CLOSE, files[file].path, &number);
    if (result >= 0) note(CLOSE, number, files[file].handle, 0, files[file].path, NULL, NULL, 0, 0);
    return result < 0 ? -1 : 0;
}

int close(int file) {
    if (file == log_file && log_file >= 0) return 0; /* closers of everything spare it */
    int result = closing(file), why = errno;
    forget(file);
    if (raw(SYS_close, file, 0, 0, 0, 0) < 0) return -1;
    if (result < 0) errno = why;
    return result;
}

int fclose(FILE *file) {
    int (*next)(FILE *) = dlsym(RTLD_NEXT, "fclose");
    int result = closing(fileno(file)), why = errno;
    forget(fileno(file));
    if (next(file) != 0) return EOF;
    if (result < 0) errno = why;
    return result < 0 ? EOF : 0;
}

static ssize_t written(long call, int file, const struct iovec *pieces, int many, off_t offset) {
    size_t size = 0;
    for (int piece = 0; piece < many; piece++) size += pieces[piece].iov_len;
    long number;
    int half = count(WRITE, files[file].path, &number);
    if (half < 0) return -1;
    ssize_t result;
    if (half) {
        /* Half of the first piece that is not empty is half enough. */
        const struct iovec *piece = pieces;
        while (many-- > 1 && !piece->iov_len) piece++;
        size_t length = piece->iov_len > 1 ? piece->iov_len / 2 : piece->iov_len;
        result = offset >= 0 ? raw(SYS_pwrite64, file, (long)piece->iov_base, length, offset, 0)
                             : raw(SYS_write, file, (long)piece->iov_base, length, 0, 0);
        pieces = piece;
        many = 1;
    } else if (call == SYS_write || call == SYS_pwrite64) {
        result = raw(call, file, (long)pieces->iov_base, size, offset, 0);
    } else {
        result = raw(call, file, (long)pieces, many, offset, offset < 0 ? 0 : offset >> 32);
    }
    if (result >= 0) {
        off_t place = offset >= 0 ? offset : raw(SYS_lseek, file, 0, SEEK_CUR, 0, 0) - result;
        note(WRITE, number, files[file].handle, place, files[file].path, NULL, pieces, many, result);
        die_if_torn(half);
    }
    return result;
}

ssize_t write(int file, const void *data, size_t size) {
    if (!known(file)) return raw(SYS_write, file, (long)data, size, 0, 0);
    struct iovec piece = {(void *)data, size};
    return written(SYS_write, file, &piece, 1, -1);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    if (!known(file)) return raw(SYS_pwrite64, file, (long)data, size, offset, 0);
    struct iovec piece = {(void *)data, size};
    return written(SYS_pwrite64, file, &piece, 1, offset);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) { return pwrite(file, data, size, offset); }
ssize_t writev(int file, const struct iovec *pieces, int many) {
    if (!known(file)) return raw(SYS_writev, file, (long)pieces, many, 0, 0);
    return written(SYS_writev, file, pieces, many, -1);
}
ssize_t pwritev(int file, const struct iovec *pieces, int many, off_t offset) {
    if (!known(file)) return raw(SYS_pwritev, file, (long)pieces, many, offset, 0);
    return written(SYS_pwritev, file, pieces, many, offset);
}
ssize_t pwritev64(int file, const struct iovec *p, int many, off64_t offset) { return pwritev(file, p, many, offset); }

/* What the kernel has copied is read again for the log. */
static ssize_t copied(long call, int from, off_t *from_offset, int to, off_t *to_offset, size_t size, long flags) {
    long number = 0;
    if (known(to)) {
        int half = count(WRITE, files[to].path, &number);
        if (half < 0) return -1;
        if (half && size > 1) size /= 2;
        ssize_t result = call == SYS_sendfile
                             ? raw(call, to, from, (long)from_offset, size, 0)
                             : syscall(call, from, from_offset, to, to_offset, size, flags);
        if (result >= 0) {
            off_t place = to_offset ? *to_offset - result : raw(SYS_lseek, to, 0, SEEK_CUR, 0, 0) - result;
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", to);
            char *data = keeps_data && result ? malloc(result) : NULL;
            if (data) {
                int again = raw(SYS_openat, AT_FDCWD, (long)link, O_RDONLY, 0, 0);
                raw(SYS_pread64, again, (long)data, result, place, 0);
                raw(SYS_close, again, 0, 0, 0, 0);
            }
            struct iovec piece = {data, result};
            note(WRITE, number, files[to].handle, place, files[to].path, NULL, &piece, data ? 1 : 0, result);
            free(data);
            die_if_torn(half);
        }
        return result;
    }
    return call == SYS_sendfile ? raw(call, to, from, (long)from_offset, size, 0)
                                : syscall(call, from, from_offset, to, to_offset, size, flags);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    return copied(SYS_sendfile, from, offset, to, NULL, size, 0);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { return sendfile(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    return copied(SYS_copy_file_range, from, from_offset, to, to_offset, size, flags);
}

static int synced(long call, int file) {
    long number = 0;
    int is_known = known(file);
    if (is_known && count(FSYNC, files[file].path, &number) < 0) return -1;
    int result = raw(call, file, 0, 0, 0, 0);
    if (is_known && result == 0)
        note(FSYNC, number, files[file].is_written ? files[file].handle : 0, 0, files[file].path, NULL, NULL, 0, 0);
    return result;
}
int fsync(int file) { return synced(SYS_fsync, file); }
int fdatasync(int file) { return synced(SYS_fdatasync, file); }

int ftruncate(int file, off_t size) {
    long number = 0;
    if (known(file) && count(TRUNCATE, files[file].path, &number) < 0) return -1;
    int result = raw(SYS_ftruncate, file, size, 0, 0, 0);
    if (known(file) && result == 0)
        note(TRUNCATE, number, files[file].handle, size, files[file].path, NULL, NULL, 0, 0);
    return result;
}
int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }

/* --- names ------------------------------------------------------------------------------------------------------- */

static int named(int kind, int directory, const char *path, int directory2, const char *path2, long call, long a, long b,
                 long c, long d, long e) {
    char full[PATH_MAX], full2[PATH_MAX];
    const char *place = below(directory, path, full), *place2 = path2 ? below(directory2, path2, full2) : NULL;
    long number = 0;
    if ((place || place2) && count(kind, place ? place : place2, &number) < 0) return -1;
    int result = raw(call, a, b, c, d, e);
    /* What comes from outside, or goes there, has a name that the other side knows. */
    if ((place || place2) && result == 0)
        note(kind, number, 0, 0, place ? place : path, place2 ? place2 : path2, NULL, 0, 0);
    return result;
}

int renameat2(int d, const char *p, int d2, const char *p2, unsigned flags) {
    return named(RENAME, d, p, d2, p2, SYS_renameat2, d, (long)p, d2, (long)p2, flags);
}
int rename(const char *p, const char *p2) { return renameat2(AT_FDCWD, p, AT_FDCWD, p2, 0); }
int renameat(int d, const char *p, int d2, const char *p2) { return renameat2(d, p, d2, p2, 0); }
int linkat(int d, const char *p, int d2, const char *p2, int flags) {
    return named(LINK, d, p, d2, p2, SYS_linkat, d, (long)p, d2, (long)p2, flags);
}
int link(const char *p, const char *p2) { return linkat(AT_FDCWD, p, AT_FDCWD, p2, 0); }
int symlinkat(const char *to, int d, const char *p) {
    return named(SYMLINK, d, p, d, NULL, SYS_symlinkat, (long)to, d, (long)p, 0, 0);
}
int symlink(const char *to, const char *p) { return symlinkat(to, AT_FDCWD, p); }
int unlinkat(int d, const char *p, int flags) {
    return named(flags & AT_REMOVEDIR ? RMDIR : UNLINK, d, p, d, NULL, SYS_unlinkat, d, (long)p, flags, 0, 0);
}
int unlink(const char *p) { return unlinkat(AT_FDCWD, p, 0); }
int rmdir(const char *p) { return unlinkat(AT_FDCWD, p, AT_REMOVEDIR); }
int mkdirat(int d, const char *p, mode_t mode) {
    return named(MKDIR, d, p, d, NULL, SYS_mkdirat, d, (long)p, mode, 0, 0);
}
int mkdir(const char *p, mode_t mode) { return mkdirat(AT_FDCWD, p, mode); }
int truncate(const char *p, off_t size) {
    int file = open(p, O_WRONLY);
    if (file < 0) return -1;
    int result = ftruncate(file, size), why = errno;
    close(file);
    if (result < 0) errno = why;
    return result;
}

/* --- rename without libc ------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define ARGUMENTS(c) {(c)->gregs[REG_RDI], (c)->gregs[REG_RSI], (c)->gregs[REG_RDX], (c)->gregs[REG_R10]}
#define RESULT(c) (c)->gregs[REG_RAX]
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define ARGUMENTS(c) {(c)->regs[0], (c)->regs[1], (c)->regs[2], (c)->regs[3]}
#define RESULT(c) (c)->regs[0]
#endif

#ifdef ARCHITECTURE
/* The kernel hands over each renameat; what is above uses renameat2 alone. */
static void trapped(int signal, siginfo_t *why, void *context) {
    mcontext_t *registers = &((ucontext_t *)context)->uc_mcontext;
    long given[] = ARGUMENTS(registers);
    int result = renameat2(given[0], (const char *)given[1], given[2], (const char *)given[3], 0);
    RESULT(registers) = result < 0 ? -errno : result;
}

static void listen_to_traps(void) {
    struct sigaction what = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &what, NULL);
}

static void trap_renames(void) {
    static int is_done;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (is_done++) return;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
#else
static void listen_to_traps(void) {}
static void trap_renames(void) {}
#endif
