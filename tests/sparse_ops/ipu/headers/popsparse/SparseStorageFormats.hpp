#pragma once

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

namespace popsparse {

// Columns come before rows. Indices are of elements, blocks are row-major.
template <typename T>
struct COOMatrix {
    COOMatrix(std::size_t rows, std::size_t columns, std::vector<T>&& values, std::vector<std::size_t>&& columnIndices_,
              std::vector<std::size_t>&& rowIndices_, const std::array<std::size_t, 2>& dimensions)
        : numRows(rows),
          numColumns(columns),
          nzValues(std::move(values)),
          columnIndices(std::move(columnIndices_)),
          rowIndices(std::move(rowIndices_)),
          blockDimensions(dimensions) {}

    std::size_t numRows, numColumns;
    std::vector<T> nzValues;
    std::vector<std::size_t> columnIndices, rowIndices;
    std::array<std::size_t, 2> blockDimensions;
};

}  // namespace popsparse
