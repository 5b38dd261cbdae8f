// Panels: a few tokens of an activation, rearranged so that the inner loops read one vector after the other.
#pragma once
#include "gelu.hpp"
#include "job.hpp"

namespace SPARSE_OPS_LEVEL {

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Pack features [first, last) of `tokens` rows of x (row length `stride`) as [feature / B][panel][B] at `out`, with
// zeros for tokens up to `panel` (a multiple of W / B). Whole vectors of features are packed, beyond `last` too where
// the row goes on. A few rows at a time from end to end: rows that lie a power of two apart would otherwise throw each
// other out of the cache.
template <int B, class T>
static void pack(const T* x, int64_t stride, int64_t first, int64_t last, int64_t tokens, int64_t panel, float* out) {
    constexpr int K = W / B;
    for (int64_t t = 0; t < panel; t += K, out += W) {
        const T* row = x + t * stride;
        float* to = out;
        for (int64_t f = first; f < last; f += W, to += W * panel) {
            V a[K];
            if (stride - f >= W && t + K <= tokens) {
                load_transposed<B>(row + f, stride, a);
            } else {
                int width = (int)smaller(stride - f, W);
                for (int i = 0; i < K; ++i) a[i] = t + i < tokens ? load_some(row + i * stride + f, width) : V{};
                transpose<B>(a);
            }
#pragma GCC unroll 16
            for (int i = 0; i < K; ++i) store(to + i * panel * B, a[i]);
        }
    }
}

constexpr int kLine = 16;  // floats of a cache line, in which results are written

// Where results go: y [tokens][stride]. With `gelu` the GELU of them, its derivative going to `slope` unless null; else
// what they are multiplied by is at `factor`, unless null.
template <class T>
struct Target {
    T* y = nullptr;
    T* slope = nullptr;
    const T* factor = nullptr;
    int64_t stride = 0;
    bool gelu = false;
    bool past_caches = false;

    Target() = default;
    explicit Target(const Product& job)
        : y((T*)job.y),
          slope(job.gelu ? (T*)job.slope : nullptr),
          factor(job.gelu ? nullptr : (const T*)job.slope),
          stride(job.n_out),
          gelu(job.gelu),
          past_caches(goes_past_caches(y, stride, job.tokens * stride) &&
                      goes_past_caches(slope, stride, job.tokens * stride)) {}
    Target at(int64_t token, int64_t feature) const {
        int64_t offset = token * stride + feature;
        Target there = *this;
        there.y += offset;
        if (slope) there.slope += offset;
        if (factor) there.factor += offset;
        return there;
    }
    // Ask for the lines that will be written or read for tokens [first, last): a store that misses holds up all after
    // it.
    void claim(int64_t first, int64_t last) const {
        for (int64_t t = first; !past_caches && t < last; ++t) {
            __builtin_prefetch(y + t * stride, 1, 3);
            if (slope) __builtin_prefetch(slope + t * stride, 1, 3);
        }
        for (int64_t t = first; factor && t < last; ++t) __builtin_prefetch(factor + t * stride, 0, 3);
    }
};

template <class T>
INLINE void write_rows(T* row, const Target<T>& to, const V (&a)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) put(row + i * to.stride, a[i], to.past_caches);
}

// Not inlined: a compiler may round what it puts together in one place otherwise than in the other.
static __attribute__((noinline)) void gelu_all(V* a, V* slope, int n) {
    for (int i = 0; i < n; ++i) gelu(a[i], a[i], slope[i]);
}

template <class T>
static __attribute__((noinline)) void write_gelu_tile(const float* in, int64_t panel, const Target<T>& to) {
    V a[W], slope[W];
    load_transposed<1>(in, panel, a);
    gelu_all(a, slope, W);
    write_rows(to.y, to, a);
    if (to.slope) write_rows(to.slope, to, slope);
}

// W tokens of W features of in [features][panel].
template <class T>
INLINE void write_tile(const float* in, int64_t panel, const Target<T>& to) {
    V a[W];
    if (to.gelu) return write_gelu_tile(in, panel, to);
    load_transposed<1>(in, panel, a);
    if (to.factor) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) a[i] *= load(to.factor + i * to.stride);
    }
    write_rows(to.y, to, a);
}

// Results on their way to memory: in [features][panel] of `tokens` tokens, for the target's columns [0, features).
template <class T>
struct Results {
    const float* in = nullptr;
    Target<T> to;
    int64_t panel = 0, tokens = 0, features = 0;

    bool whole_lines() const { return tokens == panel && features == kLine; }
    void all() const {
        for (int64_t t = 0; t < tokens; t += W)
            for (int64_t f = 0; f < features; f += W) {
                const float* tile = in + f * panel + t;
                if (t + W <= tokens && f + W <= features)
                    write_tile(tile, panel, to.at(t, f));
                else
                    some(tile, to.at(t, f), smaller(W, tokens - t), (int)smaller(W, features - f));
            }
    }
    void some(const float* tile, const Target<T>& at, int64_t rows, int width) const {
        V a[W], slope[W];
        load_transposed<1>(tile, panel, a);
        if (to.gelu) gelu_all(a, slope, W);
        for (int64_t i = 0; i < rows; ++i) {
            if (at.factor) a[i] *= load_some(at.factor + i * at.stride, width);
            store_some(at.y + i * at.stride, a[i], width);
            if (at.slope) store_some(at.slope + i * at.stride, slope[i], width);
        }
    }
};

// The next panel's raw lines, asked for while this one is multiplied, a few at every block: in bursts they would fill
// the line buffers that the multiplication needs itself. After them what the next panel's results are multiplied by: as
// they are written it comes a line of every row, and memory that is asked in that order answers at a third of its
// speed.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;
    const char *factor = nullptr, *factor_end = nullptr;

    template <class T>
    void set(const T* x, int64_t stride, int64_t first, int64_t last) {
        at = (const char*)(x + first * stride), end = (const char*)(x + last * stride);
        factor = factor_end = nullptr;
    }
    template <class T>
    void then(const T* factors, int64_t stride, int64_t first, int64_t last) {
        factor = (const char*)(factors + first * stride), factor_end = (const char*)(factors + last * stride);
    }
    int64_t lines() const { return (end - at + 63) / 64 + (factor_end - factor + 63) / 64; }
    void some(int64_t n) {
        for (; n > 0 && at < end; --n, at += 64) __builtin_prefetch(at, 0, 2);
        reached(at);
    }
    void reached(const char* line) {
        at = line;
        if (at >= end && factor < factor_end) at = factor, end = factor_end, factor = factor_end;
    }
};

// The same at every step of a loop whose registers are few: `lines` at each, and in the last loop some beyond the end.
struct AheadSteps {
    const char* at;
    const int64_t lines;
    AheadSteps(const Ahead& ahead, int64_t lines) : at(ahead.at), lines(ahead.at < ahead.end ? lines : 0) {}
    inline void some() {
        for (int64_t n = 0; n < lines; ++n, at += 64) __builtin_prefetch(at, 0, 2);
    }
    void end(Ahead& ahead) const { ahead.reached(at); }
};

// The same for a chunk of columns: `width` elements of each of `rows` rows.
struct AheadChunk {
    const char* at = nullptr;
    int64_t row_bytes = 0, lines = 0, left = 0, line = 0;

    template <class T>
    void set(const T* x, int64_t stride, int64_t width, int64_t rows) {
        at = (const char*)x, row_bytes = stride * sizeof(T), lines = (width * (int64_t)sizeof(T) + 63) / 64, line = 0;
        left = rows * lines;
    }
    inline void some(int n) {
        for (; n > 0 && left > 0; --n, --left) {
            __builtin_prefetch(at + line * 64, 0, 2);
            if (++line == lines) line = 0, at += row_bytes;
        }
    }
};

}  // namespace SPARSE_OPS_LEVEL
