// Stands in for Poplar in the tests of the operation: what its sources use, and no more.
#pragma once

#include <string>

namespace poplar {

class Type {
public:
    constexpr explicit Type(const char* name, int bytes) : name_(name), bytes_(bytes) {}
    std::string toString() const { return name_; }
    int bytes() const { return bytes_; }
    bool operator==(const Type& other) const { return toString() == other.toString(); }
    bool operator!=(const Type& other) const { return !(*this == other); }

private:
    const char* name_;
    int bytes_;
};

inline constexpr Type HALF("half", 2), FLOAT("float", 4), UNSIGNED_SHORT("ushort", 2);

}  // namespace poplar
