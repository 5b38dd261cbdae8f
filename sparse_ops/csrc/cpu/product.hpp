// Y = X W^T and dX = dY W for blocks of 4, 8 and 16: lanes are tokens, weights are broadcast scalars, so that both
// products share this code and the one values array.
#pragma once
#include "job.hpp"
#include "pack.hpp"

namespace SPARSE_OPS_LEVEL {

// Vectors of tokens in a panel, and outputs of a block accumulated at a time: together they fill the registers.
template <int B>
constexpr int kVectors = W == 16 && B == 4 ? 4 : 3;
template <int B>
constexpr int kOutputs = W == 16 && B > 4 ? 8 : 4;

// Outputs [O, O + R) of one block row over NV vectors of tokens, to out [R][P].
template <int B, int NV, bool TR, int P>
INLINE void block_row(const Product& job, int64_t row, int first, const float* panel, float* out, Ahead& ahead) {
    constexpr int R = kOutputs<B>;
    V acc[R][NV];
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o) {
        V start = job.bias ? broadcast(job.bias[row * B + first + o]) : V{};
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[o][v] = start;
    }
    const Entry* end = job.entries + job.ptr[row + 1];
    for (const Entry* e = job.entries + job.ptr[row]; e < end; ++e) {
        const float* x = panel + (int64_t)e->source * (B * P);
        const float* w = job.values + (int64_t)e->slot * (B * B) + (TR ? first : first * B);
        ahead.some<B == 16 ? 6 : B / 2 - 1>();
        const float* next_x = panel + (int64_t)e[1].source * (B * P);
        const float* next_w = job.values + (int64_t)e[4].slot * (B * B);
#pragma GCC unroll 4
        for (int i = 0; i < B; ++i) {
            V xv[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                xv[v] = load(x + i * P + v * W);
                __builtin_prefetch(next_x + i * P + v * W, 0, 3);
            }
            if (i * B % 16 == 0) __builtin_prefetch(next_w + i * B, 0, 3);
#pragma GCC unroll 16
            for (int o = 0; o < R; ++o) {
                V s = broadcast(TR ? w[i * B + o] : w[o * B + i]);
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) acc[o][v] += xv[v] * s;
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out + (first + o) * P + v * W, acc[o][v]);
}

template <int B, int NV, bool TR, class T>
static void product_panel(const Product& job, int64_t first_token, int64_t tokens, int64_t row, int64_t last_row,
                          Ahead ahead, const float* panel, float* stage) {
    constexpr int P = kVectors<B> * W, F = B > W ? B : W, PARTS = F / kOutputs<B>;
    constexpr int TILES = (F / W * NV + PARTS - 1) / PARTS;
    T* y = (T*)job.y + first_token * job.n_out;
    Results<T> results;
    for (int64_t f = row * B, turn = 0; row < last_row; f += F, ++turn) {
        float* out = stage + turn % 2 * (F * P);
        float* to = out;
        for (int part = 0; part < F / B && row < last_row; ++part, ++row, to += B * P)
            for (int o = 0; o < B; o += kOutputs<B>) {
                results.some(TILES);
                block_row<B, NV, TR, P>(job, row, o, panel, to, ahead);
            }
        results.all();
        results = {out, y + f, P, tokens, job.n_out, row * B - f};
    }
    results.all();
}

template <int B, bool TR, class T>
static void product_blocks(const Product& job) {
    constexpr int NV = kVectors<B>, P = NV * W;
    int64_t n_in = round_up(job.n_in, W);
    float* stage = (float*)thread_workspace((n_in + 2 * 16) * P * sizeof(float));
    float* panel = stage + 2 * 16 * P;
    int64_t panels = (job.tokens + P - 1) / P, jobs = panels * job.n_groups, packed = -1;
    int64_t mine = __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED);
    while (mine < jobs) {
        int64_t index = mine / job.n_groups, group = mine % job.n_groups;
        int64_t first = index * P, tokens = smaller(P, job.tokens - first);
        if (packed != index) pack<1>((const T*)job.x + first * job.n_in, job.n_in, 0, job.n_in, tokens, P, panel);
        packed = index;
        mine = __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED);
        int64_t ahead_first = mine < jobs ? mine / job.n_groups * P : job.tokens;
        Ahead ahead;
        rows_ahead(ahead, (const T*)job.x, job.n_in, ahead_first, smaller(ahead_first + P, job.tokens));
        int64_t row = job.groups[group], last = job.groups[group + 1];
        if (tokens > 2 * W)
            product_panel<B, NV, TR, T>(job, first, tokens, row, last, ahead, panel, stage);
        else if (tokens > W)
            product_panel<B, 2, TR, T>(job, first, tokens, row, last, ahead, panel, stage);
        else
            product_panel<B, 1, TR, T>(job, first, tokens, row, last, ahead, panel, stage);
    }
}

template <int B, class T>
static void product_transposed(const Product& job) {
    if (job.transposed)
        product_blocks<B, true, T>(job);
    else
        product_blocks<B, false, T>(job);
}

}  // namespace SPARSE_OPS_LEVEL
