// The order in which a product visits its blocks, made from a pattern's index at every call: linear in the blocks,
// a few nanoseconds each, and so the values stay in slot order and nothing has to be kept in step with the pattern.
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "job.hpp"

// An index that no pattern has.
struct BadIndex : std::exception {};

// One side of a pattern's index: the grid of blocks by its rows, or by its columns, which then stand in place of rows.
// The orders below throw BadIndex unless it has every slot once, in the row and in the order of its positions, and all
// of these in the grid. (No row has a slot twice, since its positions increase, no two rows have the same one, and they
// are as many as there are.) Nothing in an order that was made leads out of an array.
struct Side {
    int64_t n_rows;
    int64_t n_others;      // columns
    int64_t nnz;           // slots
    const int32_t* ptr;    // [n_rows + 1]: the blocks of row r are slots[ptr[r]:ptr[r + 1]]
    const int32_t* slots;  // [nnz], in a row by column
    const int32_t* other;  // [nnz] the column of each slot
    const int32_t* own;    // [nnz] the row of each slot

    void check_ptr() const {
        bool good = ptr[0] == 0 && ptr[n_rows] == nnz;
        for (int64_t r = 0; r < n_rows; ++r) good = good && ptr[r] <= ptr[r + 1];
        if (!good) throw BadIndex();
    }
    // Whether block k may stand in this row after one of column `before`.
    bool may_hold(int64_t row, int32_t k, int32_t before) const {
        const int32_t slot = slots[k];
        return slot >= 0 && slot < nnz && own[slot] == row && other[slot] > before && other[slot] < n_others;
    }
};
inline Side rows_of(const BlockIndex& index, int64_t nnz, int64_t n_rows, int64_t n_cols) {
    return {n_rows, n_cols, nnz, index.row_ptr, index.row_slots, index.cols, index.rows};
}
inline Side cols_of(const BlockIndex& index, int64_t nnz, int64_t n_rows, int64_t n_cols) {
    return {n_cols, n_rows, nnz, index.col_ptr, index.col_slots, index.rows, index.cols};
}

// Run work(part) for every part, on the threads that a call has.
using ForEachPart = std::function<void(int64_t parts, const std::function<void(int64_t)>& work)>;

// Block rows whose outputs fill a cache line of floats: no two parts of the work write to one.
inline int64_t rows_of_a_line(int64_t block) { return (16 + block - 1) / block; }

// The order of Y and dX: a side's rows are the block rows. What the fields hold is said at Product.
struct BlockOrder {
    std::unique_ptr<Entry[]> entries;
    std::vector<int32_t> chunk_ptr;
    std::vector<int32_t> groups;
    // chunk: its features. panel: floats from one feature to the next as the inputs lie, the tokens of a packed panel
    // or 1 in rows of X. pairs: features in such a float. values: those of 1x1 blocks, float32, else null.
    BlockOrder(const Side& side, int64_t block, int64_t n_chunks, int64_t chunk, int64_t panel, int pairs,
               const float* values, int64_t n_groups, const ForEachPart& for_each_part);
};

// The order of Y and dX with 1x1 blocks, made from that by rows: two rows have their entries in turn, and where one has
// fewer than the other in a chunk, entries of weight 0 that begin at `nothing`, where a panel has zeros.
struct PairOrder {
    std::unique_ptr<Entry[]> entries;  // by chunk, then by pair; and a few more, as there
    std::vector<int32_t> rows;         // Product::pair_rows
    std::vector<int64_t> ptr;          // Product::pair_ptr
    PairOrder(const BlockOrder& blocks, int64_t n_rows, int64_t n_chunks, int32_t nothing,
              const ForEachPart& for_each_part);
};

// The order of dW with larger blocks: a side's rows are the blocks of streamed features. A block's sums are
// [block / width][streamed feature][width resident features], `stride` floats from one streamed feature to the next.
struct UnitOrder {
    std::vector<Unit> units;      // by row, then by resident feature
    std::vector<int32_t> ptr;     // [n_rows + 1]: where each row's units begin
    std::vector<int64_t> places;  // [nnz]: where each block's sums begin, in floats; blocks in the order of the side
    int64_t width;                // resident features of a block in a vector
    int64_t stride;               // width, or twice that where two blocks share a vector
    int64_t unit;                 // floats of a unit's sums
    UnitOrder(const Side& side, int64_t block, int64_t lanes, int64_t panel);
};

// The order of dW with 1x1 blocks: a side's rows are the resident features.
struct DotOrder {
    std::unique_ptr<DotGroup[]> groups;  // by chunk of the streamed side, then by row
    std::vector<int64_t> chunk_ptr;      // [n_chunks + 1]: where each chunk's groups begin
    std::unique_ptr<int32_t[]> slots;    // [groups][kDots]: of each block; -1 where a group has fewer
    DotOrder(const Side& side, int64_t n_chunks, int64_t chunk, int64_t panel, const ForEachPart& for_each_part);
};
