#include "layer_spec.hpp"

#include <map>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace block_linear {
namespace {

[[noreturn]] void refuse(const LayerSpec& spec, const std::string& message) {
    throw std::invalid_argument("sparse layer '" + spec.layer + "': " + message);
}

double decimal(const LayerSpec& spec, const char* name, const std::string& text) {
    std::size_t used = 0;
    double value = 0.0;
    try {
        value = std::stod(text, &used);
    } catch (const std::exception&) {
        used = 0;
    }
    if (text.empty() || used != text.size()) {
        refuse(spec, std::string(name) + " must be a decimal number, found '" + text + "'");
    }
    return value;
}

void positive(const LayerSpec& spec, const char* name, std::int64_t value) {
    if (value <= 0) {
        refuse(spec, std::string(name) + " must be above 0, found " + std::to_string(value));
    }
}

}  // namespace

void validate(const LayerSpec& spec, const poplar::Type& dataType) {
    positive(spec, "in_features", spec.inFeatures);
    positive(spec, "out_features", spec.outFeatures);
    positive(spec, "batch", spec.batch);
    positive(spec, "nonzeros", spec.nonZeros);
    const auto b = spec.blockSize;
    if (b != 1 && b != 4 && b != 8 && b != 16) {
        refuse(spec,
               "block_size must be 1, 4, 8 or 16 (the sizes popsparse has codelets for), found " + std::to_string(b));
    }
    if (spec.inFeatures % b != 0 || spec.outFeatures % b != 0) {
        refuse(spec, "in_features " + std::to_string(spec.inFeatures) + " and out_features " +
                         std::to_string(spec.outFeatures) + " must be multiples of block_size " + std::to_string(b));
    }
    if (spec.nonZeros % (b * b) != 0 || spec.nonZeros > spec.inFeatures * spec.outFeatures) {
        refuse(spec, "nonzeros counts elements: a multiple of block_size^2 up to in_features x out_features, found " +
                         std::to_string(spec.nonZeros));
    }
    if (dataType != poplar::HALF && dataType != poplar::FLOAT) {
        refuse(spec, "data type must be half or float, found " + std::string(dataType.toString()));
    }
    if (spec.partialsType != "half" && spec.partialsType != "float") {
        refuse(spec, "partials_type must be half or float, found '" + spec.partialsType + "'");
    }
    if (b == 1) {
        if (spec.partialsType == "half") {
            refuse(spec, "1x1 blocks have float partials only: set partials_type to float");
        }
        const std::int64_t grain = dataType == poplar::HALF ? 4 : 2;
        if (spec.batch % grain != 0) {
            refuse(spec, "1x1 blocks need a batch (micro-batch size x sequence length) that is a multiple of " +
                             std::to_string(grain) + ", found " + std::to_string(spec.batch));
        }
    }
    const double memory = decimal(spec, "available_memory_proportion", spec.availableMemoryProportion);
    if (!(memory > 0.0 && memory <= 1.0)) {
        refuse(spec, "available_memory_proportion must be in (0, 1], found " + spec.availableMemoryProportion);
    }
    const double oversize =
        decimal(spec, "meta_info_bucket_oversize_proportion", spec.metaInfoBucketOversizeProportion);
    if (!(oversize > 0.0)) {
        refuse(spec, "meta_info_bucket_oversize_proportion must be above 0 (popsparse rejects 0), found " +
                         spec.metaInfoBucketOversizeProportion);
    }
}

popsparse::dynamic::FullyConnectedParams params(const LayerSpec& spec) {
    using namespace popsparse::dynamic;
    const auto b = static_cast<std::size_t>(spec.blockSize);
    const SparsityParams sparsity(b == 1 ? SparsityType::Element : SparsityType::Block, SparsityStructure::Unstructured,
                                  {b, b});
    return FullyConnectedParams::createWithNumNonZeroValues(
        sparsity, static_cast<std::size_t>(spec.nonZeros), static_cast<std::size_t>(spec.batch),
        /*numGroups=*/1, static_cast<std::size_t>(spec.inFeatures), static_cast<std::size_t>(spec.outFeatures));
}

poplar::OptionFlags options(const LayerSpec& spec) {
    poplar::OptionFlags flags;
    flags.set("availableMemoryProportion", spec.availableMemoryProportion);
    flags.set("metaInfoBucketOversizeProportion", spec.metaInfoBucketOversizeProportion);
    flags.set("partialsType", spec.partialsType);
    // The plan is shared by all passes: every caller says that both gradients exist, also for a forward pass.
    flags.set("doGradAPass", "true");
    flags.set("doGradWPass", "true");
    flags.set("sharedBuckets", "true");
    return flags;
}

popsparse::dynamic::PlanningCache* planningCache(const poplar::Type& dataType, const poplar::Target& target) {
    // Thread local: the planner's cache has no lock of its own.
    using Key = std::tuple<std::string, unsigned, unsigned, std::string>;
    using Entry = std::pair<poplar::Target, std::unique_ptr<popsparse::dynamic::PlanningCache>>;
    thread_local std::multimap<Key, Entry> caches;
    const Key key{std::string(dataType.toString()), target.getTilesPerIPU(), target.getBytesPerTile(),
                  std::string(target.getTargetArchString())};
    const auto range = caches.equal_range(key);
    for (auto it = range.first; it != range.second; ++it) {
        if (it->second.first == target) {
            return it->second.second.get();
        }
    }
    const auto made = caches.emplace(key, Entry(target, std::make_unique<popsparse::dynamic::PlanningCache>()));
    return made->second.second.get();
}

std::string explain(const LayerSpec& spec, const std::string& what) {
    const auto has = [&](const char* text) { return what.find(text) != std::string::npos; };
    const std::string b = std::to_string(spec.blockSize);
    std::string advice;
    if (has("Overflow in buckets") || has("exceeds specified bucket size")) {
        advice = "this pattern does not fit the buckets that were planned: "
                 "raise meta_info_bucket_oversize_proportion (now " +
                 spec.metaInfoBucketOversizeProportion + "); the model is then compiled anew";
    } else if (has("exceeds type bound")) {
        advice = "metaInfo does not fit 16 bits: use larger blocks (now " + b + "x" + b +
                 ") or a smaller micro-batch (now " + std::to_string(spec.batch) + " rows)";
    } else if (has("Validation failed")) {
        advice = "positions of the pattern are out of range or not multiples of the block size";
    } else if (has("availableMemory") || has("out of memory") || has("No valid plan")) {
        advice = "change available_memory_proportion (now " + spec.availableMemoryProportion + ") for this layer";
    } else {
        advice = "check block size (" + b + "), batch (" + std::to_string(spec.batch) + "), partials (" +
                 spec.partialsType + ") and the popsparse options";
    }
    return "sparse layer '" + spec.layer + "' [" + std::to_string(spec.outFeatures) + ", " +
           std::to_string(spec.inFeatures) + "], " + std::to_string(spec.nonZeroBlocks()) + " blocks of " + b + "x" +
           b + ": " + advice + ". popsparse said: " + what;
}

}  // namespace block_linear
