#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <popart/opserialiser.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

using InIndex = int;
using OutIndex = int;
using TensorId = std::string;

struct OperatorIdentifier {
    std::string domain, type;
    int version;
    bool operator<(const OperatorIdentifier& other) const {
        return std::tie(domain, type, version) < std::tie(other.domain, other.type, other.version);
    }
};

// What a gradient's input is, of the operation whose gradient it is.
enum class GradOpInType { In, Out, GradOut };

struct GradInOutMapper {
    GradInOutMapper(InIndex grad, int nonGrad, GradOpInType of) : iGrad(grad), iNonGrad(nonGrad), type(of) {}
    InIndex iGrad;
    int iNonGrad;
    GradOpInType type;
};

class Op {
public:
    struct Settings {};

    Op(const OperatorIdentifier& id, const Settings& settings) : opid(id), settings_(settings) {}
    virtual ~Op() = default;

    virtual std::unique_ptr<Op> clone() const = 0;
    virtual void setup() {}
    virtual std::vector<std::unique_ptr<Op>> getGradOps() { return {}; }
    virtual const std::vector<GradInOutMapper>& gradInputInfo() const {
        throw error("{}: no gradInputInfo", opid.type);
    }
    virtual const std::map<int, int>& gradOutToNonGradIn() const {
        throw error("{}: no gradOutToNonGradIn", opid.type);
    }
    virtual void appendAttributes(OpSerialiserBase& os) const { os.appendAttribute("type", opid.type); }
    virtual void appendOutlineAttributes(OpSerialiserBase& os) const { os.appendAttribute("type", opid.type); }
    virtual float getSubgraphValue() const = 0;
    float getHighSubgraphValue() const { return 1000.0F; }

    TensorInfo& inInfo(InIndex index) { return in_.at(index); }
    const TensorInfo& inInfo(InIndex index) const { return in_.at(index); }
    TensorInfo& outInfo(OutIndex index) { return out_[index]; }
    const Settings& getSettings() const { return settings_; }

    OperatorIdentifier opid;
    std::map<int, TensorInfo> in_, out_;  // not PopART's: whoever runs the operation sets the inputs

private:
    Settings settings_;
};

}  // namespace popart
