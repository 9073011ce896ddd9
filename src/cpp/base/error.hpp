// What the store and the batch helpers raise: a kind, which the bindings map to a Python
// exception, and a message that says what, where and what was expected.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ecrec {

enum class ErrorKind {
    value,  // an argument that no call could accept (ValueError)
    index,  // an id outside of its table, or not on this shard (IndexError)
    state,  // right in itself, but not now (RuntimeError)
};

class StoreError : public std::runtime_error {
public:
    StoreError(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const { return kind_; }

private:
    ErrorKind kind_;
};

// Out of line in spirit: only built when something is refused.
template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void refuse(ErrorKind kind, const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw StoreError(kind, message.str());
}

}  // namespace ecrec
