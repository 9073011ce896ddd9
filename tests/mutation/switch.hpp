// Included before all else in a build of mutants of C++ (run.py): which one is on, and which ones were passed.
#pragma once

#include <initializer_list>

extern "C" {
extern int ecrec_mutant;
extern unsigned char ecrec_reached[];
}

namespace ecrec_mutation {

inline bool is_on(int id) {
    ecrec_reached[id] = 1;
    return ecrec_mutant == id;
}

#define ECREC_ON(id) (::ecrec_mutation::is_on(id))

// `a < Boundary<7>{} < b` is a < b, or a <= b if 7 is on; and so on.
template <int id>
struct Boundary {};

template <int id, class Left>
struct Less {
    const Left& left;
};
template <int id, class Left>
struct LessOrEqual {
    const Left& left;
};
template <int id, class Left>
struct Greater {
    const Left& left;
};
template <int id, class Left>
struct GreaterOrEqual {
    const Left& left;
};

template <class Left, int id>
Less<id, Left> operator<(const Left& left, Boundary<id>) {
    return {left};
}
template <class Left, int id>
LessOrEqual<id, Left> operator<=(const Left& left, Boundary<id>) {
    return {left};
}
template <class Left, int id>
Greater<id, Left> operator>(const Left& left, Boundary<id>) {
    return {left};
}
template <class Left, int id>
GreaterOrEqual<id, Left> operator>=(const Left& left, Boundary<id>) {
    return {left};
}
template <int id, class Left, class Right>
bool operator<(Less<id, Left> a, const Right& right) {
    return is_on(id) ? a.left <= right : a.left < right;
}
template <int id, class Left, class Right>
bool operator<=(LessOrEqual<id, Left> a, const Right& right) {
    return is_on(id) ? a.left < right : a.left <= right;
}
template <int id, class Left, class Right>
bool operator>(Greater<id, Left> a, const Right& right) {
    return is_on(id) ? a.left >= right : a.left > right;
}
template <int id, class Left, class Right>
bool operator>=(GreaterOrEqual<id, Left> a, const Right& right) {
    return is_on(id) ? a.left > right : a.left >= right;
}

template <int id, class Value>
Value mask(Value value) {
    return is_on(id) ? static_cast<Value>(~Value{0}) : value;
}
template <int id, class Value>
Value smaller(const Value& a, const Value& b) {
    return (a < b) != is_on(id) ? a : b;
}
template <int id, class Value>
Value larger(const Value& a, const Value& b) {
    return (a > b) != is_on(id) ? a : b;
}
template <int id, class Value>
Value larger(std::initializer_list<Value> values) {
    Value found = *values.begin();
    for (const Value& value : values) found = larger<id>(found, value);
    return found;
}

}  // namespace ecrec_mutation
