#pragma once

#include <functional>
#include <map>
#include <memory>

#include <popart/popx/opx.hpp>

namespace popart::popx {

using OpxFactory = std::function<std::unique_ptr<Opx>(Op*, Devicex*)>;
inline std::map<OperatorIdentifier, OpxFactory> registeredOpxs;  // not PopART's

template <class OPX>
class OpxCreator {
public:
    explicit OpxCreator(const OperatorIdentifier& id) {
        registeredOpxs.emplace(id, [](Op* op, Devicex* devicex) { return std::make_unique<OPX>(op, devicex); });
    }
};

}  // namespace popart::popx
