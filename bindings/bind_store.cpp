#include "register.hpp"

namespace ecrec::bindings {

void register_store(pybind11::module_&) {}

}  // namespace ecrec::bindings
