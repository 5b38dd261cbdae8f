// Not popsparse's: the plan that its host and its device side share, with a layout of a few lines. The grid of blocks
// is cut into parts, a bucket each; a bucket has room for its share of the blocks and some more, and what is too much
// for one goes into the next that has room. metaInfo of a bucket: how many blocks, then (row, column) of each in the
// order of its values, which is not the order they came in, then room that only a plan with a weight gradient has.
#pragma once

#include <cmath>
#include <cstddef>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <popsparse/FullyConnectedParams.hpp>
#include <popsparse/PlanningCache.hpp>

namespace popsparse::dynamic {

struct Plan {
    std::size_t block, batch, in, out, blocks;  // block: its side; batch, in, out: elements
    std::size_t parts, room;                    // the grid is cut into parts x parts buckets of so many blocks
    bool gradA, gradW;

    static constexpr std::size_t kGradWCodes = 6;  // one for each worker
    std::size_t buckets() const { return parts * parts; }
    std::size_t nzElements() const { return buckets() * room * block * block; }
    std::size_t metaPerBucket() const { return 1 + 2 * room + (gradW ? kGradWCodes : 0); }
    std::size_t metaElements() const { return buckets() * metaPerBucket(); }
    std::size_t home(std::size_t row, std::size_t column) const {
        return row * parts / (out / block) * parts + column * parts / (in / block);
    }
};

// What a bucket holds: where each block stands, in blocks, and where its values begin in nz.
struct Held {
    std::size_t row, column, place;
};

inline Plan plan(const FullyConnectedParams& params, const poplar::Type& type, const poplar::Target& target,
                 const poplar::OptionFlags& options, PlanningCache* cache) {
    static const std::set<std::string> known = {"availableMemoryProportion",
                                                "metaInfoBucketOversizeProportion",
                                                "doGradAPass",
                                                "doGradWPass",
                                                "partialsType",
                                                "sharedBuckets"};
    std::map<std::string, std::string> given = {
        {"metaInfoBucketOversizeProportion", "0.3"}, {"doGradAPass", "false"}, {"doGradWPass", "false"}};
    for (const auto& [name, value] : options) {
        if (known.count(name) == 0) {
            throw std::runtime_error("unknown option " + name);
        }
        given[name] = value;
    }
    if (cache != nullptr) {
        const auto with = type.toString() + " " + std::to_string(target.getTilesPerIPU());
        if (!cache->usedWith.empty() && cache->usedWith != with) {
            throw std::runtime_error("a planning cache for " + cache->usedWith + " was used for " + with);
        }
        cache->usedWith = with;
    }
    if (params.getNumGroups() != 1) {
        throw std::runtime_error("the partitioner knows one group only");
    }
    Plan made{};
    made.block = params.getSparsityParams().blockDimensions[0];
    made.batch = params.getBatchSize();
    made.in = params.getInputChannels();
    made.out = params.getOutputChannels();
    made.blocks = params.getNumNonZeroValues() / (made.block * made.block);
    made.parts = static_cast<std::size_t>(std::sqrt(target.getTilesPerIPU()));
    const auto share = (made.blocks + made.buckets() - 1) / made.buckets();
    const auto oversize = std::stod(given["metaInfoBucketOversizeProportion"]);
    made.room = static_cast<std::size_t>(std::ceil(static_cast<double>(share) * (1.0 + oversize)));
    made.gradA = given["doGradAPass"] == "true";
    made.gradW = given["doGradWPass"] == "true";
    return made;
}

// The blocks that metaInfo describes.
template <typename T>
std::vector<Held> held(const Plan& p, const std::vector<T>& metaInfo) {
    if (metaInfo.size() != p.metaElements()) {
        throw std::runtime_error("metaInfo of another plan");
    }
    std::vector<Held> found;
    for (std::size_t bucket = 0; bucket < p.buckets(); ++bucket) {
        const auto* codes = metaInfo.data() + bucket * p.metaPerBucket();
        for (std::size_t i = 0; i < static_cast<std::size_t>(codes[0]); ++i) {
            found.push_back({static_cast<std::size_t>(codes[1 + 2 * i]), static_cast<std::size_t>(codes[2 + 2 * i]),
                             (bucket * p.room + i) * p.block * p.block});
        }
    }
    return found;
}

}  // namespace popsparse::dynamic
