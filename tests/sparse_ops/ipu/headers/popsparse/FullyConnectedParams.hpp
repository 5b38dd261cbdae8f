#pragma once

#include <array>
#include <cstddef>

namespace popsparse::dynamic {

enum class SparsityType { Element, Block };
enum class SparsityStructure { Unstructured };

struct SparsityParams {
    SparsityParams(SparsityType, SparsityStructure, std::array<std::size_t, 2> dimensions)
        : blockDimensions(dimensions) {}
    std::array<std::size_t, 2> blockDimensions;
};

class FullyConnectedParams {
public:
    static FullyConnectedParams createWithNumNonZeroValues(const SparsityParams& sparsity, std::size_t nonZeros,
                                                           std::size_t batch, std::size_t groups, std::size_t in,
                                                           std::size_t out) {
        return {sparsity, nonZeros, batch, groups, in, out};
    }
    const SparsityParams& getSparsityParams() const { return sparsity_; }
    std::size_t getNumNonZeroValues() const { return nonZeros_; }
    std::size_t getBatchSize() const { return batch_; }
    std::size_t getNumGroups() const { return groups_; }
    std::size_t getInputChannels() const { return in_; }
    std::size_t getOutputChannels() const { return out_; }

private:
    FullyConnectedParams(const SparsityParams& sparsity, std::size_t nonZeros, std::size_t batch, std::size_t groups,
                         std::size_t in, std::size_t out)
        : sparsity_(sparsity), nonZeros_(nonZeros), batch_(batch), groups_(groups), in_(in), out_(out) {}

    SparsityParams sparsity_;
    std::size_t nonZeros_, batch_, groups_, in_, out_;
};

}  // namespace popsparse::dynamic
