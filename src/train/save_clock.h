// When a checkpoint is due: every save_frequency steps, every save_seconds, and at the end.
#pragma once
#include <chrono>
#include <cstdint>

#include "core/config.h"

namespace picotron {

class SaveClock {
 public:
  SaveClock(const Checkpoint& keys, int64_t total_train_steps)
      : keys_(keys), saves_last_(keys.save_frequency <= total_train_steps) {}

  // By steps, which every rank counts alike. The last step saves too, unless save_frequency exceeds
  // total_train_steps.
  bool saves(int64_t step, bool last) const {
    return step % keys_.save_frequency == 0 || (last && saves_last_);
  }
  // By this rank's clock; ranks agree with the step's sums.
  bool is_due() const {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - last_;
    return keys_.save_seconds > 0 && passed.count() >= keys_.save_seconds;
  }
  void saved() { last_ = std::chrono::steady_clock::now(); }

 private:
  const Checkpoint keys_;
  const bool saves_last_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace picotron
