// Loaded before libc (LD_PRELOAD): counts the operations by which a process changes files below a folder, and kills it
// at one of them or lets it fail. `operations_arm` starts counting; victim.py is its only caller.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>

namespace {

// What happens at operation `at`: the process dies before it; in the middle of a write or right after anything else;
// the disk is full or read-only from there on; only this operation fails.
enum Mode { kBefore, kWithin, kFull, kReadOnly, kOnce };

struct {
    bool on;
    long at;
    int mode;
    int log;  // a line for each operation that was done
    char root[2048];
} plan;
std::atomic<long> counted;

enum Effect { kTakesSpace, kFreesSpace };

struct Operation {
    const char* name;
    char path[4096];
    long number;  // 0: not below the folder, none of ours
    bool fails;
};

[[noreturn]] void die() {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

Operation begin(const char* name, Effect effect, int folder, const char* path) {
    Operation made{name, "", 0, false};
    if (!plan.on) return made;
    char base[2048] = "";
    if (!path || path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return made;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return made;
            base[length] = 0;
        }
    }
    snprintf(made.path, sizeof made.path, "%s%s%s", base, path && base[0] ? "/" : "", path ? path : "");
    if (strncmp(made.path, plan.root, strlen(plan.root)) != 0) return made;
    made.number = ++counted;
    const bool now = made.number == plan.at, since = plan.at && made.number >= plan.at;
    if (now && plan.mode == kBefore) die();
    if (since && plan.mode == kFull && effect == kTakesSpace) errno = ENOSPC, made.fails = true;
    if (since && plan.mode == kReadOnly) errno = EROFS, made.fails = true;
    if (now && plan.mode == kOnce) errno = EIO, made.fails = true;
    return made;
}

bool torn(const Operation& operation) { return operation.number == plan.at && plan.at && plan.mode == kWithin; }

template <typename Result>
Result end(const Operation& operation, Result result) {
    if (!operation.number) return result;
    const int kept = errno;
    char line[8192];
    const int length = snprintf(line, sizeof line, "%s %ld %s\n", operation.name, (long)result, operation.path);
    syscall(SYS_write, plan.log, line, length);
    if (torn(operation)) die();
    errno = kept;
    return result;
}

template <typename Function>
Function* real(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int opening(const char* symbol, int folder, const char* path, int flags, mode_t mode, bool at) {
    const bool changes = flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR | O_APPEND);
    Operation operation{symbol, "", 0, false};
    if (changes) operation = begin("open", kTakesSpace, folder, path);
    if (operation.fails) return -1;
    const int result = at ? real<int(int, const char*, int, ...)>(symbol)(folder, path, flags, mode)
                          : real<int(const char*, int, ...)>(symbol)(path, flags, mode);
    return end(operation, result);
}

}  // namespace

// `begin` an operation, fail or do it, `end` it.
#define OPERATION(result, name, parameters, arguments, effect, folder, path) \
    extern "C" result name parameters {                                      \
        const Operation operation = begin(#name, effect, folder, path);      \
        if (operation.fails) return -1;                                      \
        return end(operation, real<result parameters>(#name) arguments);     \
    }

// The same for one that writes `size` bytes: torn, it writes half of them.
#define WRITING(name, parameters, arguments, descriptor, size)                      \
    extern "C" ssize_t name parameters {                                            \
        const Operation operation = begin(#name, kTakesSpace, descriptor, nullptr); \
        if (operation.fails) return -1;                                             \
        if (torn(operation)) size /= 2;                                             \
        return end(operation, real<ssize_t parameters>(#name) arguments);           \
    }

#define OPENING(name)                                                \
    extern "C" int name(const char* path, int flags, ...) {          \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        const mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0; \
        va_end(rest);                                                \
        return opening(#name, AT_FDCWD, path, flags, mode, false);   \
    }

#define OPENING_AT(name)                                                \
    extern "C" int name(int folder, const char* path, int flags, ...) { \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        const mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0;    \
        va_end(rest);                                                   \
        return opening(#name, folder, path, flags, mode, true);         \
    }

OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)
WRITING(write, (int file, const void* data, size_t size), (file, data, size), file, size)
WRITING(pwrite, (int file, const void* data, size_t size, off_t start), (file, data, size, start), file, size)
WRITING(pwrite64, (int file, const void* data, size_t size, off64_t start), (file, data, size, start), file, size)
WRITING(sendfile, (int to, int from, off_t* start, size_t size), (to, from, start, size), to, size)
WRITING(sendfile64, (int to, int from, off64_t* start, size_t size), (to, from, start, size), to, size)
WRITING(copy_file_range, (int from, off64_t* start, int to, off64_t* place, size_t size, unsigned flags),
        (from, start, to, place, size, flags), to, size)
OPERATION(int, fsync, (int file), (file), kTakesSpace, file, nullptr)
OPERATION(int, fdatasync, (int file), (file), kTakesSpace, file, nullptr)
OPERATION(int, ftruncate, (int file, off_t size), (file, size), kTakesSpace, file, nullptr)
OPERATION(int, ftruncate64, (int file, off64_t size), (file, size), kTakesSpace, file, nullptr)
OPERATION(int, mkdir, (const char* path, mode_t mode), (path, mode), kTakesSpace, AT_FDCWD, path)
OPERATION(int, mkdirat, (int folder, const char* path, mode_t mode), (folder, path, mode), kTakesSpace, folder, path)
OPERATION(int, unlink, (const char* path), (path), kFreesSpace, AT_FDCWD, path)
OPERATION(int, unlinkat, (int folder, const char* path, int flags), (folder, path, flags), kFreesSpace, folder, path)
OPERATION(int, rmdir, (const char* path), (path), kFreesSpace, AT_FDCWD, path)
OPERATION(int, rename, (const char* from, const char* to), (from, to), kFreesSpace, AT_FDCWD, to)
OPERATION(int, renameat, (int folder, const char* from, int other, const char* to), (folder, from, other, to),
          kFreesSpace, other, to)

extern "C" void operations_arm(const char* root, long at, int mode, int log) {
    snprintf(plan.root, sizeof plan.root, "%s", root);
    plan.at = at, plan.mode = mode, plan.log = log;
    counted = 0;
    plan.on = true;
}
