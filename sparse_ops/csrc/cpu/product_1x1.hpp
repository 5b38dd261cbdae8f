// Y = X W^T and dX = dY W for 1x1 blocks. A chunk of features of a panel stays in L1 while every output row adds its
// share; without that each multiply-add would wait for one vector from L2. Two rows of equal count at a time hide the latency.
#pragma once
#include "job.hpp"
#include "pack.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kScalarVectors = 4;
constexpr int kScalarPanel = kScalarVectors * W;

template <int ROWS>
INLINE void add_rows(const Scalar* s, int count, const float* panel, const int32_t* rows, float* sums) {
    constexpr int P = kScalarPanel, NV = kScalarVectors;
    V acc[ROWS][NV];
    float* y[ROWS];
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) {
        y[r] = sums + (int64_t)rows[r] * P;
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = load(y[r] + v * W);
    }
    for (int j = 0; j < count; ++j, s += ROWS) {
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; ++r) {
            const float* x = panel + (int64_t)s[r].source * P;
            V w = broadcast(s[r].weight);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) multiply_add(acc[r][v], load(x + v * W), w);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(y[r] + v * W, acc[r][v]);
}

static void add_chunk(const ScalarPlan& plan, int64_t chunk, const int32_t*& rows, const Scalar*& s, const float* panel,
                      float* sums, AheadChunk& ahead) {
    for (int64_t r = plan.run_ptr[chunk]; r < plan.run_ptr[chunk + 1]; ++r) {
        int count = plan.runs[r].count, n = plan.runs[r].n_rows, i = 0;
        for (; i + 2 <= n; i += 2, rows += 2, s += 2 * count) {
#pragma GCC unroll 8
            for (int v = 0; v < 2 * kScalarVectors; ++v)
                __builtin_prefetch(sums + (int64_t)rows[4 + v % 2] * kScalarPanel + v / 2 * W, 1, 3);
            ahead.some(2);
            add_rows<2>(s, count, panel, rows, sums);
        }
        for (; i < n; ++i, ++rows, s += count) add_rows<1>(s, count, panel, rows, sums);
    }
}

template <class T>
static void product_scalars(const Product& job) {
    constexpr int P = kScalarPanel;
    const ScalarPlan& plan = job.scalar;
    int64_t n_out = round_up(job.n_out, W);
    float* panel = (float*)thread_workspace((n_out + plan.chunk) * P * sizeof(float));
    float* sums = panel + plan.chunk * P;
    int64_t panels = (job.tokens + P - 1) / P, mine = __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED);
    while (mine < panels) {
        int64_t first = mine * P, tokens = job.tokens - first < P ? job.tokens - first : P;
        const T* x = (const T*)job.x + first * job.n_in;
        mine = __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED);
        int64_t next = mine < panels ? mine * P : job.tokens;
        AheadChunk ahead;
        for (int64_t o = 0; o < job.n_out; ++o) {
            V start = job.bias ? broadcast(job.bias[o]) : V{};
            for (int v = 0; v < kScalarVectors; ++v) store(sums + o * P + v * W, start);
        }
        const int32_t* rows = plan.rows;
        const Scalar* s = plan.scalars;
        for (int64_t c = 0; c < plan.n_chunks; ++c) {
            int64_t f = c * plan.chunk, end = f + plan.chunk < job.n_in ? f + plan.chunk : job.n_in;
            pack<1>(x, job.n_in, f, end, tokens, P, panel);
            bool last = c + 1 == plan.n_chunks;  // ahead lies the next chunk, after the last one the next panel's first
            int64_t column = last ? 0 : end;
            ahead.set((const T*)job.x + (last ? next : first) * job.n_in + column, job.n_in,
                      smaller(plan.chunk, job.n_in - column), last ? smaller(P, job.tokens - next) : tokens);
            add_chunk(plan, c, rows, s, panel, sums, ahead);
        }
        T* y = (T*)job.y + first * job.n_out;
        Results<T>{sums, y, P, tokens, job.n_out, job.n_out}.all();
    }
}

}  // namespace SPARSE_OPS_LEVEL
