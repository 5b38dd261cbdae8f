// dW = dY^T X at the existing blocks. The narrower of the two is the resident side: a panel of it stays in L2 while the
// other streams by. For blocks of 4, 8 and 16 a vector is a block's resident features of one token, or those of two
// blocks where a block is half a vector, or of four tokens where it is a quarter; it meets one streamed feature at a
// time.
#pragma once
#include "job.hpp"
#include "pack.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kGradientOutputs = W == 16 ? 8 : 4;
constexpr int kGradientUnits = 3;

// Tokens over which a sum is made in registers before it is added to the thread's; the same in every variant. All of so
// many tokens' inputs, and raw ones of the panel that comes next, should stay in L2.
constexpr int64_t kSumTokens = 48;

// How a block of so many features lies in vectors.
template <int BLOCK>
struct Units {
    static constexpr int B = BLOCK < W ? BLOCK : W;                                // features of a block in a vector
    static constexpr int S = BLOCK / B;                                            // vectors of a block, each a unit
    static constexpr bool kTwoBlocks = W / B == 2;                                 // two blocks in a vector
    static constexpr int K = kTwoBlocks ? 1 : W / B;                               // tokens in a vector
    static constexpr int SUMS = BLOCK * (K == 1 ? W : B);                          // floats
    static constexpr int R = BLOCK < kGradientOutputs ? BLOCK : kGradientOutputs;  // streamed features at a time
    static constexpr int G = W == 16 && R == 4 ? 6 : kGradientUnits;               // units at a time
};

// One panel of G units of a block row and R of its streamed features: inputs [tokens][B], the streamed side d [tokens]
// [kLine] (broadcast from memory), or where K > 1 as vectors d [tokens / K][BLOCK] (spread before). Adds to the sums.
template <int BLOCK, int G>
static __attribute__((noinline)) void accumulate(const Unit* units, const float* panel, const float* d, int64_t tokens,
                                                 float* sums) {
    using U = Units<BLOCK>;
    constexpr int B = U::B, K = U::K, R = U::R, STRIDE = K == 1 ? kLine : BLOCK * W;
    V acc[G][R] = {};
    const float *low[G], *high[G];
#pragma GCC unroll 6
    for (int g = 0; g < G; ++g) low[g] = panel + units[g].low, high[g] = panel + units[g].high;
    for (int64_t at = 0; at < tokens * B; at += K * B, d += STRIDE) {
        V xv[G];
#pragma GCC unroll 6
        for (int g = 0; g < G; ++g) {
            xv[g] = U::kTwoBlocks ? blend_halves(low[g] + at, high[g] + at) : load(low[g] + at);
            pin(xv[g]);
        }
#pragma GCC unroll 16
        for (int o = 0; o < R; ++o) {
            V dv = K == 1 ? broadcast(d[o]) : load(d + o * W);
            pin(dv);
#pragma GCC unroll 6
            for (int g = 0; g < G; ++g) multiply_add(acc[g][o], xv[g], dv);
        }
    }
#pragma GCC unroll 6
    for (int g = 0; g < G; ++g, sums += U::SUMS) {
        if constexpr (K == 1) {
#pragma GCC unroll 16
            for (int o = 0; o < R; ++o) store(sums + o * W, load(sums + o * W) + acc[g][o]);
        } else {
            static_assert(R % K == 0, "outputs come in whole vectors of the result");
#pragma GCC unroll 4
            for (int o = 0; o < R; o += K) {
                V part[K];
#pragma GCC unroll 4
                for (int k = 0; k < K; ++k) part[k] = acc[g][o + k];
                store(sums + o * B, load(sums + o * B) + sum_groups<B>(part));
            }
        }
    }
}

template <int BLOCK, int G>
INLINE void accumulate_some(int64_t n, const Unit* units, const float* panel, const float* d, int64_t tokens,
                            float* sums) {
    if constexpr (G > 1) {
        if (n < G) return accumulate_some<BLOCK, G - 1>(n, units, panel, d, tokens, sums);
    }
    accumulate<BLOCK, G>(units, panel, d, tokens, sums);
}

// What will be needed next: the resident side's next panel, and the streamed side's next few features.
struct GradientAhead {
    Ahead resident;
    AheadChunk streamed;
    int64_t resident_lines, streamed_lines;  // at a time
    void some() {
        resident.some(resident_lines);
        streamed.some(streamed_lines);
    }
};

// All blocks of one row.
template <int BLOCK>
static void gradient_row(const Gradient& job, int64_t row, const float* panel, const float* d, int64_t tokens,
                         float* sums, GradientAhead& ahead) {
    using U = Units<BLOCK>;
    int64_t u = job.unit_ptr[row], end = job.unit_ptr[row + 1], passes = (end - u + U::G - 1) / U::G;
    for (; u < end; --passes) {
        int64_t n = (end - u + passes - 1) / passes;  // six units by threes, but four by twos
        for (int o = 0; o < BLOCK; o += U::R) {
            ahead.some();
            for (int64_t t = 0; t < tokens; t += kSumTokens)
                accumulate_some<BLOCK, U::G>(n, job.units + u, panel + t * U::B,
                                             d + t * (U::K == 1 ? kLine : BLOCK * U::B) + (U::K == 1 ? o : o * W),
                                             smaller(kSumTokens, tokens - t),
                                             sums + u * U::SUMS + o * (U::SUMS / BLOCK));
        }
        u += n;
    }
}

// Streamed features that are fetched at a time: every row lies in a page of its own.
constexpr int64_t kStreamedFeatures = 4 * kLine;

// Copy `width` <= kStreamedFeatures features of the streamed side as [width / kLine][panel][kLine].
template <class T>
static void copy_lines(const T* d, int64_t stride, int64_t width, int64_t tokens, int64_t panel, float* out) {
    for (int64_t t = 0; t < tokens; ++t, d += stride, out += kLine)
        for (int64_t f = 0; f < width; f += W)
            store(out + f / kLine * (kLine * panel) + f % kLine,
                  f + W <= width ? load(d + f) : load_some(d + f, (int)(width - f)));
}

template <int B>
INLINE void spread_block(const float* d, int64_t tokens, float* out) {
    constexpr int K = W / B;
    for (int64_t t = 0; t < tokens; t += K, d += W, out += B * W) spread<B, 0>(load(d), out, Lanes{});
}

// Add rows [0, tokens) of d [tokens][n] to sums [n]: a panel that is still in the cache. Some vectors at a time, since
// one would wait for its own sum.
constexpr int kSummed = 8;
template <class T>
static void add_rows(const T* d, int64_t n, int64_t tokens, float* sums) {
    int64_t f = 0;
    for (; f + kSummed * W <= n; f += kSummed * W) {
        V sum[kSummed];
#pragma GCC unroll 8
        for (int v = 0; v < kSummed; ++v) sum[v] = load(sums + f + v * W);
        for (int64_t t = 0; t < tokens; ++t)
#pragma GCC unroll 8
            for (int v = 0; v < kSummed; ++v) sum[v] += load(d + t * n + f + v * W);
#pragma GCC unroll 8
        for (int v = 0; v < kSummed; ++v) store(sums + f + v * W, sum[v]);
    }
    for (; f < n; f += W) {
        const int width = (int)smaller(W, n - f);
        V sum = load_some(sums + f, width);
        for (int64_t t = 0; t < tokens; ++t) sum += load_some(d + t * n + f, width);
        store_some(sums + f, sum, width);
    }
}

template <int BLOCK, class T>
static void gradient_blocks(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    using U = Units<BLOCK>;
    constexpr int B = U::B, K = U::K;
    int64_t P = job.panel, n_resident = round_up(job.n_resident, W), n_streamed = job.n_streamed;
    // `panel` has something on both sides, as blend_halves looks there.
    int64_t sizes[] = {kStreamedFeatures * P, n_resident * P, K > 1 ? BLOCK * W * P / K : W};
    float* line = (float*)thread_workspace((sizes[0] + sizes[1] + sizes[2]) * sizeof(float));
    float *panel = line + sizes[0], *wide = panel + sizes[1];
    int64_t groups = (n_streamed + kLine - 1) / kLine;
    int64_t calls = job.unit_ptr[n_streamed / BLOCK] * (BLOCK / U::R) / U::G + 1;
    const T* resident = (const T*)job.resident;
    for (int64_t t = first; t < last; t += P) {
        int64_t tokens = smaller(P, last - t), next = t + tokens, next_tokens = smaller(P, last - next);
        pack<B>(resident + t * job.n_resident, job.n_resident, 0, job.n_resident, tokens, P, panel);
        GradientAhead ahead;
        ahead.resident.set(resident, job.n_resident, next, next + next_tokens);
        ahead.resident_lines = ahead.resident.lines() / calls + 1;
        ahead.streamed_lines = tokens * groups / calls + 1;
        const T* streamed = (const T*)job.streamed + t * n_streamed;
        for (int64_t f = 0; f < n_streamed; f += kStreamedFeatures) {
            int64_t end = smaller(f + kStreamedFeatures, n_streamed);
            if (end < n_streamed)
                ahead.streamed.set(streamed + end, n_streamed, smaller(kStreamedFeatures, n_streamed - end), tokens);
            else
                ahead.streamed.set(streamed + tokens * n_streamed, n_streamed, smaller(kStreamedFeatures, n_streamed),
                                   next_tokens);
            if (job.unit_ptr[f / BLOCK] == job.unit_ptr[end / BLOCK]) continue;
            if constexpr (K == 1)
                copy_lines(streamed + f, n_streamed, end - f, tokens, P, line);
            else
                pack<B>(streamed, n_streamed, f, end, tokens, P, line);
            for (int64_t o = f; o < end; o += BLOCK) {
                const float* d = line + (K == 1 ? (o - f) / kLine * (kLine * P) + (o - f) % kLine : (o - f) * P);
                if constexpr (K > 1) {
                    spread_block<B>(d, round_up(tokens, K), wide);
                    d = wide;
                }
                gradient_row<BLOCK>(job, o / BLOCK, panel, d, round_up(tokens, K), sums, ahead);
            }
        }
        if (bias) add_rows((const T*)job.dy + t * job.n_out, job.n_out, tokens, bias);
    }
}

// 1x1: dot products over a panel's tokens (zeros beyond the last), of a chunk of the streamed side at a time.
constexpr int kDotVectors = 6;

// The sums of N vectors, in the first lanes, from a vector of N groups of partial sums.
template <int N, int S = W / N / 2, size_t... J>
INLINE V fold(V v, std::index_sequence<J...> lanes) {
    if constexpr (S > 0)
        return fold<N, S / 2>(v + SHUFFLE2(v, v, ((int)J ^ S)...), lanes);
    else if constexpr (N < W)
        return SHUFFLE2(v, v, ((int)J % N * (W / N))...);
    else
        return v;
}

static void dot_group(const DotGroup& group, const float* resident, const float* streamed, float* sums) {
    constexpr int N = kDots < W ? kDots : W;
    const float* b = resident + group.resident;
    V bv[kDotVectors];
    load_pinned(b, bv);
#pragma GCC unroll 2
    for (int first = 0; first < kDots; first += N) {
        V dot[N];
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
            const float* a = streamed + group.streamed[first + k];
            pin(a);
            dot[k] = load(a) * bv[0];
#pragma GCC unroll 8
            for (int v = 1; v < kDotVectors; ++v) multiply_add(dot[k], a + v * W, bv[v]);
        }
        float part[W];
        store(part, fold<N>(sum_groups<W / N>(dot), Lanes{}));
        for (int k = 0; k < N; ++k) sums[first + k] += part[k];
    }
}

template <class T>
static void gradient_dots(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    constexpr int P = kDotVectors * W;
    int64_t n_resident = job.n_resident, n_streamed = job.n_streamed;
    const T* resident = (const T*)job.resident;
    const T* streamed = (const T*)job.streamed;
    float* panel = (float*)thread_workspace((round_up(n_resident, W) + round_up(job.chunk, W)) * P * sizeof(float));
    float* part = panel + round_up(n_resident, W) * P;
    for (int64_t t = first; t < last; t += P) {
        int64_t tokens = smaller(P, last - t), next = t + tokens;
        pack<1>(resident + t * n_resident, n_resident, 0, n_resident, tokens, P, panel);
        for (int64_t c = 0; c < job.n_chunks; ++c) {
            int64_t f = c * job.chunk, end = smaller(f + job.chunk, n_streamed);
            pack<1>(streamed + t * n_streamed, n_streamed, f, end, tokens, P, part);
            AheadChunk ahead;
            if (end < n_streamed)
                ahead.set(streamed + t * n_streamed + end, n_streamed, smaller(job.chunk, n_streamed - end), tokens);
            else
                ahead.set(resident + next * n_resident, n_resident, n_resident, smaller(P, last - next));
            for (int64_t g = job.chunk_ptr[c]; g < job.chunk_ptr[c + 1]; ++g) {
                ahead.some(2);
                dot_group(job.dots[g], panel, part, sums + g * kDots);
            }
        }
        if (bias) add_rows((const T*)job.dy + t * job.n_out, job.n_out, tokens, bias);
    }
}

}  // namespace SPARSE_OPS_LEVEL
