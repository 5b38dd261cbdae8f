// Y = X W^T and dX = dY W of 16x16 blocks with outputs as lanes, a cache line of them: inputs are broadcast, from the
// rows where they lie or from a packed panel, and results are rows already.
#pragma once
#include "gather.hpp"
#include "pack.hpp"
#include "share.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kLineVectors = kLine / W;

// Tokens at a time, times kLineVectors sums: more of sixteen lanes would need more addresses than there are registers.
constexpr int kTokens = W == 16 ? 8 : W == 8 ? 6 : 2;

// Tokens of a panel: more would push the weights and the next tokens out of L2.
template <bool PACKED>
constexpr int64_t kRowPanel = (PACKED ? 4 : 2) * kTokens;

template <class T>
INLINE void write_line(T* line, const V* a) {
#pragma GCC unroll 4
    for (int v = 0; v < kLineVectors; ++v) store(line + v * W, a[v]);
}

// The sums of some tokens, or their GELU, or their products with `factor`; the sums are spoilt.
template <class T>
static __attribute__((noinline)) void write_lines(V* sums, V* slopes, int64_t tokens, const Target<T>& to) {
    if (to.gelu) gelu_all(sums, slopes, (int)tokens * kLineVectors);
    for (int64_t t = 0; t < tokens; ++t) {
        for (int v = 0; to.factor && v < kLineVectors; ++v)
            sums[t * kLineVectors + v] *= load(to.factor + t * to.stride + v * W);
        write_line(to.y + t * to.stride, sums + t * kLineVectors);
        if (to.slope) write_line(to.slope + t * to.stride, slopes + t * kLineVectors);
    }
}

// One block row's outputs of R tokens, `to` at the first one's first output; x at their inputs, in rows of X or as
// [feature / W][kRowPanel][W], where there may be fewer `tokens` than R and then zeros.
template <int R, bool PACKED, class T>
static __attribute__((noinline)) void row_tile(const Product& job, int64_t row, const float* x, int64_t tokens,
                                               const Target<T>& to) {
    constexpr int64_t FEATURES = PACKED ? W : kLine;  // of a token that follow each other
    const int64_t stride = PACKED ? W : job.n_in;
    V acc[R][kLineVectors];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kLineVectors; ++v) acc[r][v] = job.bias ? load(job.bias + row * kLine + v * W) : V{};
    const RowBlocks blocks = row_blocks(job, 0, row);
    const float* w = row_weights<kLine, 1>(job, blocks, 0);
    for (const Entry* e = blocks.begin; e < blocks.end; ++e, w += kLine * kLine) {
        const float *at[R], *next = x + e[1].source;
        at[0] = x + e->source;
        pin(w), pin(at[0]);
#pragma GCC unroll 24
        for (int r = 1; r < R; ++r) {
            at[r] = at[r - 1] + stride;
            if (!PACKED) pin(at[r]);
        }
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
            if (PACKED) {
                __builtin_prefetch(next + r * kLine / (R * W) * W * kRowPanel<PACKED> + r * kLine % (R * W), 0, 3);
            } else {
                pin(next), __builtin_prefetch(next, 0, 3);
                next += stride;
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLine; ++i) {
            V wv[kLineVectors];
            load_pinned(w + i * kLine, wv);
#pragma GCC unroll 24
            for (int r = 0; r < R; ++r) {
                V s = broadcast(at[r][i / FEATURES * FEATURES * kRowPanel<PACKED> + i % FEATURES]);
                pin(s);
#pragma GCC unroll 4
                for (int v = 0; v < kLineVectors; ++v) multiply_add(acc[r][v], wv[v], s);
            }
        }
    }
    if (to.gelu || to.factor || (PACKED && tokens < R)) {
        V sums[R * kLineVectors], slopes[R * kLineVectors];  // acc itself, were its address taken, would live in memory
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kLineVectors; ++v) sums[r * kLineVectors + v] = acc[r][v];
        write_lines(sums, slopes, PACKED ? tokens : R, to);
    } else {
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) write_line(to.y + r * to.stride, acc[r]);
    }
}

// One block row over the tokens of a panel, R at a time and then what is left; `next`: where the next row goes.
template <int R, bool PACKED, class T>
INLINE void row_tiles(const Product& job, int64_t row, int64_t t, int64_t tokens, const float* x, const Target<T>& to,
                      const Target<T>& next, Ahead& ahead, int64_t lines) {
    for (; PACKED ? t < tokens : t + R <= tokens; t += R) {
        const int64_t here = smaller(R, tokens - t);
        ahead.some(lines);
        next.claim(t, t + here);
        row_tile<R, PACKED, T>(job, row, x + t * (PACKED ? W : job.n_in), here, to.at(t, 0));
    }
    if constexpr (R > 1 && !PACKED) row_tiles<R / 2, PACKED, T>(job, row, t, tokens, x, to, next, ahead, lines);
}

template <bool PACKED, class T>
static void product_rows(const Product& job) {
    constexpr int64_t PANEL = kRowPanel<PACKED>;
    constexpr bool COPIED = PACKED || !std::is_same<T, float>::value;  // bfloat16 is widened
    float* panel = COPIED ? (float*)thread_workspace(PANEL * job.n_in * sizeof(float)) : nullptr;
    const T* all_x = (const T*)job.x;
    const Target<T> all(job);
    Share share(job);
    while (share.next()) {
        const int64_t first = share.first, tokens = share.tokens, ahead_first = share.ahead_first();
        Ahead ahead;
        ahead.set(all_x, job.n_in, ahead_first, share.end(ahead_first));
        int64_t lines = ahead.lines() / ((share.last_row - share.row) * (tokens / kTokens) + 1) + 1;
        const T* rows = all_x + first * job.n_in;
        if constexpr (PACKED)
            pack<W>(rows, job.n_in, 0, job.n_in, tokens, PANEL, panel);
        else if constexpr (COPIED)
            for (int64_t i = 0; i < tokens * job.n_in; i += W) store(panel + i, load(rows + i));
        const float* x = COPIED ? panel : (const float*)(const void*)rows;
        for (int64_t row = share.row; row < share.last_row; ++row) {
            Target<T> to = all.at(first, row * kLine), next = row + 1 < share.last_row ? to.at(0, kLine) : to;
            row_tiles<kTokens, PACKED, T>(job, row, 0, tokens, x, to, next, ahead, lines);
        }
    }
}

template <bool PACKED, class T>
constexpr ProductVariant outputs_as_lanes(const char* name, int64_t longest) {
    return {name,
            longest,
            kRowPanel<PACKED>,
            0,
            PACKED ? kRowPanel<PACKED> : 1,
            gather<kLine, kLine, 1, T>,
            product_rows<PACKED, T>};
}

}  // namespace SPARSE_OPS_LEVEL
