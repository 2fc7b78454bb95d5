// The lists of actions that pipeline_schedule.h draws.
#include "parallel/pipeline_schedule.h"

#include <algorithm>

namespace picotron {

Schedule all_forward_all_backward(int64_t microbatches) {
  Schedule schedule;
  for (int64_t i = 0; i < microbatches; ++i) schedule.push_back({ActionKind::forward, i});
  for (int64_t i = 0; i < microbatches; ++i) schedule.push_back({ActionKind::backward, i});
  return schedule;
}

Schedule one_forward_one_backward(int stage, int stages, int64_t microbatches) {
  const int64_t ahead = std::min<int64_t>(stages - 1 - stage, microbatches);
  Schedule schedule;
  for (int64_t i = 0; i < ahead; ++i) schedule.push_back({ActionKind::forward, i});
  for (int64_t i = 0; i < microbatches; ++i) {
    if (i + ahead < microbatches) schedule.push_back({ActionKind::forward, i + ahead});
    schedule.push_back({ActionKind::backward, i});
  }
  return schedule;
}

}  // namespace picotron
