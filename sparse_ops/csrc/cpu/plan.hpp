// The order in which a product visits its blocks, made from a pattern's index at every call: linear in the blocks,
// a few nanoseconds each, and so the values stay in slot order and nothing has to be kept in step with the pattern.
#pragma once
#include <functional>
#include <vector>

#include "job.hpp"

// One side of a pattern's index: the blocks of row r are slots[ptr[r]:ptr[r + 1]], sorted by other[slot].
struct Side {
    int64_t n_rows;
    const int32_t* ptr;
    const int32_t* slots;
    const int32_t* other;
    int64_t nnz() const { return ptr[n_rows]; }
};

// Run work(part) for every part, on the threads that a call has.
using ForEachPart = std::function<void(int64_t parts, const std::function<void(int64_t)>& work)>;

// Block rows whose outputs fill a cache line of floats: no two parts of the work write to one.
inline int64_t rows_of_a_line(int64_t block) { return (16 + block - 1) / block; }

struct BlockOrder {
    std::vector<Entry> entries;      // and a few more, which prefetches may look at
    std::vector<int32_t> chunk_ptr;  // [n_chunks + 1][n_rows]
    std::vector<int32_t> order;      // 1x1: every 16 rows by their number of blocks
    std::vector<int32_t> groups;     // rows in parts of about equal work
    // chunk, panel: features and tokens packed at a time, pairs: features in a float. values: of 1x1 blocks, else null.
    BlockOrder(const Side& side, int64_t block, int64_t n_chunks, int64_t chunk, int64_t panel, int pairs,
               const float* values, int64_t n_groups, const ForEachPart& for_each_part);
};

// dW of larger blocks: a side's rows are the streamed features.
struct UnitOrder {
    std::vector<Unit> units;
    std::vector<int32_t> ptr;     // [n_rows + 1] into units
    std::vector<int64_t> places;  // [nnz] where a block's sums begin, in the order of the side
    int64_t width, stride;        // a block's sums are [block / width][block][width], rows `stride` apart
    int64_t unit;                 // floats of a unit's sums
    UnitOrder(const Side& side, int64_t block, int64_t lanes, int64_t panel);
};

// dW of 1x1 blocks: a side's rows are the resident features.
struct DotOrder {
    std::vector<DotGroup> groups;
    std::vector<int64_t> chunk_ptr;  // [n_chunks + 1] into groups
    std::vector<int32_t> slots;      // [groups][kDots], -1 where a group has fewer
    DotOrder(const Side& side, int64_t n_chunks, int64_t chunk, int64_t panel, const ForEachPart& for_each_part);
};
