// The passes of popsparse, computed in double precision.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <popsparse/SparseTensor.hpp>
#include <popsparse/plan.hpp>

namespace popsparse::dynamic {

// What any pass makes sure of first.
inline Plan planOfPass(const poplar::Graph& graph, const poplar::Tensor& metaInfo, const poplar::Type& type,
                       const FullyConnectedParams& params, const poplar::OptionFlags& options, PlanningCache* cache) {
    if (!graph.hasPopsparse) {
        throw std::runtime_error("popsparse's codelets were not added");
    }
    if (metaInfo.elementType() != poplar::UNSIGNED_SHORT) {
        throw std::runtime_error("metaInfo must be ushort, found " + metaInfo.elementType().toString());
    }
    return plan(params, type, graph.getTarget(), options, cache);
}

inline void requireShape(const char* name, const poplar::Tensor& tensor, const std::vector<std::size_t>& shape) {
    if (tensor.shape() != shape) {
        throw std::runtime_error(std::string(name) + " has another shape");
    }
}

// [batch, from] times the blocks, or their transposes, to [batch, to].
inline poplar::Tensor product(const Plan& p, const SparseTensor& weights, const poplar::Tensor& given,
                              bool transposed) {
    const auto from = transposed ? p.out : p.in, to = transposed ? p.in : p.out, b = p.block;
    requireShape("the dense operand", given, {p.batch, from});
    requireShape("nz", weights.getNzValuesTensor(), {p.nzElements()});
    const auto& nz = weights.getNzValuesTensor().values();
    std::vector<double> made(p.batch * to, 0.0);
    for (const auto& one : held(p, weights.getMetaInfoTensor().values())) {
        for (std::size_t e = 0; e < b * b; ++e) {
            const auto row = one.row * b + e / b, column = one.column * b + e % b;
            const auto target = transposed ? column : row, source = transposed ? row : column;
            for (std::size_t n = 0; n < p.batch; ++n) {
                made[n * to + target] += nz[one.place + e] * given.values()[n * from + source];
            }
        }
    }
    return {given.elementType(), {p.batch, to}, std::move(made)};
}

inline SparseTensor createFullyConnectedWeights(poplar::Graph& graph, const poplar::Type& inputType,
                                                const FullyConnectedParams& params, const poplar::DebugContext&,
                                                const poplar::OptionFlags& options, PlanningCache* cache) {
    const auto p = plan(params, inputType, graph.getTarget(), options, cache);
    const auto zeros = [](const poplar::Type& type, std::size_t size) {
        return poplar::Tensor(type, {size}, std::vector<double>(size, 0.0));
    };
    return {zeros(poplar::UNSIGNED_SHORT, p.metaElements()), zeros(inputType, p.nzElements())};
}

inline poplar::Tensor fullyConnectedFwd(poplar::Graph& graph, const SparseTensor& weights,
                                        const poplar::Tensor& activations, const FullyConnectedParams& params,
                                        poplar::program::Sequence&, const poplar::DebugContext&,
                                        const poplar::OptionFlags& options, PlanningCache* cache) {
    const auto p = planOfPass(graph, weights.getMetaInfoTensor(), activations.elementType(), params, options, cache);
    return product(p, weights, activations, /*transposed=*/false);
}

inline poplar::Tensor fullyConnectedGradA(poplar::Graph& graph, const SparseTensor& weights,
                                          const poplar::Tensor& gradients, const FullyConnectedParams& params,
                                          poplar::program::Sequence&, const poplar::DebugContext&,
                                          const poplar::OptionFlags& options, PlanningCache* cache) {
    const auto p = planOfPass(graph, weights.getMetaInfoTensor(), gradients.elementType(), params, options, cache);
    if (!p.gradA) {
        throw std::runtime_error("No valid plan: doGradAPass was not asked for");
    }
    return product(p, weights, gradients, /*transposed=*/true);
}

inline poplar::Tensor fullyConnectedSparseGradW(poplar::Graph& graph, const poplar::Tensor metaInfo,
                                                const poplar::Tensor& gradA, const poplar::Tensor& activations,
                                                const FullyConnectedParams& params, poplar::program::Sequence&,
                                                const poplar::DebugContext&, const poplar::OptionFlags& options,
                                                PlanningCache* cache) {
    const auto p = planOfPass(graph, metaInfo, activations.elementType(), params, options, cache);
    if (!p.gradW) {
        throw std::runtime_error("No valid plan: doGradWPass was not asked for, so metaInfo has no room for it");
    }
    requireShape("the gradient", gradA, {p.batch, p.out});
    requireShape("the activations", activations, {p.batch, p.in});
    const auto b = p.block;
    std::vector<double> made(p.nzElements(), 0.0);
    for (const auto& one : held(p, metaInfo.values())) {
        for (std::size_t e = 0; e < b * b; ++e) {
            const auto row = one.row * b + e / b, column = one.column * b + e % b;
            for (std::size_t n = 0; n < p.batch; ++n) {
                made[one.place + e] += gradA.values()[n * p.out + row] * activations.values()[n * p.in + column];
            }
        }
    }
    return {activations.elementType(), {p.nzElements()}, std::move(made)};
}

}  // namespace popsparse::dynamic
