// FP16.16 as an IPU has it: products whose sums are rounded to half after every 16 terms, and rounding by itself.
// Values of halves are kept in floats. Rounding is to nearest, or stochastic with bits that follow from (key, place)
// alone, so that threads, levels and sparse_ops/half.py draw the same.
#pragma once
#include "job.hpp"
#include "random.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int64_t kPartial = 16;                  // terms between roundings
constexpr int kHalfRows = 4, kHalfVectors = 2;    // of a tile of sums
constexpr int64_t kHalfWidth = kHalfVectors * W;  // columns of a panel

// 13 random bits for each place.
INLINE U draw(U place, const HalfKey& key) { return random_bits(place, key.random) >> 19; }

// x is finite, infinite, or a NaN as arithmetic makes them (not one of the lowest bits alone).
template <bool stochastic>
INLINE V round_half(V x, U place, const HalfKey& key) {
    const U bits = (U)x;
    V normal, small;
    // A half has 13 bits of mantissa fewer: add what decides about the last bit, then cut. Below 2^-14 halves have a
    // fixed step of 2^-24: adding 0.75 rounds to it.
    if constexpr (stochastic) {
        const U bits_below = draw(place, key);
        normal = (V)((bits + bits_below) & 0xffffe000u);
        const V shift = __builtin_convertvector((I)bits_below, V) * 0x1p-37f + (0x1p-38f - 0x1p-25f);
        small = (x + shift + 0.75f) - 0.75f;
    } else {
        normal = (V)((bits + (0xfff + ((bits >> 13) & 1))) & 0xffffe000u);
        small = (V)((U)((x + 0.75f) - 0.75f) | (bits & 0x80000000u));
    }
    const V rounded = (I)(bits & 0x7fffffffu) < 0x38800000 ? small : normal;
    return rounded * 0x1p112f * 0x1p-112f;  // above the largest half: infinite
}

template <bool stochastic>
static void round_range(const HalfRoundCall& call, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += W) {
        const int n = last - i < W ? (int)(last - i) : W;
        V x = n == W ? load(call.x + i) : load_some(call.x + i, n);
        V y = round_half<stochastic>(x, counted_from((uint32_t)(call.place + i)), call.key);
        n == W ? store(call.y + i, y) : store_some(call.y + i, y, n);
    }
}

static void half_round(const HalfRoundCall& call, int64_t first, int64_t last) {
    call.key.stochastic ? round_range<true>(call, first, last) : round_range<false>(call, first, last);
}

// Some rows of a job's sums: `b` is its panel [terms][kHalfWidth], `a` the first row's, `place` of the first sum.
template <int rows, bool rounded, bool stochastic>
INLINE void half_tile(const HalfProductsCall& call, const float* a, const int64_t* a_step, int64_t terms,
                      const float* b, uint32_t place, V (&total)[kHalfRows][kHalfVectors]) {
    const uint32_t all = (uint32_t)(call.jobs * call.rows * call.columns);
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < kHalfVectors; ++v) total[r][v] = V{};
    for (int64_t first = 0; first < terms; first += kPartial) {
        const int64_t last = first + kPartial < terms ? first + kPartial : terms;
        V sum[rows][kHalfVectors] = {};
        for (int64_t k = first; k < last; ++k) {
            V column[kHalfVectors];
            load_pinned(b + k * kHalfWidth, column);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                V factor = broadcast(a[r * call.a_row + a_step[k]]);
#pragma GCC unroll 2
                for (int v = 0; v < kHalfVectors; ++v) multiply_add(sum[r][v], factor, column[v]);
            }
        }
        if (first) place += all;
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < kHalfVectors; ++v) {
                V before = total[r][v];
                if (rounded && first) {
                    U places = counted_from(place + (uint32_t)(r * call.columns + v * W));
                    before = round_half<stochastic>(before, places, call.key);
                }
                total[r][v] = before + sum[r][v];
            }
    }
}

template <bool rounded, bool stochastic>
static void half_panel(const HalfProductsCall& call, int64_t job, int64_t column) {
    const int64_t first = call.first[job], terms = call.count[job];
    const int64_t width = call.columns - column < kHalfWidth ? call.columns - column : kHalfWidth;
    float* panel = (float*)thread_workspace((terms + 1) * kHalfWidth * sizeof(float));
    for (int64_t k = 0; k < terms; ++k) {
        const float* from = call.b + call.b_base[job] + call.b_step[first + k] + column;
        for (int v = 0; v < kHalfVectors; ++v) {
            const int64_t left = width - v * W;
            store(panel + k * kHalfWidth + v * W, left >= W  ? load(from + v * W)
                                                  : left > 0 ? load_some(from + v * W, (int)left % W)
                                                             : V{});
        }
    }
    const int64_t* a_step = call.a_step + first;
    for (int64_t row = 0; row < call.rows;) {
        const int64_t at = (job * call.rows + row) * call.columns + column;
        const float* a = call.a + call.a_base[job] + row * call.a_row;
        V total[kHalfRows][kHalfVectors];
        const int rows = call.rows - row >= kHalfRows ? kHalfRows : 1;
        if (rows == kHalfRows)
            half_tile<kHalfRows, rounded, stochastic>(call, a, a_step, terms, panel, (uint32_t)at, total);
        else
            half_tile<1, rounded, stochastic>(call, a, a_step, terms, panel, (uint32_t)at, total);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < kHalfVectors; ++v) {
                float* to = call.c + at + r * call.columns + v * W;
                const int64_t left = width - v * W;
                if (left >= W)
                    store(to, total[r][v]);
                else if (left > 0)
                    store_some(to, total[r][v], (int)left % W);
            }
        row += rows;
    }
}

static void half_products(const HalfProductsCall& call, int64_t part) {
    const int64_t panels = (call.columns + kHalfWidth - 1) / kHalfWidth;
    const int64_t job = part / panels, column = part % panels * kHalfWidth;
    if (!call.rounded)
        half_panel<false, false>(call, job, column);
    else if (call.key.stochastic)
        half_panel<true, true>(call, job, column);
    else
        half_panel<true, false>(call, job, column);
}

}  // namespace SPARSE_OPS_LEVEL
