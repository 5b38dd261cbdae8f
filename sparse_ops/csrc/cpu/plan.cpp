#include "plan.hpp"

#include <algorithm>

namespace {

constexpr int64_t kRows = 64;  // rows of a part: 768 make as many parts as share out evenly

constexpr int64_t kSorted = 16;  // rows that are ordered by their number of blocks

}  // namespace

BlockOrder::BlockOrder(const Side& side, int64_t block, int64_t n_chunks, int64_t chunk, int64_t panel, int pairs,
                       const float* values, int64_t n_groups, const ForEachPart& for_each_part)
    : entries(new Entry[side.nnz + 8]), chunk_ptr((n_chunks + 1) * side.n_rows) {
    side.check_ptr();
    std::fill_n(entries.get() + side.nnz, 8, Entry{});
    const int halved = pairs - 1;  // a shift, since a division would take as long as all else here
    int bad = 0;
    for_each_part((side.n_rows + kRows - 1) / kRows, [&](int64_t part) {
        for (int64_t r = part * kRows, last = std::min(side.n_rows, r + kRows); r < last; ++r) {
            int64_t c = 0, first = 0;  // the chunk and its first feature
            int32_t before = -1;
            chunk_ptr[r] = side.ptr[r];
            for (int32_t k = side.ptr[r]; k < side.ptr[r + 1]; ++k) {
                if (!side.may_hold(r, k, before)) {
                    __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
                    return;
                }
                int32_t slot = side.slots[k];
                int64_t feature = (before = side.other[slot]) * block;
                for (; feature >= first + chunk; first += chunk) chunk_ptr[++c * side.n_rows + r] = k;
                entries[k].source = (int32_t)(((feature - first) >> halved) * panel);
                if (values)
                    entries[k].weight = values[slot];
                else
                    entries[k].slot = slot;
            }
            while (c < n_chunks) chunk_ptr[++c * side.n_rows + r] = side.ptr[r + 1];
        }
    });
    if (bad) throw BadIndex();
    groups.push_back(0);
    for (int64_t g = 1; g <= n_groups; ++g) {  // a row costs its blocks and one more for its outputs
        int64_t work = (side.nnz + side.n_rows) * g / n_groups, row = groups.back();
        while (row < side.n_rows && side.ptr[row] + row < work) row += rows_of_a_line(block);
        groups.push_back((int32_t)row);
    }
    for (int32_t& row : groups) row = std::min(row, (int32_t)side.n_rows);
    groups.back() = (int32_t)side.n_rows;
}

PairOrder::PairOrder(const BlockOrder& blocks, int64_t n_rows, int64_t n_chunks, int32_t nothing,
                     const ForEachPart& for_each_part)
    : rows(n_chunks * n_rows), ptr(n_chunks * ((n_rows + 1) / 2) + 1) {
    const int64_t n_pairs = (n_rows + 1) / 2, parts = (n_rows + kRows - 1) / kRows;
    const int32_t* starts = blocks.chunk_ptr.data();
    auto length = [&](int64_t chunk, int32_t row) {
        return starts[(chunk + 1) * n_rows + row] - starts[chunk * n_rows + row];
    };
    for_each_part(parts, [&](int64_t part) {
        for (int64_t c = 0; c < n_chunks; ++c)
            for (int64_t r = part * kRows, last = std::min(n_rows, r + kRows); r < last; r += kSorted) {
                int32_t* some = rows.data() + c * n_rows + r;
                const int64_t n = std::min(kSorted, n_rows - r);
                for (int64_t i = 0; i < n; ++i) {  // each moves up to those that are no longer
                    int64_t to = i;
                    for (; to > 0 && length(c, some[to - 1]) > length(c, (int32_t)(r + i)); --to)
                        some[to] = some[to - 1];
                    some[to] = (int32_t)(r + i);
                }
                for (int64_t i = 0; i < n; i += 2)
                    ptr[c * n_pairs + (r + i) / 2 + 1] = i + 1 < n ? 2 * length(c, some[i + 1]) : length(c, some[i]);
            }
    });
    for (size_t i = 1; i < ptr.size(); ++i) ptr[i] += ptr[i - 1];
    entries.reset(new Entry[ptr.back() + 8]);
    for_each_part(parts, [&](int64_t part) {
        for (int64_t c = 0; c < n_chunks; ++c)
            for (int64_t r = part * kRows, last = std::min(n_rows, r + kRows); r < last; r += 2) {
                const int64_t n = std::min<int64_t>(2, n_rows - r), pair = c * n_pairs + r / 2;
                for (int64_t i = 0; i < n; ++i) {
                    const int32_t row = rows[c * n_rows + r + i];
                    const Entry* from = blocks.entries.get() + starts[c * n_rows + row];
                    Entry *to = entries.get() + ptr[pair] + i, *end = entries.get() + ptr[pair + 1];
                    for (int32_t k = length(c, row); k > 0; --k, to += n) *to = *from++;
                    for (; to < end; to += n) to->source = nothing, to->weight = 0;
                }
            }
    });
}

UnitOrder::UnitOrder(const Side& side, int64_t block, int64_t lanes, int64_t panel)
    : ptr(side.n_rows + 1), places(side.nnz), width(std::min(block, lanes)) {
    const bool two = lanes / width == 2;
    stride = two ? lanes : width;
    unit = block * stride;
    units.reserve(side.nnz * (block / width));
    side.check_ptr();
    for (int64_t r = 0; r < side.n_rows; ++r) {
        int32_t before = -1;
        for (int32_t k = side.ptr[r]; k < side.ptr[r + 1]; ++k) {
            if (!side.may_hold(r, k, before)) throw BadIndex();
            before = side.other[side.slots[k]];
            const int32_t at = (int32_t)(side.other[side.slots[k]] * block * panel);
            if (two && (k - side.ptr[r]) % 2) {
                units.back().high = at;
                places[k] = places[k - 1] + width;
            } else {
                places[k] = (int64_t)units.size() * unit;
                for (int64_t f = 0; f < block; f += width)
                    units.push_back({(int32_t)(at + f * panel), (int32_t)(at + f * panel)});
            }
        }
        ptr[r + 1] = (int32_t)units.size();
    }
}

DotOrder::DotOrder(const Side& side, int64_t n_chunks, int64_t chunk, int64_t panel, const ForEachPart& for_each_part) {
    const BlockOrder blocks(side, 1, n_chunks, chunk, panel, 1, nullptr, 1, for_each_part);
    int64_t n = side.n_rows, total = 0;
    std::vector<int64_t> first(n_chunks * n);  // group of a row in a chunk
    for (int64_t c = 0; c < n_chunks; ++c) {
        chunk_ptr.push_back(total);
        for (int64_t r = 0; r < n; ++r) {
            first[c * n + r] = total;
            total += (blocks.chunk_ptr[(c + 1) * n + r] - blocks.chunk_ptr[c * n + r] + kDots - 1) / kDots;
        }
    }
    chunk_ptr.push_back(total);
    groups.reset(new DotGroup[total]);
    slots.reset(new int32_t[total * kDots]);
    for_each_part((n + kRows - 1) / kRows, [&](int64_t part) {
        for (int64_t c = 0; c < n_chunks; ++c)
            for (int64_t r = part * kRows, last = std::min(n, r + kRows); r < last; ++r) {
                int64_t g = first[c * n + r];
                int32_t end = blocks.chunk_ptr[(c + 1) * n + r];
                for (int32_t k = blocks.chunk_ptr[c * n + r]; k < end; k += kDots, ++g) {
                    groups[g].resident = (int32_t)(r * panel);
                    for (int i = 0; i < kDots; ++i) {
                        const Entry& e = blocks.entries[std::min(k + i, end - 1)];
                        groups[g].streamed[i] = e.source;
                        slots[g * kDots + i] = k + i < end ? e.slot : -1;
                    }
                }
            }
    });
}
