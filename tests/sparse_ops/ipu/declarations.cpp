// What the stand-ins declare, asked of any headers: the tests compile this with ours, check_op.sh with the public ones.
// Where two operands have one type, no compiler tells them apart: docs/ipu.md names the lines that say which is which.
#include <set>
#include <string>
#include <type_traits>
#include <utility>

#include <popart/error.hpp>
#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensorinfo.hpp>
#include <poplar/Graph.hpp>
#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <poplar/Tensor.hpp>
#include <poplar/Type.hpp>
#include <popsparse/FullyConnected.hpp>
#include <popsparse/FullyConnectedParams.hpp>
#include <popsparse/PlanningCache.hpp>
#include <popsparse/SparsePartitioner.hpp>
#include <popsparse/SparseStorageFormats.hpp>
#include <popsparse/SparseTensor.hpp>
#include <popsparse/codelets.hpp>

namespace {

using poplar::DebugContext;
using poplar::DebugNameAndId;
using poplar::Graph;
using poplar::OptionFlags;
using poplar::Target;
using poplar::Tensor;
using poplar::Type;
using poplar::program::Sequence;
namespace dynamic = popsparse::dynamic;
using dynamic::FullyConnectedParams;
using dynamic::PlanningCache;
using dynamic::SparseTensor;

template <typename Expected, typename Found>
constexpr bool same = std::is_same_v<Expected, Found>;
template <typename T>
T any();  // never called

// --- popsparse: (graph, metaInfo, dY, x, ...) and (graph, weights, x or dY, ...)
static_assert(same<SparseTensor (*)(Graph&, const Type&, const FullyConnectedParams&, const DebugContext&,
                                    const OptionFlags&, PlanningCache*),
                   decltype(&dynamic::createFullyConnectedWeights)>);
using Pass = Tensor (*)(Graph&, const SparseTensor&, const Tensor&, const FullyConnectedParams&, Sequence&,
                        const DebugContext&, const OptionFlags&, PlanningCache*);
static_assert(same<Pass, decltype(&dynamic::fullyConnectedFwd)>);
static_assert(same<Pass, decltype(&dynamic::fullyConnectedGradA)>);
static_assert(same<Tensor (*)(Graph&, Tensor, const Tensor&, const Tensor&, const FullyConnectedParams&, Sequence&,
                              const DebugContext&, const OptionFlags&, PlanningCache*),
                   decltype(&dynamic::fullyConnectedSparseGradW)>);
static_assert(same<void (*)(Graph&), decltype(&popsparse::addCodelets)>);
static_assert(same<FullyConnectedParams (*)(const dynamic::SparsityParams&, std::size_t, std::size_t, std::size_t,
                                            std::size_t, std::size_t),
                   decltype(&FullyConnectedParams::createWithNumNonZeroValues)>);
static_assert(std::is_constructible_v<dynamic::SparsityParams, dynamic::SparsityType, dynamic::SparsityStructure,
                                      std::array<std::size_t, 2>>);
static_assert(same<std::size_t (FullyConnectedParams::*)() const, decltype(&FullyConnectedParams::getInputChannels)>);
static_assert(same<std::size_t (FullyConnectedParams::*)() const, decltype(&FullyConnectedParams::getOutputChannels)>);
static_assert(same<const Tensor& (SparseTensor::*)() const, decltype(&SparseTensor::getMetaInfoTensor)>);
static_assert(same<const Tensor& (SparseTensor::*)() const, decltype(&SparseTensor::getNzValuesTensor)>);
static_assert(std::is_constructible_v<SparseTensor, const Tensor&, const Tensor&>);

using Indices = std::vector<std::size_t>;
using Coo = popsparse::COOMatrix<double>;
using Partitioner = dynamic::Partitioner<double>;
using Encoded = dynamic::SparsityDataImpl<double>;
static_assert(std::is_constructible_v<Coo, std::size_t, std::size_t, std::vector<double>&&, Indices&&, Indices&&,
                                      const std::array<std::size_t, 2>&>);
static_assert(same<Indices, decltype(Coo::rowIndices)> && same<Indices, decltype(Coo::columnIndices)>);
static_assert(same<Indices, decltype(Encoded::metaInfo)> && same<std::vector<double>, decltype(Encoded::nzValues)>);
static_assert(std::is_constructible_v<Partitioner, const FullyConnectedParams&, const Type&, const Target&,
                                      const OptionFlags&, PlanningCache*, std::string>);
static_assert(same<Encoded, decltype(any<const Partitioner&>().createSparsityDataImpl(any<const Coo&>()))>);
static_assert(same<Coo, decltype(any<const Partitioner&>().sparsityDataImplToCOOMatrix(any<const Encoded&>()))>);

// --- Poplar
static_assert(same<Tensor (Tensor::*)(const Type&) const, decltype(&Tensor::reinterpret)>);
static_assert(same<Type (Tensor::*)() const, decltype(&Tensor::elementType)>);
static_assert(same<std::size_t (Tensor::*)() const, decltype(&Tensor::numElements)>);
static_assert(same<const Target& (Graph::*)() const, decltype(&Graph::getTarget)>);
static_assert(same<unsigned (Target::*)() const, decltype(&Target::getTilesPerIPU)>);
static_assert(same<Target, decltype(Target::createIPUTarget(1U, "ipu2"))>);
static_assert(same<Target, decltype(Target::createIPUTarget(1U, 4U, "ipu2"))>);
static_assert(std::is_constructible_v<DebugContext, const DebugNameAndId&>);

// --- PopART
using popart::GradOpInType;
using popart::Op;
using popart::popx::InputCreatorType;
using popart::popx::Opx;
static_assert(same<void (Op::*)(), decltype(&Op::setup)>);
static_assert(same<std::unique_ptr<Op> (Op::*)() const, decltype(&Op::clone)>);
static_assert(same<std::vector<std::unique_ptr<Op>> (Op::*)(), decltype(&Op::getGradOps)>);
static_assert(same<const std::vector<popart::GradInOutMapper>& (Op::*)() const, decltype(&Op::gradInputInfo)>);
static_assert(same<const std::map<int, int>& (Op::*)() const, decltype(&Op::gradOutToNonGradIn)>);
static_assert(same<void (Op::*)(popart::OpSerialiserBase&) const, decltype(&Op::appendAttributes)>);
static_assert(same<void (Op::*)(popart::OpSerialiserBase&) const, decltype(&Op::appendOutlineAttributes)>);
static_assert(same<float (Op::*)() const, decltype(&Op::getSubgraphValue)>);
static_assert(std::is_constructible_v<popart::GradInOutMapper, popart::InIndex, int, GradOpInType>);
static_assert(GradOpInType::In != GradOpInType::Out && GradOpInType::In != GradOpInType::GradOut);
static_assert(same<InputCreatorType (Opx::*)(popart::InIndex) const, decltype(&Opx::getInputCreatorType)>);
static_assert(same<Tensor (Opx::*)(popart::InIndex, const DebugNameAndId&) const, decltype(&Opx::createInput)>);
static_assert(same<std::set<popart::TensorId> (Opx::*)(int) const, decltype(&Opx::mustExistBeforeCreate)>);
static_assert(same<void, decltype(any<const Opx&>().grow(any<Sequence&>()))>);
static_assert(same<double, decltype(Opx::inputCreatorPriority)>);
static_assert(std::is_constructible_v<popart::TensorInfo, popart::DataType, const popart::Shape&>);
static_assert(same<const std::string& (popart::TensorInfo::*)() const, decltype(&popart::TensorInfo::data_type)>);
static_assert(same<popart::Attributes::Int, std::int64_t> && same<popart::Attributes::String, std::string>);

}  // namespace
