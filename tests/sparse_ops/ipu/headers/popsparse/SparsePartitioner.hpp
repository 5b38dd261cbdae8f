#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <popsparse/SparseStorageFormats.hpp>
#include <popsparse/plan.hpp>

namespace popsparse::dynamic {

template <typename T>
struct SparsityDataImpl {
    std::vector<std::size_t> metaInfo;
    std::vector<T> nzValues;
};

// Not popsparse's: the pattern that was encoded last, for a test to look at.
inline std::array<std::vector<std::size_t>, 2> encodedLast;

template <typename T>
class Partitioner {
public:
    Partitioner(const FullyConnectedParams& params, const poplar::Type& type, const poplar::Target& target,
                const poplar::OptionFlags& options, PlanningCache* cache, std::string)
        : plan_(plan(params, type, target, options, cache)) {}

    SparsityDataImpl<T> createSparsityDataImpl(const COOMatrix<T>& matrix) const {
        const auto b = plan_.block;
        encodedLast = {matrix.rowIndices, matrix.columnIndices};
        if (matrix.numRows != plan_.out || matrix.numColumns != plan_.in || matrix.rowIndices.size() != plan_.blocks) {
            throw std::runtime_error("Validation failed: a matrix of another size");
        }
        std::vector<std::vector<std::size_t>> buckets(plan_.buckets());
        for (std::size_t k = 0; k < plan_.blocks; ++k) {
            const auto row = matrix.rowIndices[k], column = matrix.columnIndices[k];
            if (row % b != 0 || column % b != 0 || row >= plan_.out || column >= plan_.in) {
                throw std::runtime_error("Validation failed: a block outside the matrix");
            }
            auto bucket = plan_.home(row / b, column / b);
            while (buckets[bucket].size() == plan_.room) {
                bucket = (bucket + 1) % plan_.buckets();
            }
            buckets[bucket].push_back(k);
        }
        SparsityDataImpl<T> made;
        made.metaInfo.assign(plan_.metaElements(), 0);
        made.nzValues.assign(plan_.nzElements(), T{0});
        for (std::size_t bucket = 0; bucket < buckets.size(); ++bucket) {
            std::reverse(buckets[bucket].begin(), buckets[bucket].end());
            auto* codes = made.metaInfo.data() + bucket * plan_.metaPerBucket();
            *codes++ = buckets[bucket].size();
            auto* values = made.nzValues.data() + bucket * plan_.room * b * b;
            for (const auto k : buckets[bucket]) {
                *codes++ = matrix.rowIndices[k] / b;
                *codes++ = matrix.columnIndices[k] / b;
                values = std::copy_n(matrix.nzValues.begin() + static_cast<std::ptrdiff_t>(k * b * b), b * b, values);
            }
        }
        return made;
    }

    // By row, then column.
    COOMatrix<T> sparsityDataImplToCOOMatrix(const SparsityDataImpl<T>& data) const {
        const auto b = plan_.block;
        auto blocks = held(plan_, data.metaInfo);
        std::sort(blocks.begin(), blocks.end(),
                  [](const Held& a, const Held& z) { return std::pair(a.row, a.column) < std::pair(z.row, z.column); });
        std::vector<T> values;
        std::vector<std::size_t> rows, columns;
        for (const auto& one : blocks) {
            rows.push_back(one.row * b);
            columns.push_back(one.column * b);
            const auto first = data.nzValues.begin() + static_cast<std::ptrdiff_t>(one.place);
            values.insert(values.end(), first, first + static_cast<std::ptrdiff_t>(b * b));
        }
        return {plan_.out, plan_.in, std::move(values), std::move(columns), std::move(rows), {b, b}};
    }

private:
    Plan plan_;
};

}  // namespace popsparse::dynamic
