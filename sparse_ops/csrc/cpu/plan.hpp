// The order in which a product visits its blocks, made from a pattern's index at every call: linear in the blocks,
// a few nanoseconds each, and so the values stay in slot order and nothing has to be kept in step with the pattern.
#pragma once
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

struct BlockOrder {
    std::vector<Entry> entries;   // and a few more, which prefetches may look at
    std::vector<int32_t> groups;  // rows in parts of about equal work
    BlockOrder(const Side& side, int64_t n_groups);
};

struct ScalarOrder {
    std::vector<int64_t> run_ptr;
    std::vector<Run> runs;
    std::vector<int32_t> rows;
    std::vector<Scalar> scalars;
    ScalarPlan plan;
    ScalarOrder(const Side& side, int64_t n_other, int64_t chunk, const float* values);
};

struct PairOrder {
    std::vector<Pair> pairs;         // chunks padded to whole vectors
    std::vector<int32_t> slots;      // -1 where padded
    std::vector<int64_t> chunk_ptr;
    PairOrder(const Side& resident, int64_t n_streamed, int64_t chunk);
};
