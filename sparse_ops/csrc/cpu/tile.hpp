// Small dense products whose operands lie in cache: a tile of sums in registers, from rows or columns of A and a panel
// of B.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kTileVectors = W == 16 ? 4 : 2;   // across
constexpr int kTileLanes = kTileVectors * W;    // of a panel: B is [panels][depth][kTileLanes]
constexpr int kTileRows = 6, kTileFewRows = 4;  // down
constexpr int kTileSlack = kTileFewRows;        // rows of A and C beyond the last that a tile may touch

// Which way A lies: its rows one after another, or transposed, its columns.
enum class Lies { kRows, kColumns };

struct TileProduct {
    const float* a;  // [rows][a_stride], or [depth][a_stride] in columns
    int64_t a_stride;
    const float* panels;  // of B
    float* c;             // [rows][c_stride]
    int64_t c_stride;
    const float* start;  // what sums begin as: C itself, or one row for all with a stride of 0; null: zeros
    int64_t start_stride;
    int64_t rows;     // of A and C
    int64_t vectors;  // across B and C
    int64_t depth;
};

template <int R, int NV, Lies A>
static __attribute__((noinline)) void tile(const TileProduct& p, int64_t row, int64_t panel) {
    const int64_t a_stride = p.a_stride, at = panel * kTileLanes;
    const float* start = p.start ? p.start + row * p.start_stride + at : nullptr;
    V acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = start ? load(start + r * p.start_stride + v * W) : V{};
    const float* a = p.a + (A == Lies::kRows ? row * a_stride : row);
    const float *b = p.panels + at * p.depth, *end = b + p.depth * kTileLanes;
    for (; b < end; b += kTileLanes) {
        V bv[NV];
        load_pinned(b, bv);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            V s = broadcast(a[A == Lies::kRows ? r * a_stride : r]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) multiply_add(acc[r][v], bv[v], s);
        }
        a += A == Lies::kRows ? 1 : a_stride;
    }
    float* c = p.c + row * p.c_stride + at;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(c + r * p.c_stride + v * W, acc[r][v]);
}

template <int R, Lies A, int NV = kTileVectors>
INLINE void tile_of(int64_t vectors, const TileProduct& p, int64_t row, int64_t panel) {
    if constexpr (NV > 1)
        if (vectors < NV) return tile_of<R, A, NV - 1>(vectors, p, row, panel);
    tile<R, NV, A>(p, row, panel);
}

// Fours where sixes would not come out even, so that at most three rows beyond the last are computed.
INLINE int64_t tile_rows(int64_t left) {
    return left <= kTileFewRows || left == 7 || left == 8 ? kTileFewRows : kTileRows;
}

// C = A B, or C += A B. Before each tile `ahead.some()` asks for some of what is needed later.
template <Lies A, class Ahead>
static void multiply(const TileProduct& p, Ahead& ahead) {
    auto one = [&](int64_t row, int64_t rows, int64_t panel) __attribute__((always_inline)) {
        ahead.some();
        int64_t left = p.vectors - panel * kTileVectors;
        rows == kTileRows ? tile_of<kTileRows, A>(left, p, row, panel) : tile_of<kTileFewRows, A>(left, p, row, panel);
    };
    const int64_t panels = (p.vectors + kTileVectors - 1) / kTileVectors;
    if constexpr (A == Lies::kRows) {  // a panel stays in L1 while rows pass by
        for (int64_t panel = 0; panel < panels; ++panel)
            for (int64_t row = 0, rows; row < p.rows; row += rows) one(row, rows = tile_rows(p.rows - row), panel);
    } else {  // columns lie far apart and stay in L1 while panels pass by
        for (int64_t row = 0, rows; row < p.rows; row += rows) {
            rows = tile_rows(p.rows - row);
            for (int64_t panel = 0; panel < panels; ++panel) one(row, rows, panel);
        }
    }
}

}  // namespace SPARSE_OPS_LEVEL
