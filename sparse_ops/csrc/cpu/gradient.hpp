// dW = dY^T X at the existing blocks. For blocks of 4, 8 and 16 a vector holds K = W / B tokens of a block's B inputs; it
// meets the same tokens' output gradient, one output at a time, repeated B times. Sums over the K tokens are made once
// per panel.
#pragma once
#include "job.hpp"
#include "pack.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kGradientOutputs = W == 16 ? 8 : 4;
constexpr int kGradientBlocks = 3;

// One panel of G blocks of a row, R of their outputs: blocks' inputs x[g] [tokens][B], gradients either d [tokens][B]
// (K == 1, broadcast from memory) or d [tokens / K][B] vectors (spread before). Adds to sums[g] [B][block].
template <int B, int G, int R>
INLINE void accumulate(const float* const* x, const float* d, int64_t tokens, float* const* sums, int row_length,
                       Ahead& ahead) {
    constexpr int K = W / B;
    ahead.turn();
    const char* line = ahead.at;
    int64_t step = line < ahead.end ? 64 : 0;
    V acc[G][R] = {};
    for (int64_t t = 0; t < tokens; t += K, line += step) {
        __builtin_prefetch(line, 0, 2);
        V xv[G];
#pragma GCC unroll 6
        for (int g = 0; g < G; ++g) xv[g] = load(x[g] + t * B);
#pragma GCC unroll 16
        for (int o = 0; o < R; ++o) {
            V dv = K == 1 ? broadcast(d[t * B + o]) : load(d + t / K * (B * W) + o * W);
#pragma GCC unroll 6
            for (int g = 0; g < G; ++g) acc[g][o] += xv[g] * dv;
        }
    }
    ahead.at = line;
#pragma GCC unroll 6
    for (int g = 0; g < G; ++g) {
        if constexpr (K == 1) {
#pragma GCC unroll 16
            for (int o = 0; o < R; ++o) store(sums[g] + o * row_length, load(sums[g] + o * row_length) + acc[g][o]);
        } else {
            static_assert(R % K == 0, "outputs come in whole vectors of the result");
#pragma GCC unroll 4
            for (int o = 0; o < R; o += K) {
                V part[K];
#pragma GCC unroll 4
                for (int k = 0; k < K; ++k) part[k] = acc[g][o + k];
                store(sums[g] + o * B, load(sums[g] + o * B) + sum_groups<B>(part));
            }
        }
    }
}

// All blocks of one block row. BLOCK = S * B: a block wider than a vector is S x S parts.
template <int B, int S>
static void gradient_row(const Gradient& job, int64_t row, const float* panel, const float* d, int64_t tokens,
                         float* sums, Ahead& ahead) {
    constexpr int BLOCK = S * B, R = B < kGradientOutputs ? B : kGradientOutputs;
    constexpr int GMAX = R == 4 && W == 16 ? 6 : kGradientBlocks;
    int64_t units = (int64_t)(job.ptr[row + 1] - job.ptr[row]) * S;
    const Entry* entries = job.entries + job.ptr[row];
    float* row_sums = sums + (int64_t)job.ptr[row] * BLOCK * BLOCK;
    int64_t passes = (units + GMAX - 1) / GMAX;
    for (int64_t u = 0; u < units; --passes) {
        const float* x[GMAX];
        float* to[GMAX];
        int g = 0, size = (int)((units - u + passes - 1) / passes);  // six blocks by threes, but four by twos
        for (; g < size; ++g, ++u) {
            x[g] = panel + ((int64_t)entries[u / S].source * S + u % S) * job.panel * B;
            to[g] = row_sums + u / S * BLOCK * BLOCK + u % S * B;
        }
        for (int part = 0; part < S; ++part) {
            const float* dp = d + part * job.panel * B;
            for (int o = 0; o < B; o += R) {
                const float* dv = dp + (B == W ? o : o * W);
                switch (g) {
                    case 1: accumulate<B, 1, R>(x, dv, tokens, to, BLOCK, ahead); break;
                    case 2: accumulate<B, 2, R>(x, dv, tokens, to, BLOCK, ahead); break;
                    case 3: accumulate<B, 3 <= GMAX ? 3 : 1, R>(x, dv, tokens, to, BLOCK, ahead); break;
                    case 4: accumulate<B, 4 <= GMAX ? 4 : 1, R>(x, dv, tokens, to, BLOCK, ahead); break;
                    case 5: accumulate<B, 5 <= GMAX ? 5 : 1, R>(x, dv, tokens, to, BLOCK, ahead); break;
                    default: accumulate<B, GMAX, R>(x, dv, tokens, to, BLOCK, ahead); break;
                }
                for (int k = 0; k < g; ++k) to[k] += R * BLOCK;
            }
        }
    }
}

template <int B>
INLINE void spread_block(const float* d, int64_t tokens, float* out) {
    constexpr int K = W / B;
    for (int64_t t = 0; t < tokens; t += K, d += W, out += B * W) spread<B, 0>(load(d), out, Lanes{});
}

// B: the block size, or W where a block is wider; then S = block / W.
template <int B, int S, class T>
static void gradient_blocks(const Gradient& job, int64_t first, int64_t last, float* sums) {
    constexpr int K = W / B, F = S * B > W ? S * B : W;
    int64_t P = job.panel, n_in = round_up(job.n_in, W);
    float* panel = (float*)thread_workspace((n_in * P + F * P + (K > 1 ? B * B * P : 0)) * sizeof(float));
    float* gradients = panel + n_in * P;
    float* wide = gradients + F * P;
    for (int64_t t = first; t < last; t += P) {
        int64_t tokens = smaller(P, last - t), used = round_up(tokens, K);
        pack<B>((const T*)job.x + t * job.n_in, job.n_in, 0, job.n_in, tokens, P, panel);
        Ahead ahead;
        rows_ahead(ahead, (const T*)job.dy, job.n_out, t + tokens, smaller(t + tokens + P, last));
        rows_ahead(ahead, (const T*)job.x, job.n_in, t + tokens, smaller(t + tokens + P, last), true);
        const T* dy = (const T*)job.dy + t * job.n_out;
        for (int64_t f = 0; f < job.n_out; f += F) {
            int64_t end = f + F < job.n_out ? f + F : job.n_out;
            if (job.ptr[f / (S * B)] == job.ptr[end / (S * B)]) continue;
            pack<B>(dy, job.n_out, f, end, tokens, P, gradients);
            for (int64_t o = f; o < end; o += S * B) {
                const float* d = gradients + (o - f) * P;
                if constexpr (K > 1) spread_block<B>(d, used, wide);
                gradient_row<B, S>(job, o / (S * B), panel, K > 1 ? wide : d, used, sums, ahead);
            }
        }
    }
}

// 1x1: dot products over a panel's tokens (zeros beyond the last), W blocks at a time so that their sums make a vector.
constexpr int kPairVectors = 6;

template <class T>
static void gradient_pairs(const Gradient& job, int64_t first, int64_t last, float* sums) {
    constexpr int P = kPairVectors * W;
    int64_t n_resident = job.stream_x ? job.n_out : job.n_in, n_streamed = job.stream_x ? job.n_in : job.n_out;
    const T* resident = (const T*)(job.stream_x ? job.dy : job.x);
    const T* streamed = (const T*)(job.stream_x ? job.x : job.dy);
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
            for (int64_t i = job.chunk_ptr[c]; i < job.chunk_ptr[c + 1]; i += W) {
                ahead.some(W / 2);
                V dot[W];
#pragma GCC unroll 16
                for (int k = 0; k < W; ++k) {
                    const float* a = panel + (int64_t)job.pairs[i + k].resident * P;
                    const float* b = part + (int64_t)job.pairs[i + k].streamed * P;
                    V sum = load(a) * load(b);
#pragma GCC unroll 8
                    for (int v = 1; v < kPairVectors; ++v) sum += load(a + v * W) * load(b + v * W);
                    dot[k] = sum;
                }
                store(sums + i, load(sums + i) + sum_groups<1>(dot));
            }
        }
    }
}

}  // namespace SPARSE_OPS_LEVEL
