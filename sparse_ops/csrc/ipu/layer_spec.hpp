// What popsparse needs to know of one sparse layer, built in one place for the compiler's side (op, forward,
// both gradients) and for the host's side (encoding of patterns): the two agree only if parameters and
// options are identical to the character.
#pragma once

#include <cstdint>
#include <string>

#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <poplar/Type.hpp>
#include <popsparse/FullyConnectedParams.hpp>
#include <popsparse/PlanningCache.hpp>

namespace block_linear {

// Part of every executable cache key: raise it whenever this library would compile another program from the
// same attributes, because the key does not look into the library.
constexpr std::int64_t kAbiVersion = 1;

struct LayerSpec {
    std::string layer;  // for messages only; never part of a plan
    std::int64_t inFeatures = 0;
    std::int64_t outFeatures = 0;
    std::int64_t blockSize = 0;
    std::int64_t nonZeros = 0;                     // elements: blocks x blockSize x blockSize
    std::int64_t batch = 0;                        // rows of x in one micro-batch
    std::string availableMemoryProportion;         // decimal text, passed on verbatim
    std::string metaInfoBucketOversizeProportion;  // decimal text, above 0
    std::string partialsType;                      // "half" or "float"

    std::int64_t nonZeroBlocks() const { return nonZeros / (blockSize * blockSize); }
};

// Throws std::invalid_argument that names the layer, what was expected and what was found.
void validate(const LayerSpec& spec, const poplar::Type& dataType);

popsparse::dynamic::FullyConnectedParams params(const LayerSpec& spec);
poplar::OptionFlags options(const LayerSpec& spec);

// One cache for each data type and target: popsparse's own key knows neither.
popsparse::dynamic::PlanningCache* planningCache(const poplar::Type& dataType, const poplar::Target& target);

// What a user can do about an exception of popsparse or poplar for this layer.
std::string explain(const LayerSpec& spec, const std::string& what);

}  // namespace block_linear
