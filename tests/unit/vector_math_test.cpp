// settle_vector_math() calls every function that ATen takes from MKL's vector mathematics. That it
// helps shows among many processes only: tests/parity/test_first_calls.py.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "kernels/fused_dispatch.h"

namespace picotron {
namespace {

thread_local std::map<std::string, int> calls;

std::unique_ptr<at::ObserverContext> count(const at::RecordFunction& call) {
  ++calls[call.name()];
  return nullptr;
}

// IMPLEMENT_VML_MKL of ATen/cpu/vml.h names them.
TEST(VectorMath, EachFunctionIsCalledOnceInEachPrecision) {
  const at::CallbackHandle handle = at::addThreadLocalCallback(at::RecordFunctionCallback(count));
  settle_vector_math();
  at::removeCallback(handle);
  for (const std::string name : {"acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp",
                                 "log", "log10", "log2", "sin", "sqrt", "tan", "tanh", "trunc"}) {
    EXPECT_EQ(calls["aten::" + name], 2) << name;
  }
}

}  // namespace
}  // namespace picotron
