// A call's threads and the memory that they keep between calls.
#pragma once
#include <sys/mman.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#include "api.hpp"

struct Workspace {  // mapped by hand: whole pages of 2 MB where the system has them, and none given back between calls
    char* data = nullptr;
    size_t size = 0;
    char* get(size_t bytes) {
        if (bytes > size) {
            release();
            constexpr size_t kHuge = size_t(2) << 20;
            size_t wanted = (bytes + kHuge - 1) / kHuge * kHuge;
            void* p = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
            madvise(p, wanted, MADV_HUGEPAGE);
#endif
            data = (char*)p;
            size = wanted;
        }
        return data;
    }
    void release() {
        if (data) munmap(data, size);
        data = nullptr, size = 0;
    }
    ~Workspace() { release(); }
};

// While one lives, its thread takes numbers below 2^-126 for zero: arithmetic with them is trapped and takes a hundred
// times as long, and heads of which next to no weights exist are full of them.
struct Flushing {
#ifdef __SSE2__
    const unsigned before = _mm_getcsr();
    Flushing() { _mm_setcsr(before | 0x8040); }  // results (FTZ) and operands (DAZ)
    ~Flushing() { _mm_setcsr(before); }
#endif
};

// Call work(part) for every part, on at most `threads` threads. Correct whatever number of threads really comes. Throws
// bad_alloc when a part ran out of memory: no exception may leave a thread of OpenMP's.
inline void for_each_part(Parallel parallel, int threads, int64_t parts, const std::function<void(int64_t)>& work) {
    struct Shared {
        const std::function<void(int64_t)>& work;
        int64_t parts, next;
        bool failed;
    } shared{work, parts, 0, false};
    auto run = [](void* data) {
        Shared& s = *(Shared*)data;
        [[maybe_unused]] Flushing flushing;
        try {
            for (int64_t part; (part = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.parts;) s.work(part);
        } catch (const std::bad_alloc&) {
            __atomic_store_n(&s.failed, true, __ATOMIC_RELAXED);
        }
    };
    int count = (int)std::min<int64_t>(threads, parts);
    if (count <= 1) {
        run(&shared);
    } else if (parallel) {
        parallel(run, &shared, (unsigned)count, 0);
    } else {
        std::vector<std::thread> others;
        for (int i = 1; i < count; ++i) others.emplace_back(run, (void*)&shared);
        run(&shared);
        for (std::thread& t : others) t.join();
    }
    if (shared.failed) throw std::bad_alloc();
}
