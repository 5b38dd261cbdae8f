#include "host.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <popsparse/SparsePartitioner.hpp>
#include <popsparse/SparseStorageFormats.hpp>

#include "layer_spec.hpp"

namespace {

using block_linear::LayerSpec;
// Elements are numbered and the numbers are encoded once: exact in double, and 0 is left to mean padding. The
// resulting map then moves weights and both moments, instead of three encodings.
using Ids = popsparse::dynamic::SparsityDataImpl<double>;
using Partitioner = popsparse::dynamic::Partitioner<double>;

std::string text(const char* value) { return value == nullptr ? std::string() : std::string(value); }

LayerSpec spec(const block_linear_layer& layer) {
    LayerSpec s;
    s.layer = text(layer.layer);
    s.inFeatures = layer.in_features;
    s.outFeatures = layer.out_features;
    s.blockSize = layer.block_size;
    s.nonZeros = layer.blocks * layer.block_size * layer.block_size;
    s.batch = layer.batch;
    s.availableMemoryProportion = text(layer.available_memory_proportion);
    s.metaInfoBucketOversizeProportion = text(layer.meta_info_bucket_oversize_proportion);
    s.partialsType = text(layer.partials_type);
    return s;
}

poplar::Type dataType(const block_linear_layer& layer) {
    const auto name = text(layer.data_type);
    if (name != "half" && name != "float") {
        throw std::invalid_argument("sparse layer '" + text(layer.layer) +
                                    "': data_type must be half or float, found '" + name + "'");
    }
    return name == "half" ? poplar::HALF : poplar::FLOAT;
}

// A plan looks at one IPU of the target: replicas and pipeline stages each run the operation on one. The
// partitioner keeps a reference to its target, so targets live as long as the library.
const poplar::Target& target(const block_linear_layer& layer) {
    static std::mutex mutex;
    static std::map<std::pair<std::string, std::int64_t>, poplar::Target> targets;
    const std::lock_guard<std::mutex> lock(mutex);
    const std::pair<std::string, std::int64_t> key(text(layer.system), layer.tiles_per_ipu);
    auto found = targets.find(key);
    if (found == targets.end()) {
        auto made = layer.tiles_per_ipu > 0
                        ? poplar::Target::createIPUTarget(1, static_cast<unsigned>(layer.tiles_per_ipu), key.first)
                        : poplar::Target::createIPUTarget(1, key.first);
        found = targets.emplace(key, std::move(made)).first;
    }
    return found->second;
}

Partitioner partitioner(const block_linear_layer& layer, const LayerSpec& s) {
    const auto type = dataType(layer);
    validate(s, type);
    const auto& t = target(layer);
    return Partitioner(params(s), type, t, options(s), block_linear::planningCache(type, t), s.layer);
}

void requireSize(const LayerSpec& s, const char* name, std::size_t expected, std::int64_t found) {
    if (static_cast<std::int64_t>(expected) != found) {
        throw std::invalid_argument("sparse layer '" + s.layer + "': " + name + " must have " +
                                    std::to_string(expected) + " elements, found " + std::to_string(found));
    }
}

// Slots in row-major order of their positions, checked: popsparse does not look for duplicates.
std::vector<std::size_t> sortedSlots(const LayerSpec& s, const std::int32_t* rows, const std::int32_t* cols) {
    const auto gridRows = s.outFeatures / s.blockSize;
    const auto gridCols = s.inFeatures / s.blockSize;
    std::vector<std::size_t> order(static_cast<std::size_t>(s.nonZeroBlocks()));
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (const auto k : order) {
        if (rows[k] < 0 || rows[k] >= gridRows || cols[k] < 0 || cols[k] >= gridCols) {
            throw std::invalid_argument("sparse layer '" + s.layer + "': slot " + std::to_string(k) + " is at (" +
                                        std::to_string(rows[k]) + ", " + std::to_string(cols[k]) + "), outside the " +
                                        std::to_string(gridRows) + "x" + std::to_string(gridCols) + " grid of blocks");
        }
    }
    const auto at = [&](std::size_t k) { return std::pair<std::int32_t, std::int32_t>(rows[k], cols[k]); };
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return at(a) < at(b); });
    for (std::size_t i = 1; i < order.size(); ++i) {
        if (at(order[i]) == at(order[i - 1])) {
            throw std::invalid_argument("sparse layer '" + s.layer + "': two slots share the position (" +
                                        std::to_string(rows[order[i]]) + ", " + std::to_string(cols[order[i]]) + ")");
        }
    }
    return order;
}

Ids encodeIds(const Partitioner& p, const LayerSpec& s, const std::int32_t* rows, const std::int32_t* cols) {
    const auto order = sortedSlots(s, rows, cols);
    const auto b = static_cast<std::size_t>(s.blockSize);
    std::vector<double> ids;
    std::vector<std::size_t> columnIndices, rowIndices;
    ids.reserve(order.size() * b * b);
    columnIndices.reserve(order.size());
    rowIndices.reserve(order.size());
    for (const auto k : order) {
        // Element indices, multiples of b; rows are output features as in torch's [out, in].
        rowIndices.push_back(static_cast<std::size_t>(rows[k]) * b);
        columnIndices.push_back(static_cast<std::size_t>(cols[k]) * b);
        for (std::size_t e = 0; e < b * b; ++e) {
            ids.push_back(static_cast<double>(k * b * b + e + 1));
        }
    }
    const popsparse::COOMatrix<double> coo(static_cast<std::size_t>(s.outFeatures),
                                           static_cast<std::size_t>(s.inFeatures), std::move(ids),
                                           std::move(columnIndices), std::move(rowIndices), {b, b});
    return p.createSparsityDataImpl(coo);
}

// A pattern to ask sizes with, since every pattern has the same; drawn at random, always alike. Buckets are planned for
// as many blocks, and as many rows that have any, as a random pattern is expected to have (poplibs 3.4,
// FullyConnectedPlan.cpp 590-600): a regular one overflows them, whether it leaves rows empty or fills too many.
Ids anyPattern(const Partitioner& p, const LayerSpec& s) {
    const auto gridCols = s.inFeatures / s.blockSize;
    const auto places = s.outFeatures / s.blockSize * gridCols, blocks = s.nonZeroBlocks();
    std::mt19937_64 random;
    std::vector<std::int32_t> rows, cols;
    for (std::int64_t place = 0; place < places; ++place) {
        const auto wanted = blocks - static_cast<std::int64_t>(rows.size());
        if (static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(places - place)) < wanted) {
            rows.push_back(static_cast<std::int32_t>(place / gridCols));
            cols.push_back(static_cast<std::int32_t>(place % gridCols));
        }
    }
    return encodeIds(p, s, rows.data(), cols.data());
}

int fail(const std::string& message, char* error, std::int64_t size) {
    if (error != nullptr && size > 0) {
        const auto n = std::min<std::size_t>(message.size(), static_cast<std::size_t>(size - 1));
        std::memcpy(error, message.data(), n);
        error[n] = '\0';
    }
    return 1;
}

// No exception may cross the C boundary.
template <typename Call>
int guarded(const block_linear_layer* layer, char* error, std::int64_t size, Call&& call) noexcept {
    try {
        if (layer == nullptr) {
            return fail("no layer was given", error, size);
        }
        const auto s = spec(*layer);
        try {
            call(s);
            return 0;
        } catch (const std::invalid_argument& e) {
            return fail(e.what(), error, size);
        } catch (const std::exception& e) {
            return fail(block_linear::explain(s, e.what()), error, size);
        }
    } catch (...) {
        return fail("an unknown error", error, size);
    }
}

}  // namespace

extern "C" {

int64_t block_linear_abi(void) { return block_linear::kAbiVersion; }

int block_linear_sizes(const block_linear_layer* layer, int64_t* meta_info_size, int64_t* nz_size, char* error,
                       int64_t error_size) {
    return guarded(layer, error, error_size, [&](const LayerSpec& s) {
        const auto made = anyPattern(partitioner(*layer, s), s);
        *meta_info_size = static_cast<int64_t>(made.metaInfo.size());
        *nz_size = static_cast<int64_t>(made.nzValues.size());
    });
}

int block_linear_encode(const block_linear_layer* layer, const int32_t* rows, const int32_t* cols, int64_t arrays,
                        const float* const* slots, uint16_t* meta_info, int64_t meta_info_size, float* const* encoded,
                        int64_t nz_size, char* error, int64_t error_size) {
    return guarded(layer, error, error_size, [&](const LayerSpec& s) {
        const auto made = encodeIds(partitioner(*layer, s), s, rows, cols);
        requireSize(s, "metaInfo", made.metaInfo.size(), meta_info_size);
        requireSize(s, "nz", made.nzValues.size(), nz_size);
        for (std::size_t i = 0; i < made.metaInfo.size(); ++i) {
            meta_info[i] = static_cast<uint16_t>(made.metaInfo[i]);  // the partitioner checked the bound
        }
        for (std::size_t i = 0; i < made.nzValues.size(); ++i) {
            const auto id = std::llround(made.nzValues[i]);
            for (int64_t a = 0; a < arrays; ++a) {
                encoded[a][i] = id == 0 ? 0.0F : slots[a][id - 1];
            }
        }
    });
}

int block_linear_decode(const block_linear_layer* layer, const uint16_t* meta_info, int64_t meta_info_size,
                        int64_t arrays, const float* const* encoded, int64_t nz_size, int32_t* rows, int32_t* cols,
                        float* const* slots, char* error, int64_t error_size) {
    return guarded(layer, error, error_size, [&](const LayerSpec& s) {
        const auto p = partitioner(*layer, s);
        const auto expected = anyPattern(p, s);
        requireSize(s, "metaInfo", expected.metaInfo.size(), meta_info_size);
        requireSize(s, "nz", expected.nzValues.size(), nz_size);

        Ids places;
        places.metaInfo.assign(meta_info, meta_info + meta_info_size);
        places.nzValues.resize(static_cast<std::size_t>(nz_size));
        std::iota(places.nzValues.begin(), places.nzValues.end(), 1.0);
        const auto coo = p.sparsityDataImplToCOOMatrix(places);

        const auto blocks = static_cast<std::size_t>(s.nonZeroBlocks());
        const auto b = static_cast<std::size_t>(s.blockSize);
        if (coo.rowIndices.size() != blocks || coo.columnIndices.size() != blocks ||
            coo.nzValues.size() != blocks * b * b) {
            throw std::invalid_argument("sparse layer '" + s.layer + "': metaInfo describes " +
                                        std::to_string(coo.rowIndices.size()) + " blocks, expected " +
                                        std::to_string(blocks) + ": it is not of this layer, or was changed");
        }
        for (std::size_t k = 0; k < blocks; ++k) {
            rows[k] = static_cast<int32_t>(coo.rowIndices[k] / b);
            cols[k] = static_cast<int32_t>(coo.columnIndices[k] / b);
        }
        std::vector<char> used(static_cast<std::size_t>(nz_size), 0);
        for (std::size_t e = 0; e < coo.nzValues.size(); ++e) {
            const auto place = std::llround(coo.nzValues[e]) - 1;
            used.at(static_cast<std::size_t>(place)) = 1;
            for (int64_t a = 0; a < arrays; ++a) {
                slots[a][e] = encoded[a][place];
            }
        }
        for (int64_t a = 0; a < arrays; ++a) {
            for (std::size_t i = 0; i < used.size(); ++i) {
                if (used[i] == 0 && encoded[a][i] != 0.0F) {
                    throw std::invalid_argument("sparse layer '" + s.layer + "': padding of array " +
                                                std::to_string(a) +
                                                " is not zero: metaInfo and values are of different patterns");
                }
            }
        }
    });
}

}  // extern "C"
