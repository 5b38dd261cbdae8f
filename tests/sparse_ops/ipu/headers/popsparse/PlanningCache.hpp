#pragma once

#include <string>

namespace popsparse::dynamic {

// popsparse's own key has neither the data type nor the target, so a cache used with two gives the plan of the first.
class PlanningCache {
public:
    std::string usedWith;  // not popsparse's
};

}  // namespace popsparse::dynamic
