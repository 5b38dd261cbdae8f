#pragma once

#include <sstream>
#include <string>

namespace popart {

// Collects a key: what outlining and the executable cache tell operations apart by.
class OpSerialiserBase {
public:
    template <typename T>
    void appendAttribute(const std::string& name, const T& value) {
        text_ << name << "=" << value << ";";
    }
    std::string text() const { return text_.str(); }  // not PopART's

private:
    std::ostringstream text_;
};

}  // namespace popart
