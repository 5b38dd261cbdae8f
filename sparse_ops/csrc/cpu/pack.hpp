// Panels: a few tokens of an activation, rearranged so that the inner loops read one vector after the other.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Pack features [first, last) of `tokens` rows of x (row length `stride`) as [feature / B][panel][B] at `out`, with zeros
// for tokens up to `panel` (a multiple of W / B). `first` is a multiple of W; features end at `stride`.
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

// Write W features [W][panel] of `tokens` tokens to columns [0, width) of y (row length `stride`).
template <class T>
static void unpack(const float* in, int64_t panel, int64_t tokens, T* y, int64_t stride, int width) {
    for (int64_t t = 0; t < tokens; t += W) {
        V a[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) a[i] = load(in + i * panel + t);
        transpose<1>(a);
        T* row = y + t * stride;
        if (width == W && t + W <= tokens) {
            if (((uintptr_t)row | (stride * sizeof(T))) % 64 == 0) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) stream(row + i * stride, a[i]);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) store(row + i * stride, a[i]);
            }
        } else {
            for (int i = 0; i < W && t + i < tokens; ++i) store_some(row + i * stride, a[i], width);
        }
    }
}

template <class T>
INLINE void prefetch_rows(const T* x, int64_t elements, int64_t part, int64_t parts) {
    int64_t lines = elements * (int64_t)sizeof(T) / 64;
    const char* p = (const char*)x;
    for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i) __builtin_prefetch(p + 64 * i, 0, 2);
}

}  // namespace SPARSE_OPS_LEVEL
