// Runs a registered operation as PopART would: setup, layouts, forward, and the gradients that autodiff makes of
// gradInputInfo and gradOutToNonGradIn. Stands in for the SDK's libraries; called from Python (test_ipu_op.py).
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <popart/opmanager.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popsparse/FullyConnected.hpp>
#include <popsparse/SparsePartitioner.hpp>
#include <popsparse/codelets.hpp>

extern "C" {

typedef struct {
    const char* name;
    const char* text; /* or NULL for a number */
    int64_t number;
} run_op_attribute;

typedef struct {
    int64_t half, rank; /* float16 or float32 */
    const int64_t* shape;
    double* values; /* of a carrier of bits: the bits as numbers */
} run_op_tensor;
}

namespace {

using popart::DataType;
using popart::Op;
using popart::OperatorIdentifier;
using popart::TensorInfo;
using popart::popx::Devicex;
using Tensors = std::map<int, poplar::Tensor>;

poplar::Type poplarType(const TensorInfo& info) {
    return info.dataType() == DataType::FLOAT16 ? poplar::HALF : poplar::FLOAT;
}

TensorInfo infoOf(const run_op_tensor& tensor) {
    return {tensor.half != 0 ? DataType::FLOAT16 : DataType::FLOAT,
            popart::Shape(tensor.shape, tensor.shape + tensor.rank)};
}

poplar::Tensor tensorOf(const run_op_tensor& tensor) {
    const auto info = infoOf(tensor);
    return {
        poplarType(info), {info.shape().begin(), info.shape().end()}, {tensor.values, tensor.values + info.nelms()}};
}

void require(bool holds, const std::string& what) {
    if (!holds) {
        throw popart::error("{}", what);
    }
}

void requireInfo(const TensorInfo& info, const poplar::Tensor& tensor, const std::string& what) {
    const std::vector<std::size_t> shape(info.shape().begin(), info.shape().end());
    require(tensor.elementType() == poplarType(info) && tensor.shape() == shape, what + " is not as its info says");
}

void give(const poplar::Tensor& tensor, double* values) {
    std::copy(tensor.values().begin(), tensor.values().end(), values);
}

// Where the operation offers a layout for an input, it must be one for that input.
void createInputs(const Op& op, const popart::popx::Opx& opx) {
    for (const auto& [index, info] : op.in_) {
        if (opx.getInputCreatorType(index) == popart::popx::InputCreatorType::CanCreate) {
            require(opx.mustExistBeforeCreate(index).empty(), "an input waits for another");
            requireInfo(info, opx.createInput(index, {}), "created input " + std::to_string(index));
        }
    }
}

Tensors run(Op& op, const Tensors& in, const poplar::Target& target) {
    for (const auto& [index, tensor] : in) {
        requireInfo(op.in_.at(index), tensor, "input " + std::to_string(index));
    }
    op.setup();
    Devicex devicex(target);
    devicex.in = in;
    const auto opx = popart::popx::registeredOpxs.at(op.opid)(&op, &devicex);
    createInputs(op, *opx);
    devicex.graph = poplar::Graph(target);  // what a layout adds to the graph need not be there when a pass is grown
    poplar::program::Sequence prog;
    opx->grow(prog);
    for (const auto& [index, tensor] : devicex.out) {
        requireInfo(op.out_.at(index), tensor, "output " + std::to_string(index));
    }
    return devicex.out;
}

std::string keys(const Op& op) {
    popart::OpSerialiserBase all, outline;
    op.appendAttributes(all);
    op.appendOutlineAttributes(outline);
    return all.text() + "\n" + outline.text() + "\n";
}

// Of one gradient operation: its outputs by the forward input that each is the gradient of.
Tensors backward(Op& gradient, const Op& forward, const Tensors& in, const Tensors& out, const poplar::Tensor& dy,
                 const poplar::Target& target) {
    Tensors given;
    for (const auto& mapper : gradient.gradInputInfo()) {
        const bool ofInput = mapper.type == popart::GradOpInType::In;
        gradient.in_[mapper.iGrad] = ofInput ? forward.in_.at(mapper.iNonGrad) : forward.out_.at(mapper.iNonGrad);
        given[mapper.iGrad] = mapper.type == popart::GradOpInType::GradOut ? dy
                              : ofInput                                    ? in.at(mapper.iNonGrad)
                                                                           : out.at(mapper.iNonGrad);
    }
    Tensors found;
    for (const auto& [index, tensor] : run(gradient, given, target)) {
        const auto of = gradient.gradOutToNonGradIn().at(index);
        requireInfo(forward.in_.at(of), tensor, "the gradient of input " + std::to_string(of));
        found[of] = tensor;
    }
    return found;
}

}  // namespace

extern "C" {

/* y and grads[i] of each input are written; grads[i] may be NULL, for an input without one. keys_: of the operation and
 * its gradients, two lines each, for the executable cache and for outlining. Returns 0, or 1 after a message. */
int run_op(const char* domain, const char* type, int64_t attributes, const run_op_attribute* attribute, int64_t inputs,
           run_op_tensor* input, const run_op_tensor* dy, int64_t tiles, double* y, double** grads, char* keys_,
           char* error, int64_t size) {
    try {
        const OperatorIdentifier id{domain, type, 1};
        const auto& [definition, factory] = popart::registeredOps.at(id);
        require(definition.inputs.size() == static_cast<std::size_t>(inputs), "another number of inputs");
        popart::Attributes given;
        for (const auto* a = attribute; a != attribute + attributes; ++a) {
            require(definition.attributes.count(a->name) == 1, std::string(a->name) + " is not declared");
            given.values[a->name] = a->number;
            if (a->text != nullptr) {
                given.values[a->name] = std::string(a->text);
            }
        }
        const auto target = poplar::Target::createIPUTarget(1, static_cast<unsigned>(tiles), "ipu2");
        const auto op = factory({id, {}, given});
        Tensors in;
        for (int i = 0; i < inputs; ++i) {
            op->in_[i] = infoOf(input[i]);
            in[i] = tensorOf(input[i]);
        }
        const auto out = run(*op, in, target);
        give(out.at(0), y);
        auto text = keys(*op);
        for (const auto& gradient : op->getGradOps()) {
            for (const auto& [of, tensor] : backward(*gradient, *op, in, out, tensorOf(*dy), target)) {
                require(grads[of] != nullptr, "a gradient of input " + std::to_string(of));
                give(tensor, grads[of]);
            }
            text += keys(*gradient);
        }
        std::strncpy(keys_, text.c_str(), static_cast<std::size_t>(size));
        return 0;
    } catch (const std::exception& e) {
        std::strncpy(error, e.what(), static_cast<std::size_t>(size - 1));
        return 1;
    }
}

/* Where the blocks of the pattern stood that was encoded last, in elements; how many they were. */
int64_t encoded_last(int64_t* rows, int64_t* columns) {
    const auto& [r, c] = popsparse::dynamic::encodedLast;
    std::copy(r.begin(), r.end(), rows);
    std::copy(c.begin(), c.end(), columns);
    return static_cast<int64_t>(r.size());
}
}
