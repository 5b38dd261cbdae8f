// Panels: a few tokens of an activation, rearranged so that the inner loops read one vector after the other.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Pack features [first, last) of `tokens` rows of x (row length `stride`) as [feature / B][panel][B] at `out`, with
// zeros for tokens up to `panel` (a multiple of W / B). `first` is a multiple of W; features end at `stride`.
template <int B, class T>
static void pack(const T* x, int64_t stride, int64_t first, int64_t last, int64_t tokens, int64_t panel, float* out) {
    constexpr int K = W / B;
    for (int64_t f = first; f < last; f += W, out += W * panel) {
        int width = stride - f < W ? (int)(stride - f) : W;
        const T* row = x + f;
        for (int64_t t = 0; t < panel; t += K, row += K * stride) {
            V a[K];
            if (width == W && t + K <= tokens) {
#pragma GCC unroll 16
                for (int i = 0; i < K; ++i) a[i] = load(row + i * stride);
            } else {
                for (int i = 0; i < K; ++i) a[i] = t + i < tokens ? load_some(row + i * stride, width) : V{};
            }
            transpose<B>(a);
#pragma GCC unroll 16
            for (int i = 0; i < K; ++i) store(out + (i * panel + t) * B, a[i]);
        }
    }
}

// Results on their way to memory: [features][panel] of `tokens` tokens, for y's columns [0, features). They are written
// W tokens of W features at a time, between blocks, since a burst of stores would stall the multiplication.
template <class T>
struct Results {
    const float* in = nullptr;
    T* y = nullptr;
    int64_t panel = 0, tokens = 0, stride = 0, features = 0, token = 0;

    void one() {
        V a[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) a[i] = load(in + i * panel + token);
        transpose<1>(a);
        T* row = y + token * stride;
        if (features >= W && token + W <= tokens) {
            if (((uintptr_t)row | (stride * sizeof(T))) % 64 == 0) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) stream(row + i * stride, a[i]);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) store(row + i * stride, a[i]);
            }
        } else {
            int width = (int)smaller(features, W);
            for (int i = 0; i < W && token + i < tokens; ++i) store_some(row + i * stride, a[i], width);
        }
        token += W;
        if (token >= tokens) token = 0, in += W * panel, y += W, features -= W;
    }
    void some(int n) {
        for (; n > 0 && features > 0; --n) one();
    }
    void all() {
        while (features > 0) one();
    }
};

// The next panel's raw lines, asked for while this one is multiplied, a few at every block: in bursts they would fill
// the line buffers that the multiplication needs itself.
struct Ahead {
    const char* at;
    const char* end;
    const char* then = nullptr;  // a second range after the first
    const char* then_end = nullptr;

    // Ask for LINES lines; at the end of the range for its last ones again, which costs little.
    template <int LINES>
    inline void some() {
#pragma GCC unroll 16
        for (int i = 0; i < LINES; ++i) __builtin_prefetch(at + i * 64, 0, 2);
        at = at + LINES * 64 < end ? at + LINES * 64 : end - LINES * 64;
    }
    inline void turn() {
        if (at >= end && then) at = then, end = then_end, then = nullptr;
    }
};

template <class T>
INLINE void rows_ahead(Ahead& ahead, const T* x, int64_t stride, int64_t first, int64_t last, bool second = false) {
    const char *at = (const char*)(x + first * stride), *end = (const char*)(x + last * stride);
    (second ? ahead.then : ahead.at) = at;
    (second ? ahead.then_end : ahead.end) = end;
}

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
