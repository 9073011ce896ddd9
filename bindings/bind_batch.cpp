#include "register.hpp"

namespace ecrec::bindings {

void register_batch(pybind11::module_&) {}

}  // namespace ecrec::bindings
