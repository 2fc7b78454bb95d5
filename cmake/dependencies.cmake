# Every library the program links to, as imported targets:
#   picotron_torch   LibTorch, CPU half only (torch_cpu, c10), headers as SYSTEM
#   picotron_onednn  oneDNN, Debian's: its headers before LibTorch's, which ship a newer dnnl.hpp without the functions
#   picotron_text    fmt, CLI11, nlohmann-json, xxhash: what the parts without tensors need
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
add_library(picotron_text INTERFACE)
target_link_libraries(picotron_text INTERFACE fmt::fmt nlohmann_json::nlohmann_json CLI11::CLI11)

if(DEFINED ENV{PICOTRON_TORCH})
  set(torch_hint $ENV{PICOTRON_TORCH})
endif()
file(GLOB venv_torch ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
find_path(PICOTRON_TORCH_DIR include/ATen/ATen.h HINTS ${torch_hint} ${venv_torch} PATHS ${CMAKE_PREFIX_PATH} REQUIRED)
add_library(picotron_torch INTERFACE)
# -idirafter: LibTorch ships its own dnnl.hpp (and fmt), which must not shadow the libraries we link to.
target_compile_options(picotron_torch INTERFACE "SHELL:-idirafter ${PICOTRON_TORCH_DIR}/include"
  "SHELL:-idirafter ${PICOTRON_TORCH_DIR}/include/torch/csrc/api/include")
target_compile_definitions(picotron_torch INTERFACE USE_C10D_GLOO)
target_link_directories(picotron_torch INTERFACE ${PICOTRON_TORCH_DIR}/lib)
file(GLOB torch_cuda_runtime ${PICOTRON_TORCH_DIR}/../nvidia/*/lib)
target_link_options(picotron_torch INTERFACE -Wl,-rpath,${PICOTRON_TORCH_DIR}/lib -Wl,--no-as-needed)
foreach(dir ${torch_cuda_runtime})
  target_link_options(picotron_torch INTERFACE -Wl,-rpath-link,${dir})
endforeach()
target_link_libraries(picotron_torch INTERFACE torch_cpu c10)

find_library(PICOTRON_DNNL_LIB dnnl REQUIRED)
find_path(PICOTRON_DNNL_INCLUDE oneapi/dnnl/dnnl.hpp PATHS /usr/include NO_DEFAULT_PATH REQUIRED)
add_library(picotron_onednn INTERFACE)
target_link_libraries(picotron_onednn INTERFACE ${PICOTRON_DNNL_LIB})
