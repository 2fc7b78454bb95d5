// Gloo as the backend of a group: TCP between CPUs, of one machine or many.
#pragma once
#include <string>

#include "dist/mesh.h"

namespace picotron {

// Every group made by one factory shares one Gloo device (a listening socket and an event loop),
// bound to `address`: with a device per group, 16 ranks in one process come near the common limit
// of 1,024 descriptors.
BackendFactory gloo_backend(const std::string& address);

}  // namespace picotron
