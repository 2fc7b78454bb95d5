// The three schedules as one factor between min_lr_ratio and 1.
#include "train/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace picotron {

double learning_rate(const Training& training, int64_t step) {
  const auto warmup = static_cast<double>(training.warmup_steps);
  const auto now = static_cast<double>(step),
             total = static_cast<double>(training.total_train_steps);
  if (now < warmup) return training.learning_rate * now / warmup;

  double factor = 1;  // 1 at the end of the warmup, 0 at the last step
  if (training.lr_schedule == LrSchedule::cosine && total > warmup) {
    factor =
        0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, (now - warmup) / (total - warmup))));
  } else if (training.lr_schedule == LrSchedule::wsd) {
    const double decay = training.lr_decay_ratio * total;
    if (decay > 0) factor = std::clamp((total - now) / decay, 0.0, 1.0);
  }
  return training.learning_rate * (training.min_lr_ratio + (1 - training.min_lr_ratio) * factor);
}

}  // namespace picotron
