# Every library the program links to, as imported targets. The versions it is tested with:
# LibTorch 2.11.0 (requirements.txt), the rest Debian 12's packages (cmake/packages.txt).
#
#   picotron_text        fmt, CLI11, nlohmann-json, PCRE2, ICU, sentencepiece, libcurl, libcrypto: what the rooms without tensors need
#   picotron_arrow       Arrow and Parquet (requirements-data.txt), which data/documents reads with
#   picotron_torch       LibTorch's CPU half (torch_cpu, c10), headers as system headers
#   picotron_torch_cuda  its CUDA half (torch_cuda, c10_cuda), only for the plug-in of PICOTRON_CUDA
#   picotron_onednn      oneDNN, the library that multiplies matrices on a CPU
#
# Whose copy is used: PICOTRON_TORCH, then CMAKE_PREFIX_PATH, then .venv (LibTorch) and .deps (what
# ./run unpacked because it may not install packages on this machine), then the system.

set(deps_root ${CMAKE_SOURCE_DIR}/.deps/usr)
if(IS_DIRECTORY ${deps_root})
  list(APPEND CMAKE_PREFIX_PATH ${deps_root})
  # A library in .deps finds its neighbours there only through the binary's own DT_RPATH: the newer
  # DT_RUNPATH is not handed on to the libraries of libraries.
  foreach(dir ${deps_root}/lib/${CMAKE_LIBRARY_ARCHITECTURE} ${deps_root}/lib)
    if(IS_DIRECTORY ${dir})
      add_link_options(-Wl,--disable-new-dtags -Wl,-rpath,${dir} -Wl,-rpath-link,${dir})
    endif()
  endforeach()
endif()

find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(CURL REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_library(PICOTRON_PCRE2_LIB pcre2-8 REQUIRED)
find_library(PICOTRON_ICU_LIB icuuc REQUIRED)
find_library(PICOTRON_SENTENCEPIECE_LIB sentencepiece REQUIRED)
add_library(picotron_text INTERFACE)
target_link_libraries(picotron_text INTERFACE fmt::fmt nlohmann_json::nlohmann_json CLI11::CLI11 CURL::libcurl OpenSSL::Crypto
                      ${PICOTRON_PCRE2_LIB} ${PICOTRON_ICU_LIB} ${PICOTRON_SENTENCEPIECE_LIB})

# Arrow: the `pyarrow` wheel has headers and libraries, whose names end in a version (libarrow.so.2600).
file(GLOB arrow_of_wheel ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/pyarrow)
set(PICOTRON_ARROW "${arrow_of_wheel}" CACHE PATH "a pyarrow wheel's folder: include/arrow, libarrow.so.*")
file(GLOB arrow_libraries ${PICOTRON_ARROW}/libarrow.so.* ${PICOTRON_ARROW}/libparquet.so.*)
list(LENGTH arrow_libraries arrow_found)
if(NOT arrow_found EQUAL 2)
  message(FATAL_ERROR "no Arrow found: use ./run build, which installs it into .venv, or name a folder of the "
                      "pyarrow wheel with -DPICOTRON_ARROW=DIR (it holds libarrow.so.* and libparquet.so.*)")
endif()
add_library(picotron_arrow INTERFACE)
target_include_directories(picotron_arrow SYSTEM INTERFACE ${PICOTRON_ARROW}/include)
target_link_libraries(picotron_arrow INTERFACE ${arrow_libraries})
target_link_options(picotron_arrow INTERFACE -Wl,-rpath,${PICOTRON_ARROW})

# LibTorch: the `torch` wheel, or an unpacked LibTorch, has include/ and lib/.
set(PICOTRON_TORCH "" CACHE PATH "a LibTorch of the user's own, instead of the one in .venv")
file(GLOB venv_torch ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch/include)
if(PICOTRON_TORCH)
  find_path(PICOTRON_TORCH_INCLUDE ATen/ATen.h PATHS ${PICOTRON_TORCH}/include NO_DEFAULT_PATH)
else()
  set(prefixes ${CMAKE_PREFIX_PATH})
  if(DEFINED ENV{CMAKE_PREFIX_PATH})
    string(REPLACE ":" ";" environment "$ENV{CMAKE_PREFIX_PATH}")
    list(APPEND prefixes ${environment})
  endif()
  # torch.utils.cmake_prefix_path, which people set, is torch/share/cmake.
  list(TRANSFORM prefixes APPEND /../../include)
  find_path(PICOTRON_TORCH_INCLUDE ATen/ATen.h HINTS ${prefixes} ${venv_torch})
endif()
if(NOT PICOTRON_TORCH_INCLUDE)
  message(FATAL_ERROR "no LibTorch found: use ./run build, which installs it into .venv, or name yours "
                      "with -DPICOTRON_TORCH=DIR (the folder that holds include/ATen)")
endif()
cmake_path(GET PICOTRON_TORCH_INCLUDE PARENT_PATH PICOTRON_TORCH_DIR)
foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(EXISTS ${PICOTRON_TORCH_INCLUDE}/${header})
    file(STRINGS ${PICOTRON_TORCH_INCLUDE}/${header} lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    list(APPEND torch_version_lines ${lines})
  endif()
endforeach()
string(REGEX MATCHALL "[0-9]+" torch_version "${torch_version_lines}")
list(JOIN torch_version "." torch_version)
if(NOT torch_version STREQUAL "2.11.0")
  message(STATUS "warning: ${PICOTRON_TORCH_DIR} is LibTorch ${torch_version}; Picotron is tested with 2.11.0")
endif()

add_library(picotron_torch INTERFACE)
# -idirafter: LibTorch ships its own dnnl.hpp (and fmt), which must not shadow the libraries we link to.
target_compile_options(picotron_torch INTERFACE "SHELL:-idirafter ${PICOTRON_TORCH_DIR}/include"
  "SHELL:-idirafter ${PICOTRON_TORCH_DIR}/include/torch/csrc/api/include")
target_compile_definitions(picotron_torch INTERFACE USE_C10D_GLOO)
target_link_directories(picotron_torch INTERFACE ${PICOTRON_TORCH_DIR}/lib)
# --no-as-needed: torch_cpu registers its operators when it is loaded, whether or not we name a symbol of it.
target_link_options(picotron_torch INTERFACE -Wl,-rpath,${PICOTRON_TORCH_DIR}/lib -Wl,--no-as-needed)
file(GLOB torch_cuda_runtime ${PICOTRON_TORCH_DIR}/../nvidia/*/lib)
foreach(dir ${torch_cuda_runtime})
  target_link_options(picotron_torch INTERFACE -Wl,-rpath-link,${dir})
endforeach()
target_link_libraries(picotron_torch INTERFACE torch_cpu c10)

if(PICOTRON_CUDA)
  file(GLOB nvidia_includes ${PICOTRON_TORCH_DIR}/../nvidia/*/include)
  add_library(picotron_torch_cuda INTERFACE)
  target_link_libraries(picotron_torch_cuda INTERFACE picotron_torch torch_cuda c10_cuda)
  target_include_directories(picotron_torch_cuda SYSTEM INTERFACE ${nvidia_includes})
  target_compile_definitions(picotron_torch_cuda INTERFACE USE_C10D_NCCL)
  # The runtime that LibTorch brings, not the compiler's: a program has one.
  find_library(PICOTRON_CUDART NAMES libcudart.so.13 cudart NO_DEFAULT_PATH HINTS ${torch_cuda_runtime}
               ${PICOTRON_TORCH_DIR}/lib /usr/local/cuda/lib64 REQUIRED)
  target_link_libraries(picotron_torch_cuda INTERFACE ${PICOTRON_CUDART})
endif()

# oneDNN. Its folder usually is /usr/include, which the compiler searches by itself and before -idirafter.
find_library(PICOTRON_DNNL_LIB dnnl REQUIRED)
find_path(PICOTRON_DNNL_INCLUDE oneapi/dnnl/dnnl.hpp REQUIRED)
add_library(picotron_onednn INTERFACE)
target_link_libraries(picotron_onednn INTERFACE ${PICOTRON_DNNL_LIB})
target_include_directories(picotron_onednn SYSTEM INTERFACE ${PICOTRON_DNNL_INCLUDE})
