#include "plan.hpp"

#include <algorithm>

namespace {

// The chunk of every feature and its place there: a table, since a division per block would cost more than the rest.
struct Chunks {
    std::vector<int32_t> of, place;
    Chunks(int64_t n, int64_t chunk) : of(n), place(n) {
        for (int64_t i = 0; i < n; ++i) of[i] = (int32_t)(i / chunk), place[i] = (int32_t)(i % chunk);
    }
};

}  // namespace

BlockOrder::BlockOrder(const Side& side, int64_t block, int64_t n_chunks, int64_t chunk, int64_t panel,
                       const float* values, int64_t n_groups, const ForEachPart& for_each_part)
    : entries(side.nnz() + 8), chunk_ptr((n_chunks + 1) * side.n_rows) {
    constexpr int64_t kRows = 256;
    for_each_part((side.n_rows + kRows - 1) / kRows, [&](int64_t part) {
        for (int64_t r = part * kRows, last = std::min(side.n_rows, r + kRows); r < last; ++r) {
            int64_t c = 0, first = 0;  // the chunk and its first feature
            chunk_ptr[r] = side.ptr[r];
            for (int32_t k = side.ptr[r]; k < side.ptr[r + 1]; ++k) {
                int32_t slot = side.slots[k];
                int64_t feature = side.other[slot] * block;
                for (; feature >= first + chunk; first += chunk) chunk_ptr[++c * side.n_rows + r] = k;
                entries[k].source = (int32_t)((feature - first) * panel);
                if (values)
                    entries[k].weight = values[slot];
                else
                    entries[k].slot = slot;
            }
            while (c < n_chunks) chunk_ptr[++c * side.n_rows + r] = side.ptr[r + 1];
        }
    });
    if (block == 1) {
        auto fewer = [&](int32_t a, int32_t b) {
            return side.ptr[a + 1] - side.ptr[a] < side.ptr[b + 1] - side.ptr[b];
        };
        for (int64_t r = 0; r < side.n_rows; ++r) order.push_back((int32_t)r);
        for (int64_t r = 0; r < side.n_rows; r += 16)
            std::stable_sort(order.begin() + r, order.begin() + std::min(side.n_rows, r + 16), fewer);
    }
    const int64_t rows_of_a_line = (16 + block - 1) / block;  // no two parts write to one cache line
    groups.push_back(0);
    for (int64_t g = 1; g <= n_groups; ++g) {  // a row costs its blocks and one more for its outputs
        int64_t work = (side.nnz() + side.n_rows) * g / n_groups, row = groups.back();
        while (row < side.n_rows && side.ptr[row] + row < work) row += rows_of_a_line;
        groups.push_back((int32_t)row);
    }
    for (int32_t& row : groups) row = std::min(row, (int32_t)side.n_rows);
    groups.back() = (int32_t)side.n_rows;
}

PairOrder::PairOrder(const Side& resident, int64_t n_streamed, int64_t chunk)
    : chunk_ptr((n_streamed + chunk - 1) / chunk + 1) {
    const Chunks chunks(n_streamed, chunk);
    constexpr int64_t kPad = 16;
    std::vector<int64_t> place(chunk_ptr.size());
    for (int64_t k = 0; k < resident.nnz(); ++k) ++place[chunks.of[resident.other[resident.slots[k]]]];
    for (size_t c = 0; c + 1 < chunk_ptr.size(); ++c) {
        chunk_ptr[c + 1] = chunk_ptr[c] + (place[c] + kPad - 1) / kPad * kPad;
        place[c] = chunk_ptr[c];
    }
    pairs.resize(chunk_ptr.back());
    slots.assign(chunk_ptr.back(), -1);
    for (int64_t r = 0; r < resident.n_rows; ++r)
        for (int64_t k = resident.ptr[r]; k < resident.ptr[r + 1]; ++k) {
            int32_t slot = resident.slots[k], other = resident.other[slot];
            int64_t at = place[chunks.of[other]]++;
            pairs[at] = {(int32_t)r, chunks.place[other]};
            slots[at] = slot;
        }
}
