// Y = X W^T and dX = dY W of 16x16 blocks: lanes are outputs, a cache line of them, and inputs are broadcast from the
// rows where they lie. Only the weights are rearranged, once a call: in the order of the visits, input by input.
#pragma once
#include "gather.hpp"
#include "pack.hpp"
#include "share.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kLineVectors = kLine / W;
constexpr int kTokens = W == 16 ? 8 : W == 8 ? 6 : 2;  // times kLineVectors sums, which fill the registers

template <class T>
INLINE void write_line(T* to, const V (&a)[kLineVectors]) {
    if (kStreams<T> && (uintptr_t)to % 64 == 0) {
        stream(to, a[0]);
    } else {
#pragma GCC unroll 4
        for (int v = 0; v < kLineVectors; ++v) store(to + v * W, a[v]);
    }
}

template <class T>
static __attribute__((noinline)) void write_gelu_lines(const float* sums, int tokens, const Target<T>& to) {
    for (int t = 0; t < tokens; ++t, sums += kLine) {
        V y[kLineVectors], slope[kLineVectors];
        for (int v = 0; v < kLineVectors; ++v) gelu(load(sums + v * W), y[v], slope[v]);
        write_line(to.y + t * to.stride, y);
        if (to.slope) write_line(to.slope + t * to.stride, slope);
    }
}

// One block row's outputs of R tokens: x at the first token, `to` at its first output.
template <int R, class T>
static __attribute__((noinline)) void row_tile(const Product& job, int64_t row, const float* x, const Target<T>& to) {
    V acc[R][kLineVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kLineVectors; ++v) acc[r][v] = job.bias ? load(job.bias + row * kLine + v * W) : V{};
    const RowBlocks blocks = row_blocks(job, 0, row);
    const float* w = row_weights<kLine, 1>(job, blocks, 0);
    int64_t stride = job.n_in;
    for (const Entry* e = blocks.begin; e < blocks.end; ++e, w += kLine * kLine) {
        const float *at[R], *next = x + e[1].source;
        at[0] = x + e->source;
        pin(w), pin(at[0]);
#pragma GCC unroll 16
        for (int r = 1; r < R; ++r) at[r] = at[r - 1] + stride, pin(at[r]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r, next += stride) pin(next), __builtin_prefetch(next, 0, 3);
#pragma GCC unroll 16
        for (int i = 0; i < kLine; ++i) {
            V wv[kLineVectors];
            load_pinned(w + i * kLine, wv);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                V s = broadcast(at[r][i]);
                pin(s);
#pragma GCC unroll 4
                for (int v = 0; v < kLineVectors; ++v) multiply_add(acc[r][v], wv[v], s);
            }
        }
    }
    if (to.gelu) {
        float sums[R * kLine];  // sums that live across a call would not stay in registers before it either
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kLineVectors; ++v) store(sums + r * kLine + v * W, acc[r][v]);
        write_gelu_lines(sums, R, to);
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) write_line(to.y + r * to.stride, acc[r]);
    }
}

// Tokens of a panel: more would push the weights and the next tokens out of L2.
constexpr int64_t kRowPanel = 2 * kTokens;

// One block row over the tokens of a panel, R at a time and then what is left; `next`: where the next row goes.
template <int R, class T>
INLINE void row_tiles(const Product& job, int64_t row, int64_t t, int64_t tokens, const float* x, const Target<T>& to,
                      const Target<T>& next, Ahead& ahead, int64_t lines) {
    for (; t + R <= tokens; t += R) {
        ahead.some(lines);
        next.claim(t, t + R);
        row_tile<R, T>(job, row, x + t * job.n_in, to.at(t, 0));
    }
    if constexpr (R > 1) row_tiles<R / 2>(job, row, t, tokens, x, to, next, ahead, lines);
}

template <class T>
static void product_rows(const Product& job) {
    constexpr bool WIDEN = !std::is_same<T, float>::value;
    float* wide = WIDEN ? (float*)thread_workspace(job.panel * job.n_in * sizeof(float)) : nullptr;
    const T* all_x = (const T*)job.x;
    const Target<T> all = {(T*)job.y, (T*)job.slope, job.n_out, job.gelu};
    Share share(job);
    while (share.next()) {
        const int64_t first = share.first, tokens = share.tokens, ahead_first = share.ahead_first();
        Ahead ahead;
        ahead.set(all_x, job.n_in, ahead_first, share.end(ahead_first));
        int64_t lines = ahead.lines() / ((share.last_row - share.row) * (tokens / kTokens) + 1) + 1;
        const float* x = (const float*)(const void*)(all_x + first * job.n_in);
        if constexpr (WIDEN) {
            for (int64_t i = 0; i < tokens * job.n_in; i += W) store(wide + i, load(all_x + first * job.n_in + i));
            x = wide;
        }
        for (int64_t row = share.row; row < share.last_row; ++row) {
            Target<T> to = all.at(first, row * kLine), next = row + 1 < share.last_row ? to.at(0, kLine) : to;
            row_tiles<kTokens, T>(job, row, 0, tokens, x, to, next, ahead, lines);
        }
    }
    stream_end();
}

}  // namespace SPARSE_OPS_LEVEL
