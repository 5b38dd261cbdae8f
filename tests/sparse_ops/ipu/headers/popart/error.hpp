#pragma once

#include <cstdint>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace popart {

inline std::ostream& operator<<(std::ostream& out, const std::vector<std::int64_t>& shape) {
    out << "[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        out << (i == 0 ? "" : ", ") << shape[i];
    }
    return out << "]";
}

// Each {} of the text stands for one argument.
class error : public std::runtime_error {
public:
    template <typename... Args>
    explicit error(const std::string& text, const Args&... args) : std::runtime_error(filled(text, args...)) {}

private:
    static std::string filled(const std::string& text) { return text; }
    template <typename First, typename... Rest>
    static std::string filled(const std::string& text, const First& first, const Rest&... rest) {
        const auto place = text.find("{}");
        std::ostringstream made;
        made << text.substr(0, place) << first << filled(text.substr(place + 2), rest...);
        return made.str();
    }
};

}  // namespace popart
