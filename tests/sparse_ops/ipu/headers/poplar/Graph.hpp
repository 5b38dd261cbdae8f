#pragma once

#include <string>
#include <utility>

#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <poplar/Tensor.hpp>
#include <poplar/Type.hpp>

namespace poplar {

struct DebugNameAndId {};
struct DebugContext {
    DebugContext() = default;
    DebugContext(const DebugNameAndId&) {}
};

namespace program {
class Sequence {};  // nothing waits in it: see Tensor
}  // namespace program

class Graph {
public:
    explicit Graph(Target target) : target_(std::move(target)) {}
    const Target& getTarget() const { return target_; }
    bool hasPopsparse = false;  // not Poplar's: whether popsparse's codelets were added

private:
    Target target_;
};

}  // namespace poplar
