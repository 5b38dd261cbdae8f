// y = x W^T with W block sparse: (x [batch, in], metaInfo [m] half bits, nz [n]) -> y [batch, out].
// x is the first input because PopTorch takes the type of a single output from the first input.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include <popart/op.hpp>
#include <popart/opserialiser.hpp>

#include "layer_spec.hpp"

namespace block_linear {

// Functions, because registrations in several files use them before main, in no defined order.
const popart::OperatorIdentifier& forwardId();
const popart::OperatorIdentifier& gradId();

// What the operation and its gradient share: their plan, which is part of every key that they are found by.
class PlannedOp : public popart::Op {
public:
    PlannedOp(const popart::OperatorIdentifier& opid, LayerSpec spec, const popart::Op::Settings& settings);

    void appendAttributes(popart::OpSerialiserBase& os) const override;
    void appendOutlineAttributes(popart::OpSerialiserBase& os) const override;
    // Every layer of one shape and plan may share one compiled routine: that is most of the program's size.
    float getSubgraphValue() const override { return getHighSubgraphValue(); }

    const LayerSpec& spec() const { return spec_; }

private:
    LayerSpec spec_;
};

class BlockLinearOp : public PlannedOp {
public:
    static constexpr popart::InIndex kX = 0, kMetaInfo = 1, kNz = 2;
    static constexpr popart::OutIndex kY = 0;

    using PlannedOp::PlannedOp;

    std::unique_ptr<popart::Op> clone() const override;
    void setup() override;
    std::vector<std::unique_ptr<popart::Op>> getGradOps() override;
};

// dY, and the three forward inputs -> dX [batch, in], dNz [n]. There is no gradient of metaInfo.
class BlockLinearGradOp : public PlannedOp {
public:
    static constexpr popart::InIndex kDy = 0, kX = 1, kMetaInfo = 2, kNz = 3;
    static constexpr popart::OutIndex kDx = 0, kDnz = 1;

    explicit BlockLinearGradOp(const BlockLinearOp& forward);

    std::unique_ptr<popart::Op> clone() const override;
    void setup() override;
    const std::vector<popart::GradInOutMapper>& gradInputInfo() const override;
    const std::map<int, int>& gradOutToNonGradIn() const override;
};

}  // namespace block_linear
