#pragma once

#include <poplar/Graph.hpp>

namespace popsparse {

inline void addCodelets(poplar::Graph& graph) { graph.hasPopsparse = true; }

}  // namespace popsparse
