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

// Outputs [first, first + R) of one block row over NV vectors of tokens, to out [B][P].
template <int B, int NV, bool TR, int P>
static __attribute__((noinline)) void block_row(const Product& job, int64_t row, int first, const float* panel, float* out) {
    constexpr int R = kOutputs<B>, LINES = B * R / kLine;
    V acc[R][NV];
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o) {
        V start = job.bias ? broadcast(job.bias[row * B + first + o]) : V{};
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[o][v] = start;
    }
    const Entry* e = job.entries + job.ptr[row];
    const Entry* end = job.entries + job.ptr[row + 1];
    // About a row ahead are the weights that are asked for now, a share of each block at every pass over the row.
    const Entry* next = end < job.end ? end : e;
    for (; e < end; ++e, ++next) {
        const float* x = panel + (int64_t)e->source * (B * P);
        const float* w = job.values + (int64_t)e->slot * (B * B) + (TR ? first : first * B);
        pin(x), pin(w);
        next = next < job.end ? next : e;
        const float* ask = job.values + (int64_t)next->slot * (B * B) + first * B;
#pragma GCC unroll 8
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(ask + line * kLine, 0, 3);
#pragma GCC unroll 16
        for (int i = 0; i < B; ++i) {
            V xv[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) xv[v] = load_pinned(x + i * P + v * W);
#pragma GCC unroll 16
            for (int o = 0; o < R; ++o) {
                V s = broadcast(TR ? w[i * B + o] : w[o * B + i]);
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) multiply_add(acc[o][v], xv[v], s);
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out + (first + o) * P + v * W, acc[o][v]);
}

// Tiles [FIRST, LAST) of a group's results, where everything but the addresses is known when this is compiled.
template <int FIRST, int LAST, int P, class T>
INLINE void write_tiles(const float* done, T* to, int64_t stride) {
    if constexpr (FIRST < LAST) {
        constexpr int ACROSS = kLine / W;
        write_tile(done, P, FIRST / ACROSS * W, FIRST % ACROSS * W, to, stride);
        write_tiles<FIRST + 1, LAST, P>(done, to, stride);
    }
}

// Passes [PASS, kLine / R) over kLine / B block rows of a whole panel, while the results of the group before are written
// in as many parts: no branch between the passes depends on data.
template <int B, int NV, bool TR, int PASS, class T>
INLINE void whole_group(const Product& job, int64_t row, const float* panel, float* out, T* y, const float* done, T* to,
                        Ahead& ahead, int64_t lines) {
    constexpr int P = NV * W, R = kOutputs<B>, PASSES = kLine / R, TILES = kLine / W * NV;
    constexpr int A_PASS = (TILES + PASSES - 1) / PASSES, FIRST = PASS * A_PASS, LAST = FIRST + A_PASS;
    if constexpr (PASS < PASSES) {
        ahead.some(lines);
        claim_lines(y, job.n_out, P * PASS / PASSES, P * (PASS + 1) / PASSES);
        write_tiles<FIRST, LAST < TILES ? LAST : TILES, P>(done, to, job.n_out);
        block_row<B, NV, TR, P>(job, row + PASS * R / B, PASS * R % B, panel, out + PASS * R / B * (B * P));
        whole_group<B, NV, TR, PASS + 1>(job, row, panel, out, y, done, to, ahead, lines);
    }
}

template <int B, int NV, bool TR, class T>
static void product_panel(const Product& job, int64_t first_token, int64_t tokens, int64_t row, int64_t last_row,
                          Ahead ahead, const float* panel, float* stage) {
    constexpr int P = kVectors<B> * W, R = kOutputs<B>, PASSES = kLine / R;
    if (row == last_row) return;
    T* y = (T*)job.y + first_token * job.n_out;
    int64_t lines = ahead.lines() / ((last_row - row) * (B / R)) + 1;
    Results<T> done;
    for (int turn = 0; row < last_row; turn = 1 - turn) {
        float* out = stage + turn * (kLine * P);
        int64_t last = smaller(row + kLine / B, last_row);
        Results<T> next = {out, y + row * B, P, tokens, job.n_out, (last - row) * B};
        if (NV * W == P && next.whole_lines() && done.whole_lines()) {
            whole_group<B, NV, TR, 0>(job, row, panel, out, next.y, done.in, done.y, ahead, lines);
            row = last;
        } else {
            for (int pass = 0; row < last; ++row, out += B * P)
                for (int o = 0; o < B; o += R, ++pass) {
                    ahead.some(lines);
                    claim_lines(next.y, job.n_out, tokens * pass / PASSES, tokens * (pass + 1) / PASSES);
                    block_row<B, NV, TR, P>(job, row, o, panel, out);
                }
            done.all();
        }
        done = next;
    }
    done.all();
}

template <int B, bool TR, class T>
static void product_blocks(const Product& job) {
    constexpr int NV = kVectors<B>, P = NV * W;
    int64_t n_in = round_up(job.n_in, W);
    float* stage = (float*)thread_workspace((n_in + 2 * kLine) * P * sizeof(float));
    float* panel = stage + 2 * kLine * P;
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
        ahead.set((const T*)job.x, job.n_in, ahead_first, smaller(ahead_first + P, job.tokens));
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
