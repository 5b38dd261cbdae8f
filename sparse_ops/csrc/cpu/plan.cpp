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

BlockOrder::BlockOrder(const Side& side, int64_t n_groups) : entries(side.nnz() + 8) {
    for (int64_t k = 0; k < side.nnz(); ++k) entries[k] = {side.other[side.slots[k]], side.slots[k]};
    groups.push_back(0);
    for (int64_t g = 1; g <= n_groups; ++g) {  // a row costs its blocks and one more for its outputs
        int64_t work = (side.nnz() + side.n_rows) * g / n_groups, row = groups.back();
        while (row < side.n_rows && side.ptr[row] + row < work) ++row;
        groups.push_back((int32_t)row);
    }
    groups.back() = (int32_t)side.n_rows;
}

ScalarOrder::ScalarOrder(const Side& side, int64_t n_other, int64_t chunk, const float* values)
    : rows(8), scalars(side.nnz() + 8) {
    const Chunks chunks(n_other, chunk);
    int64_t n_chunks = (n_other + chunk - 1) / chunk, n = side.n_rows;
    std::vector<int32_t> counts(n_chunks * n);
    for (int64_t r = 0; r < n; ++r)
        for (int64_t k = side.ptr[r]; k < side.ptr[r + 1]; ++k) ++counts[chunks.of[side.other[side.slots[k]]] * n + r];
    std::vector<int64_t> place(n_chunks * n);  // of a row's first scalar in a chunk
    std::vector<char> step(n_chunks * n, 1);
    std::vector<int32_t> by_count;
    rows.clear();
    run_ptr.push_back(0);
    int64_t at = 0;
    for (int64_t c = 0; c < n_chunks; ++c) {
        const int32_t* count = counts.data() + c * n;
        std::vector<int32_t> first(chunk + 2);
        for (int64_t r = 0; r < n; ++r) ++first[count[r] + 1];
        for (int64_t k = 0; k <= chunk; ++k) first[k + 1] += first[k];
        by_count.resize(n);
        std::vector<int32_t> cursor(first.begin(), first.end() - 1);
        for (int64_t r = 0; r < n; ++r) by_count[cursor[count[r]]++] = (int32_t)r;
        for (int32_t k = 1; k <= chunk; ++k) {
            int32_t i = first[k], end = first[k + 1];
            if (i == end) continue;
            runs.push_back({k, end - i});
            rows.insert(rows.end(), by_count.begin() + i, by_count.begin() + end);
            for (; i + 2 <= end; i += 2, at += 2 * k)
                for (int lane = 0; lane < 2; ++lane) {
                    place[c * n + by_count[i + lane]] = at + lane;
                    step[c * n + by_count[i + lane]] = 2;
                }
            if (i < end) place[c * n + by_count[i]] = at, at += k;
        }
        run_ptr.push_back((int64_t)runs.size());
    }
    rows.resize(rows.size() + 8);
    for (int64_t r = 0; r < n; ++r)
        for (int64_t k = side.ptr[r]; k < side.ptr[r + 1]; ++k) {
            int32_t slot = side.slots[k], source = side.other[slot];
            int64_t cell = chunks.of[source] * n + r;
            scalars[place[cell]] = {chunks.place[source], values[slot]};
            place[cell] += step[cell];
        }
    plan = {chunk, n_chunks, run_ptr.data(), runs.data(), rows.data(), scalars.data()};
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
