// The operation on the device: popsparse's fully connected passes, and operands laid out by popsparse.
#include <exception>
#include <limits>
#include <set>
#include <string>

#include <popart/error.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popsparse/FullyConnected.hpp>
#include <popsparse/SparseTensor.hpp>
#include <popsparse/codelets.hpp>

#include "block_linear_op.hpp"

namespace block_linear {
namespace {

using popsparse::dynamic::SparseTensor;

// popsparse and poplar throw their own types; a user needs the layer's name and what to change.
template <typename Call>
auto named(const LayerSpec& spec, Call&& call) -> decltype(call()) {
    try {
        return call();
    } catch (const popart::error&) {
        throw;
    } catch (const std::exception& e) {
        throw popart::error(std::string("{}"), explain(spec, e.what()));
    }
}

SparseTensor weights(const poplar::Tensor& metaInfo, const poplar::Tensor& nz) {
    // No floating-point instruction ever touches the bits: they only travel as half.
    return SparseTensor(metaInfo.reinterpret(poplar::UNSIGNED_SHORT), nz);
}

class BlockLinearOpx : public popart::popx::Opx {
public:
    BlockLinearOpx(popart::Op* op, popart::popx::Devicex* devicex) : popart::popx::Opx(op, devicex) {
        verifyOp<BlockLinearOp>(op, forwardId());
        inputCreatorPriority = std::numeric_limits<double>::max();
    }

    popart::popx::InputCreatorType getInputCreatorType(popart::InIndex index) const final {
        // x keeps the layout of whatever made it; popsparse rearranges it.
        return index == BlockLinearOp::kX ? popart::popx::InputCreatorType::Deadend
                                          : popart::popx::InputCreatorType::CanCreate;
    }

    std::set<popart::TensorId> mustExistBeforeCreate(int) const final { return {}; }

    poplar::Tensor createInput(popart::InIndex index, const poplar::DebugNameAndId& dnai) const final {
        const auto& op = getOp<BlockLinearOp>();
        if (index != BlockLinearOp::kMetaInfo && index != BlockLinearOp::kNz) {
            throw popart::error("sparse layer '{}': has no layout for input {}", op.spec().layer, index);
        }
        const auto type = dataType(op);
        const auto made = named(op.spec(), [&] {
            popsparse::addCodelets(graph());
            return popsparse::dynamic::createFullyConnectedWeights(
                graph(), type, params(op.spec()), {dnai}, options(op.spec()), planningCache(type, graph().getTarget()));
        });
        const auto tensor = index == BlockLinearOp::kMetaInfo ? made.getMetaInfoTensor().reinterpret(poplar::HALF)
                                                              : made.getNzValuesTensor();
        const auto given = inInfo(index).nelms();
        if (static_cast<std::int64_t>(tensor.numElements()) != given) {
            throw popart::error(
                "sparse layer '{}': the plan for this device needs {} elements of {}, the model has {}: "
                "encode it for the same tiles, options and batch (is the model using IO tiles?)",
                op.spec().layer, tensor.numElements(), index == BlockLinearOp::kMetaInfo ? "metaInfo" : "nz", given);
        }
        return tensor;
    }

    void grow(poplar::program::Sequence& prog) const final {
        const auto& op = getOp<BlockLinearOp>();
        const auto type = dataType(op);
        const auto y = named(op.spec(), [&] {
            popsparse::addCodelets(graph());
            return popsparse::dynamic::fullyConnectedFwd(
                graph(), weights(getInTensor(BlockLinearOp::kMetaInfo), getInTensor(BlockLinearOp::kNz)),
                getInTensor(BlockLinearOp::kX), params(op.spec()), prog, debugContext("blockLinear"),
                options(op.spec()), planningCache(type, graph().getTarget()));
        });
        setOutTensor(BlockLinearOp::kY, y);
    }

private:
    poplar::Type dataType(const BlockLinearOp& op) const {
        return op.inInfo(BlockLinearOp::kX).dataType() == popart::DataType::FLOAT16 ? poplar::HALF : poplar::FLOAT;
    }
};

class BlockLinearGradOpx : public popart::popx::Opx {
public:
    BlockLinearGradOpx(popart::Op* op, popart::popx::Devicex* devicex) : popart::popx::Opx(op, devicex) {
        verifyOp<BlockLinearGradOp>(op, gradId());
    }

    void grow(poplar::program::Sequence& prog) const final {
        const auto& op = getOp<BlockLinearGradOp>();
        const auto dy = getInTensor(BlockLinearGradOp::kDy);
        const auto x = getInTensor(BlockLinearGradOp::kX);
        const auto sparse = weights(getInTensor(BlockLinearGradOp::kMetaInfo), getInTensor(BlockLinearGradOp::kNz));
        const auto type = x.elementType();
        const auto fcParams = params(op.spec());
        const auto fcOptions = options(op.spec());
        named(op.spec(), [&] {
            auto* cache = planningCache(type, graph().getTarget());
            popsparse::addCodelets(graph());
            const auto dx = popsparse::dynamic::fullyConnectedGradA(graph(), sparse, dy, fcParams, prog,
                                                                    debugContext("blockLinearGradA"), fcOptions, cache);
            const auto dnz =
                popsparse::dynamic::fullyConnectedSparseGradW(graph(), sparse.getMetaInfoTensor(), dy, x, fcParams,
                                                              prog, debugContext("blockLinearGradW"), fcOptions, cache);
            setOutTensor(BlockLinearGradOp::kDx, dx);
            setOutTensor(BlockLinearGradOp::kDnz, dnz);
        });
    }
};

const popart::popx::OpxCreator<BlockLinearOpx> kForwardCreator(forwardId());
const popart::popx::OpxCreator<BlockLinearGradOpx> kGradCreator(gradId());

}  // namespace
}  // namespace block_linear
