#include "block_linear_op.hpp"

#include <stdexcept>
#include <string>
#include <utility>

#include <popart/error.hpp>
#include <popart/opmanager.hpp>
#include <popart/tensorinfo.hpp>

namespace block_linear {

// Not a domain of our own: shape inference looks the version of a domain up in a fixed list.
const popart::OperatorIdentifier& forwardId() {
    static const popart::OperatorIdentifier id = {"ai.graphcore", "BlockSparseLinear", 1};
    return id;
}

const popart::OperatorIdentifier& gradId() {
    static const popart::OperatorIdentifier id = {"ai.graphcore", "BlockSparseLinearGrad", 1};
    return id;
}

namespace {

// Two operations that differ in any of these have different plans and must be neither merged by outlining nor
// found in the executable cache for one another. The layer's name is left out: it changes no plan.
void appendSpec(popart::OpSerialiserBase& os, const LayerSpec& spec) {
    os.appendAttribute("in_features", spec.inFeatures);
    os.appendAttribute("out_features", spec.outFeatures);
    os.appendAttribute("block_size", spec.blockSize);
    os.appendAttribute("nonzeros", spec.nonZeros);
    os.appendAttribute("batch", spec.batch);
    os.appendAttribute("available_memory_proportion", spec.availableMemoryProportion);
    os.appendAttribute("meta_info_bucket_oversize_proportion", spec.metaInfoBucketOversizeProportion);
    os.appendAttribute("partials_type", spec.partialsType);
    os.appendAttribute("abi", kAbiVersion);
}

poplar::Type poplarType(const LayerSpec& spec, popart::DataType type) {
    switch (type) {
        case popart::DataType::FLOAT16: return poplar::HALF;
        case popart::DataType::FLOAT: return poplar::FLOAT;
        default: throw popart::error("sparse layer '{}': x must be float16 or float32", spec.layer);
    }
}

}  // namespace

PlannedOp::PlannedOp(const popart::OperatorIdentifier& opid, LayerSpec spec, const popart::Op::Settings& settings)
    : popart::Op(opid, settings), spec_(std::move(spec)) {}

void PlannedOp::appendAttributes(popart::OpSerialiserBase& os) const {
    popart::Op::appendAttributes(os);
    appendSpec(os, spec_);
}

void PlannedOp::appendOutlineAttributes(popart::OpSerialiserBase& os) const {
    popart::Op::appendOutlineAttributes(os);
    appendSpec(os, spec_);
}

std::unique_ptr<popart::Op> BlockLinearOp::clone() const { return std::make_unique<BlockLinearOp>(*this); }

void BlockLinearOp::setup() {
    const auto& x = inInfo(kX);
    const auto& metaInfo = inInfo(kMetaInfo);
    const auto& nz = inInfo(kNz);
    try {
        validate(spec(), poplarType(spec(), x.dataType()));
    } catch (const std::invalid_argument& e) {
        throw popart::error(std::string("{}"), std::string(e.what()));
    }
    if (x.shape() != popart::Shape{spec().batch, spec().inFeatures}) {
        throw popart::error("sparse layer '{}': x must be [{}, {}] (batch, in_features), found {}", spec().layer,
                            spec().batch, spec().inFeatures, x.shape());
    }
    if (metaInfo.dataType() != popart::DataType::FLOAT16 || metaInfo.rank() != 1) {
        throw popart::error("sparse layer '{}': metaInfo must be a 1-D float16 tensor that carries uint16 bits (an "
                            "integer buffer would be frozen into the executable), found {} {}",
                            spec().layer, metaInfo.data_type(), metaInfo.shape());
    }
    if (nz.dataType() != x.dataType() || nz.rank() != 1) {
        throw popart::error("sparse layer '{}': nz must be 1-D and of x's type {}, found {} {}", spec().layer,
                            x.data_type(), nz.data_type(), nz.shape());
    }
    outInfo(kY) = popart::TensorInfo(x.dataType(), {spec().batch, spec().outFeatures});
}

std::vector<std::unique_ptr<popart::Op>> BlockLinearOp::getGradOps() {
    std::vector<std::unique_ptr<popart::Op>> ops;
    ops.emplace_back(std::make_unique<BlockLinearGradOp>(*this));
    return ops;
}

BlockLinearGradOp::BlockLinearGradOp(const BlockLinearOp& forward)
    : PlannedOp(gradId(), forward.spec(), forward.getSettings()) {}

std::unique_ptr<popart::Op> BlockLinearGradOp::clone() const { return std::make_unique<BlockLinearGradOp>(*this); }

void BlockLinearGradOp::setup() {
    outInfo(kDx) = inInfo(kX);
    outInfo(kDnz) = inInfo(kNz);
}

const std::vector<popart::GradInOutMapper>& BlockLinearGradOp::gradInputInfo() const {
    static const std::vector<popart::GradInOutMapper> inputs = {
        {kDy, BlockLinearOp::kY, popart::GradOpInType::GradOut},
        {kX, BlockLinearOp::kX, popart::GradOpInType::In},
        {kMetaInfo, BlockLinearOp::kMetaInfo, popart::GradOpInType::In},
        {kNz, BlockLinearOp::kNz, popart::GradOpInType::In}};
    return inputs;
}

const std::map<int, int>& BlockLinearGradOp::gradOutToNonGradIn() const {
    static const std::map<int, int> outputs = {{kDx, BlockLinearOp::kX}, {kDnz, BlockLinearOp::kNz}};
    return outputs;
}

namespace {

const popart::OpDefinition::DataTypes kFloating = {popart::DataType::FLOAT16, popart::DataType::FLOAT};
const popart::OpDefinition::DataTypes kHalf = {popart::DataType::FLOAT16};

const popart::OpDefinition kDefinition(
    {popart::OpDefinition::Inputs({{"x", kFloating}, {"meta_info", kHalf}, {"nz", kFloating}}),
     popart::OpDefinition::Outputs({{"y", kFloating}}),
     popart::OpDefinition::Attributes({{"in_features", {"*"}},
                                       {"out_features", {"*"}},
                                       {"block_size", {"*"}},
                                       {"nonzeros", {"*"}},
                                       {"batch", {"*"}},
                                       {"available_memory_proportion", {"*"}},
                                       {"meta_info_bucket_oversize_proportion", {"*"}},
                                       {"partials_type", {"*"}},
                                       {"abi", {"*"}},
                                       {"layer", {"*"}}})});

const popart::OpCreator<BlockLinearOp> kCreator(
    popart::OpDefinitions({{forwardId(), kDefinition}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
        using Int = popart::Attributes::Int;
        using String = popart::Attributes::String;
        const auto& attributes = info.attributes;
        LayerSpec spec;
        spec.layer = attributes.getAttribute<String>("layer");
        spec.inFeatures = attributes.getAttribute<Int>("in_features");
        spec.outFeatures = attributes.getAttribute<Int>("out_features");
        spec.blockSize = attributes.getAttribute<Int>("block_size");
        spec.nonZeros = attributes.getAttribute<Int>("nonzeros");
        spec.batch = attributes.getAttribute<Int>("batch");
        spec.availableMemoryProportion = attributes.getAttribute<String>("available_memory_proportion");
        spec.metaInfoBucketOversizeProportion = attributes.getAttribute<String>("meta_info_bucket_oversize_proportion");
        spec.partialsType = attributes.getAttribute<String>("partials_type");
        const auto abi = attributes.getAttribute<Int>("abi");
        if (abi != kAbiVersion) {
            throw popart::error("sparse layer '{}': the model asks for version {} of the sparse operation, the loaded "
                                "library has {}: build it again (python -m sparse_ops.build ipu)",
                                spec.layer, abi, kAbiVersion);
        }
        return std::make_unique<BlockLinearOp>(info.opid, std::move(spec), info.settings);
    },
    true);

}  // namespace
}  // namespace block_linear
