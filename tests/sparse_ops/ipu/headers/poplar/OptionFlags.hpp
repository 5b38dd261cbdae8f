#pragma once

#include <map>
#include <string>

namespace poplar {

class OptionFlags {
public:
    void set(const std::string& option, const std::string& value) { flags_[option] = value; }
    std::map<std::string, std::string>::const_iterator begin() const { return flags_.begin(); }
    std::map<std::string, std::string>::const_iterator end() const { return flags_.end(); }

private:
    std::map<std::string, std::string> flags_;
};

}  // namespace poplar
