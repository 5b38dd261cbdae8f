#pragma once

#include <map>
#include <set>
#include <string>

#include <popart/op.hpp>
#include <poplar/Graph.hpp>

namespace popart::popx {

enum class InputCreatorType { CanCreate, CanUnwind, Deadend };

// Not PopART's members: the graph of one IPU, and the tensors of the operation that is run.
class Devicex {
public:
    explicit Devicex(poplar::Target target) : graph(std::move(target)) {}
    poplar::Graph graph;
    std::map<int, poplar::Tensor> in, out;
};

class Opx {
public:
    Opx(Op* op, Devicex* devicex) : op_(op), devicex_(devicex) {}
    virtual ~Opx() = default;

    virtual InputCreatorType getInputCreatorType(InIndex) const { return InputCreatorType::Deadend; }
    virtual poplar::Tensor createInput(InIndex, const poplar::DebugNameAndId&) const { throw error("no createInput"); }
    virtual std::set<TensorId> mustExistBeforeCreate(int) const { throw error("no mustExistBeforeCreate"); }
    virtual void grow(poplar::program::Sequence&) const { throw error("no grow"); }

    double inputCreatorPriority = 0.0;

protected:
    template <class OP>
    OP& getOp() const {
        auto* op = dynamic_cast<OP*>(op_);
        if (op == nullptr) {
            throw error("getOp: {} is another operation", op_->opid.type);
        }
        return *op;
    }
    template <class OP>
    void verifyOp(Op* op, const OperatorIdentifier& id) {
        if (op->opid.domain != id.domain || op->opid.type != id.type) {
            throw error("cannot create opx for {} from {}", id.type, op->opid.type);
        }
    }
    poplar::Graph& graph() const { return devicex_->graph; }
    const poplar::Tensor& getInTensor(InIndex index) const { return devicex_->in.at(index); }
    void setOutTensor(OutIndex index, const poplar::Tensor& tensor) const { devicex_->out[index] = tensor; }
    const TensorInfo& inInfo(InIndex index) const { return op_->inInfo(index); }
    poplar::DebugContext debugContext(const std::string&) const { return {}; }

private:
    Op* op_;
    Devicex* devicex_;
};

}  // namespace popart::popx
